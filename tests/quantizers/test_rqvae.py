import copy
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax.core import meta

from tiger_jax.errors import InputError
from tiger_jax.models.rqvae import RqVae, RqVaeConfig, make_loss_fn
from tiger_jax.quantizers.rqvae_training import Batches, RqVaeTraining, _Training
from tiger_jax.quantizers.store import load_quantizer, save_quantizer

SMALL = RqVaeConfig((8, 4), hidden_sizes=(16,), latent_size=4)
MODEL = RqVae(SMALL, embedding_size=6)
loss_fn = jax.jit(make_loss_fn(MODEL))


def make_embeddings(num_items=300, size=6, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(10, size)) * 3
    points = centers[rng.integers(10, size=num_items)]
    return (points + rng.normal(size=(num_items, size))).astype(np.float32)


@functools.cache
def init_params():
    init = jax.jit(MODEL.init)
    return meta.unbox(init(jax.random.key(0), jnp.zeros((1, 6))))["params"]


def test_the_paper_architecture_has_the_papers_parameters():
    variables = jax.eval_shape(
        RqVae(RqVaeConfig((256, 256, 256)), 768).init,
        jax.random.key(0),
        jnp.zeros((1, 768)),
    )
    params = meta.unbox(variables)["params"]
    shapes = [params["encoder"][f"dense_{i}"]["kernel"].shape for i in range(4)]
    assert shapes == [(768, 512), (512, 256), (256, 128), (128, 32)]
    shapes = [params["decoder"][f"dense_{i}"]["kernel"].shape for i in range(4)]
    assert shapes == [(32, 128), (128, 256), (256, 512), (512, 768)]
    shapes = [params["quantizer"][f"codebook_{l}"].shape for l in range(3)]
    assert shapes == [(256, 32)] * 3


def test_codebook_sizes_may_fall_by_level():
    config = RqVaeConfig((512, 256, 128, 64), (16,), 4)
    variables = jax.eval_shape(
        RqVae(config, 6).init, jax.random.key(0), jnp.zeros((2, 6))
    )
    codebooks = meta.unbox(variables)["params"]["quantizer"]
    assert [codebooks[f"codebook_{l}"].shape[0] for l in range(4)] == [
        512,
        256,
        128,
        64,
    ]


def test_every_parameter_names_its_axes():
    variables = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 6)))
    specs = nn.get_partition_spec(variables)["params"]
    assert tuple(specs["quantizer"]["codebook_0"]) == ("codebook", "latent")

    def check(param, spec):
        assert len(spec) == param.ndim
        assert None not in spec

    jax.tree.map(check, meta.unbox(variables)["params"], specs)


def test_the_loss_is_the_papers_formula():
    params, x = init_params(), jnp.asarray(make_embeddings(20))
    loss_sum, sums = loss_fn(params, {"embeddings": x}, None)

    z = np.asarray(MODEL.apply({"params": params}, x, method="encode"))
    expected, quantized = 0.0, np.zeros_like(z)
    residual = z
    for l in range(2):
        codebook = np.asarray(params["quantizer"][f"codebook_{l}"])
        distances = ((residual[:, None] - codebook[None]) ** 2).sum(-1)
        # In value, |sg[r] - e|^2 + beta |r - sg[e]|^2 is 1.25 |r - e|^2.
        expected += 1.25 * distances.min(1).sum()
        chosen = codebook[distances.argmin(1)]
        quantized, residual = quantized + chosen, residual - chosen
    x_hat = MODEL.apply(
        {"params": params}, jnp.asarray(quantized), method=lambda m, z: m.decoder(z)
    )
    expected += float(((x - x_hat) ** 2).sum())
    assert float(loss_sum) == pytest.approx(expected, rel=1e-5)
    assert float(sums["weight"]) == 20
    assert float(sums["variance"]) == pytest.approx(float((x**2).sum()), rel=1e-5)


def test_the_decoders_gradient_passes_straight_through():
    """The decoder's gradient passes straight through to the encoder."""
    params, x = init_params(), jnp.asarray(make_embeddings(20))
    no_commitment = RqVae(dataclasses.replace(SMALL, commitment_weight=0.0), 6)
    through = jax.grad(
        lambda p: make_loss_fn(no_commitment)(p, {"embeddings": x}, None)[0]
    )(params)["encoder"]

    # By hand: d|x - D(z_q)|^2 / dz_q, taken as the gradient of z.
    z, pull_back = jax.vjp(
        lambda e: MODEL.apply({"params": {**params, "encoder": e}}, x, method="encode"),
        params["encoder"],
    )
    codes = MODEL.apply({"params": params}, x, method="quantize")[0]

    def reconstruction_loss(shift):
        def decode(module, codes):
            return module.decoder(module.quantizer.look_up(codes) + shift)

        return ((x - MODEL.apply({"params": params}, codes, method=decode)) ** 2).sum()

    (by_hand,) = pull_back(jax.grad(reconstruction_loss)(jnp.zeros_like(z)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        through,
        by_hand,
    )


def test_codewords_and_encoder_are_pulled_together():
    """Codewords and encoder are pulled together with weights 1 and beta."""
    params, x = init_params(), jnp.asarray(make_embeddings(20))

    def codebook_gradient(weight):
        model = RqVae(dataclasses.replace(SMALL, commitment_weight=weight), 6)
        grad_fn = jax.grad(lambda p: make_loss_fn(model)(p, {"embeddings": x})[0])
        return grad_fn(params)

    plain, committed = codebook_gradient(0.0), codebook_gradient(0.25)
    # Commitment moves the encoder only.
    jax.tree.map(
        np.testing.assert_array_equal, plain["quantizer"], committed["quantizer"]
    )
    jax.tree.map(np.testing.assert_array_equal, plain["decoder"], committed["decoder"])
    last = np.abs(
        plain["encoder"]["dense_1"]["kernel"]
        - committed["encoder"]["dense_1"]["kernel"]
    )
    assert last.max() > 0
    # A codeword's gradient is 2 (e - r), summed over the items that chose it.
    codes, residuals = MODEL.apply({"params": params}, x, method="quantize")
    expected = np.zeros((8, 4))
    codebook = np.asarray(params["quantizer"]["codebook_0"])
    for code, r in zip(np.asarray(codes[:, 0]), np.asarray(residuals[0]), strict=True):
        expected[code] += 2 * (codebook[code] - r)
    np.testing.assert_allclose(
        plain["quantizer"]["codebook_0"], expected, rtol=1e-4, atol=1e-4
    )


def test_rows_of_weight_zero_do_not_count():
    params, x = init_params(), make_embeddings(12)
    whole = loss_fn(params, {"embeddings": x[:9], "weights": np.ones(9, "f")}, None)
    weights = np.array([1.0] * 9 + [0.0] * 3, np.float32)
    padded = loss_fn(params, {"embeddings": x, "weights": weights}, None)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, padded
    )
    assert float(padded[1]["codeword_counts"]["codebook_1"].sum()) == 9


TRAINING = RqVaeTraining(
    model=SMALL, num_steps=60, batch_size=64, reset_every=10, steps_per_dispatch=20
)


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def watch(monkeypatch, name):
    """Collects the calls of a method of the training: (arguments, what it returned)."""
    method, calls = getattr(_Training, name), []

    def call(self, *args):
        result = method(self, *args)
        calls.append((args, result))
        return result

    monkeypatch.setattr(_Training, name, call)
    return calls


def counts_after(folder, config):
    """The codewords' counts in the last checkpoint."""
    step = config.num_steps
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.restore(folder / "checkpoints" / f"checkpoint_{step}" / "state")
    return tree["flax_mutables"]["codeword_counts"]


def test_training_reconstructs_and_uses_every_codeword(tmp_path):
    x = make_embeddings()
    quantizer = TRAINING.fit_in(tmp_path, x, seed=0)
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [20, 40, 60]
    errors = [row["train/reconstruction_error"] for row in rows]
    assert errors[-1] < errors[0]
    codes = quantizer.encode(x)
    assert set(codes[:, 0]) == set(range(8))
    assert set(codes[:, 1]) == set(range(4))


class Killed(BaseException):
    pass


def test_a_run_that_stops_and_goes_on_gives_the_same_bits(tmp_path, monkeypatch):
    x = make_embeddings()
    uninterrupted = TRAINING.fit(x, seed=4)
    draw = Batches.__next__

    def draw_or_die(self):
        if self._step == 25:
            raise Killed
        return draw(self)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__next__", draw_or_die)
        with pytest.raises(Killed):
            TRAINING.fit_in(tmp_path, x, seed=4, checkpoint_seconds=0.0)
    resumed = TRAINING.fit_in(tmp_path, x, seed=4)
    arrays = resumed.to_arrays()
    for name, array in uninterrupted.to_arrays().items():
        np.testing.assert_array_equal(array, arrays[name])


def test_checkpoints_of_an_earlier_version_are_mentioned(tmp_path, capsys):
    (tmp_path / "checkpoints" / "20" / "default").mkdir(parents=True)
    TRAINING.fit_in(tmp_path, make_embeddings(), seed=0)
    assert "earlier version's form" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / "20" / "default").is_dir()


def test_unused_codewords_move_to_where_items_are(tmp_path, monkeypatch):
    config = dataclasses.replace(
        TRAINING, num_steps=10, steps_per_dispatch=10, reset_share=1.0, refresh_at=()
    )

    def start_far_away(self, params):
        far = jnp.full((8, 4), 1e3).at[0].set(0.0)
        return {**params, "quantizer": {**params["quantizer"], "codebook_0": far}}

    monkeypatch.setattr(_Training, "start_codebooks", start_far_away)
    quantizer = config.fit_in(tmp_path, make_embeddings(), seed=0)
    assert rows_of(tmp_path)[-1]["train/use_0"] == 1 / 8
    codebook = quantizer.params["quantizer"]["codebook_0"]
    assert np.abs(codebook).max() < 100
    assert len(np.unique(codebook, axis=0)) == 8
    assert counts_after(tmp_path, config)["codebook_0"].sum() == 0


def test_codebooks_are_fitted_anew_where_it_is_due(monkeypatch):
    # Shares of 60 steps in dispatches of 20: 0.1 and 0.4 both round to step 20.
    config = dataclasses.replace(TRAINING, refresh_at=(0.1, 0.4, 0.7))
    asked, fitted = watch(monkeypatch, "refresh_codebooks"), []
    fit_codebooks = _Training.fit_codebooks

    def fit_and_note(self, params):
        fitted.append(len(asked))
        return fit_codebooks(self, params)

    monkeypatch.setattr(_Training, "fit_codebooks", fit_and_note)
    config.fit(make_embeddings())
    assert [step for (step, _), _ in asked] == [0, 20, 40]
    assert fitted == [0, 1, 2]  # at the start, and before the second and third dispatch


def test_resets_end_with_their_share_of_training(tmp_path):
    config = dataclasses.replace(TRAINING, num_steps=20, reset_share=0.4)
    config.fit_in(tmp_path, make_embeddings(), seed=0)
    # Resets at step 10 only if 10 <= 8: never, so all 20 steps were counted.
    assert counts_after(tmp_path, config)["codebook_0"].sum() == 20 * 64


def test_the_last_dispatch_may_be_shorter(tmp_path):
    config = dataclasses.replace(TRAINING, num_steps=25)
    config.fit_in(tmp_path, make_embeddings(), seed=0)
    assert [row["step"] for row in rows_of(tmp_path)] == [20, 25]


def test_a_frozen_quantizer_is_read_back_as_it_was(tmp_path):
    x = make_embeddings()
    quantizer = dataclasses.replace(TRAINING, num_steps=5).fit(x)
    save_quantizer(quantizer, tmp_path)
    loaded = load_quantizer(tmp_path)
    assert loaded.config == SMALL
    codes = quantizer.encode(x)
    np.testing.assert_array_equal(loaded.encode(x), codes)
    np.testing.assert_array_equal(
        loaded.reconstruct(codes), quantizer.reconstruct(codes)
    )
    order = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_array_equal(loaded.encode(x[order]), codes[order])
    np.testing.assert_array_equal(loaded.encode(x[3:4]), codes[3:4])
    assert loaded.encode(x[:0]).shape == (0, 2)


def test_a_dimension_that_never_varies_does_no_harm():
    x = make_embeddings()
    x[:, 2] = 0.25
    quantizer = dataclasses.replace(TRAINING, num_steps=5).fit(x)
    assert np.isfinite(quantizer.reconstruct(quantizer.encode(x))).all()
    assert quantizer.scale[2] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1e30}, "a lower rate: .*learning_rate=0.0001"),
        ({"model": RqVaeConfig((512, 4))}, "512 codewords needs as many items"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(TRAINING, **change).fit(make_embeddings())


@pytest.mark.parametrize(
    ("field", "value"), [("optimizer", "sgd"), ("schedule", "linear")]
)
def test_unknown_choices_are_refused(field, value):
    # Past the annotations, which only tests check at every call.
    config = copy.copy(TRAINING)
    vars(config)[field] = value
    with pytest.raises(InputError, match=f"RqVaeTraining.{field} is '{value}'"):
        config.__post_init__()


def test_the_papers_optimizer_trains_too(tmp_path):
    x = make_embeddings()
    config = dataclasses.replace(
        TRAINING, optimizer="adagrad", learning_rate=0.1, schedule="constant"
    )
    config.fit_in(tmp_path, x, seed=0)
    first, *_, last = (row["train/loss"] for row in rows_of(tmp_path))
    assert last < first
