"""TIGER's sizes, its loss's invariances, and decoding against teacher forcing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tiger_jax.errors import InputError
from tiger_jax.models.generator import init_params, make_decode_fns, make_loss_fn
from tiger_jax.models.tiger import Tiger, TigerConfig
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.training.partitioning import Partitioner

LAYOUT = TokenLayout((12, 8, 12, 5), num_user_tokens=20)
CONFIG = TigerConfig(
    num_encoder_layers=1,
    num_decoder_layers=2,
    d_model=32,
    num_heads=2,
    head_dim=16,
    mlp_dim=48,
)
CONFIGS = {
    "level": CONFIG,
    "vocabulary": dataclasses.replace(CONFIG, output="vocabulary", is_tied=False),
    "items": dataclasses.replace(CONFIG, encoder_positions="items"),
}


def make_batch(num_items=(10, 6, 3, 1), padded_items=10, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, LAYOUT.codebook_sizes, (len(num_items), padded_items, 4))
    tokens = LAYOUT.tokens_of(codes).reshape(len(num_items), -1)
    for row, count in enumerate(num_items):
        tokens[row, 4 * count :] = 0
    users = LAYOUT.user_tokens(np.arange(len(num_items), dtype=np.uint32))
    targets = LAYOUT.tokens_of(
        rng.integers(0, LAYOUT.codebook_sizes, (len(num_items), 4))
    )
    inputs = np.concatenate([np.zeros_like(targets[:, :1]), targets[:, :-1]], 1)
    return {
        "encoder_input_tokens": jnp.concatenate([users[:, None], tokens], 1),
        "decoder_input_tokens": jnp.array(inputs),
        "decoder_target_tokens": jnp.array(targets),
        "decoder_loss_weights": jnp.ones(targets.shape, jnp.float32),
    }


BATCH = make_batch()


@functools.cache
def make_params(config):
    init = jax.jit(functools.partial(init_params, Tiger(config, LAYOUT)))
    return nn.unbox(init(jax.random.key(0)))


def params_of(name):
    return make_params(CONFIGS[name])


LOSS_FNS = {
    name: jax.jit(make_loss_fn(Tiger(config, LAYOUT)))
    for name, config in CONFIGS.items()
}


def make_logits_fn(config):
    def logits_fn(params, history, inputs):
        model = Tiger(config, LAYOUT)
        return model.apply({"params": params}, history, inputs, is_training=False)

    return jax.jit(logits_fn)


# One block each, where gradients are compiled.
SMALL = dataclasses.replace(CONFIG, num_decoder_layers=1)
GRAD_FN = jax.jit(jax.grad(make_loss_fn(Tiger(SMALL, LAYOUT)), has_aux=True))

LOGITS_FNS = {name: make_logits_fn(config) for name, config in CONFIGS.items()}


@pytest.mark.parametrize(
    ("d_model", "total", "without_embeddings"),
    [(128, 4_846_848, 4_459_648), (384, 14_539_776, 13_378_176)],
)
def test_the_papers_sizes(d_model, total, without_embeddings):
    layout = TokenLayout((256,) * 4, num_user_tokens=2000)
    model = Tiger(TigerConfig(d_model=d_model), layout)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == total
    assert count - params["token_embeddings"].value.size == without_embeddings


def test_every_parameter_has_logical_axes_and_is_float32():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    params = jax.eval_shape(
        lambda: init_params(Tiger(config, LAYOUT), jax.random.key(0))
    )
    names = set()
    for leaf in jax.tree.leaves(
        params, is_leaf=lambda x: isinstance(x, nn.Partitioned)
    ):
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
        assert leaf.value.dtype == jnp.float32
        names |= set(leaf.names)
    assert names == {"vocab", "embed", "joined_kv", "mlp", "heads", "relpos_buckets"}


@pytest.mark.parametrize("name", CONFIGS)
def test_untrained_loss_is_finite_and_its_sums_count_the_targets(name):
    loss, sums = LOSS_FNS[name](params_of(name), BATCH, None)
    assert np.isfinite(loss)
    assert sums["weight"] == 16
    assert float(sums["loss"]) == float(loss)
    levels = sum(sums[f"correct_level_{level}"] for level in range(4))
    assert float(levels) == float(4 * sums["correct"])


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_is_the_mean_of_cross_entropies_written_out(name):
    config = dataclasses.replace(CONFIGS[name], label_smoothing=0.1, z_loss=1e-3)
    loss, _ = jax.jit(make_loss_fn(Tiger(config, LAYOUT)))(params_of(name), BATCH, None)
    logits = np.float64(
        LOGITS_FNS[name](
            params_of(name),
            BATCH["encoder_input_tokens"],
            BATCH["decoder_input_tokens"],
        )
    )
    expected = 0.0
    for row in range(4):
        for level in range(4):
            classes = logits[row, level]
            target = int(BATCH["decoder_target_tokens"][row, level])
            if name != "vocabulary":
                classes = classes[: LAYOUT.codebook_sizes[level]]
                target -= LAYOUT.level_offsets[level]
            log_z = np.log(np.exp(classes).sum())
            log_probs = classes - log_z
            expected -= 0.9 * log_probs[target] + 0.1 * log_probs.mean()
            expected += 1e-3 * log_z**2
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_padding_length_does_not_change_the_loss():
    short = make_batch((5, 3, 2, 1), padded_items=5)
    padding = jnp.zeros((4, 20), jnp.int32)
    history = jnp.concatenate([short["encoder_input_tokens"], padding], axis=1)
    loss, _ = LOSS_FNS["level"](params_of("level"), short, None)
    padded, _ = LOSS_FNS["level"](
        params_of("level"), {**short, "encoder_input_tokens": history}, None
    )
    assert float(loss) == pytest.approx(float(padded), rel=1e-6)


def test_padded_rows_add_nothing_to_loss_or_gradient():
    empty = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)]), BATCH)
    grads, sums = GRAD_FN(make_params(SMALL), BATCH, None)
    padded_grads, padded_sums = GRAD_FN(make_params(SMALL), empty, None)
    assert float(sums["weight"]) == float(padded_sums["weight"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, padded_grads
    )


def test_loss_does_not_depend_on_the_order_of_the_batch():
    loss, _ = LOSS_FNS["level"](params_of("level"), BATCH, None)
    order = jnp.array([2, 0, 3, 1])
    shuffled = jax.tree.map(lambda x: x[order], BATCH)
    reordered, _ = LOSS_FNS["level"](params_of("level"), shuffled, None)
    assert float(loss) == pytest.approx(float(reordered), rel=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_swapped_histories_change_the_prediction(name):
    def target_nll(batch):
        return float(LOSS_FNS[name](params_of(name), batch, None)[1]["nll"])

    history = BATCH["encoder_input_tokens"][::-1]
    swapped = {**BATCH, "encoder_input_tokens": history}
    assert abs(target_nll(BATCH) - target_nll(swapped)) > 1e-2


def test_a_token_predicts_only_those_after_it():
    def logits(decoder_inputs):
        history = BATCH["encoder_input_tokens"]
        return LOGITS_FNS["level"](params_of("level"), history, decoder_inputs)

    inputs = BATCH["decoder_input_tokens"]
    before, after = logits(inputs), logits(inputs.at[:, 2].add(1))
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert (abs(before - after)[:, 2:, :5].max(-1) > 1e-4).all()


def test_logits_beyond_a_smaller_codebook_are_minus_infinity():
    logits = LOGITS_FNS["level"](
        params_of("level"), BATCH["encoder_input_tokens"], BATCH["decoder_input_tokens"]
    )
    assert logits.shape == (4, 4, 12)
    is_class = np.isfinite(logits).all(0)  # [T, K]
    np.testing.assert_array_equal(is_class.sum(-1), LAYOUT.codebook_sizes)


def test_dropout_changes_with_the_key_and_keeps_the_loss_near():
    loss_fn = LOSS_FNS["level"]
    plain, _ = loss_fn(params_of("level"), BATCH, None)
    keys = jax.random.split(jax.random.key(1), 40)
    losses = np.array([loss_fn(params_of("level"), BATCH, key)[0] for key in keys])
    assert len(np.unique(losses)) == len(losses)
    assert losses[0] == loss_fn(params_of("level"), BATCH, keys[0])[0]
    assert abs(losses.mean() - plain) < 0.2 * plain


@pytest.mark.slow
def test_recomputing_blocks_changes_no_gradient():
    key = jax.random.key(3)
    grads, _ = GRAD_FN(make_params(SMALL), BATCH, key)
    remat = Tiger(dataclasses.replace(SMALL, remat=True), LAYOUT)
    recomputed, _ = jax.jit(jax.grad(make_loss_fn(remat), has_aux=True))(
        make_params(SMALL), BATCH, key
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        grads,
        recomputed,
    )


def test_bfloat16_compute_stays_near_float32():
    loss, _ = LOSS_FNS["level"](params_of("level"), BATCH, None)
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    rounded, _ = jax.jit(make_loss_fn(Tiger(config, LAYOUT)))(
        params_of("level"), BATCH, None
    )
    assert float(rounded) == pytest.approx(float(loss), rel=0.05)


def test_item_structure_trains_and_ignores_padding():
    """What the encoder is told of items trains and ignores padding."""
    options = {"has_level_embeddings": True, "has_item_context": True}
    model = Tiger(dataclasses.replace(SMALL, num_recencies=4, **options), LAYOUT)
    params = nn.unbox(init_params(model, jax.random.key(0)))
    assert set(params) - set(make_params(SMALL)) == {"item_structure"}
    assert set(params["item_structure"]) == {
        "level_embeddings",
        "recency_embeddings",
        "item_context",
    }
    grad_fn = jax.jit(jax.grad(make_loss_fn(model), has_aux=True))
    batch = make_batch((5, 3, 2, 1), padded_items=5)
    longer = {
        **batch,
        "encoder_input_tokens": jnp.pad(
            batch["encoder_input_tokens"], ((0, 0), (0, 20))
        ),
    }
    grads, sums = grad_fn(params, batch, None)
    longer_grads, longer_sums = grad_fn(params, longer, None)
    assert float(sums["loss"]) == pytest.approx(float(longer_sums["loss"]), rel=1e-6)
    for grad in jax.tree.leaves(grads["item_structure"]):
        assert abs(grad).max() > 1e-4, "this parameter is not used"
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, longer_grads
    )


def test_options_are_off_by_default():
    assert not TigerConfig().has_item_structure


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_by_steps_equals_teacher_forcing(name):
    """Follows random beams through random reorders, M differing by level."""
    rng = np.random.default_rng(0)
    params = params_of(name)
    init_decode, decode_step = make_decode_fns(Tiger(CONFIGS[name], LAYOUT))
    init_decode = jax.jit(init_decode)
    decode_step = jax.jit(decode_step, static_argnums=4)
    history = BATCH["encoder_input_tokens"]
    cache = init_decode(params, history)
    paths = np.zeros((4, 1, 0), np.int64)  # codewords of each beam so far
    codewords = parents = np.zeros((4, 1), np.int32)
    for level, next_beams in enumerate((6, 3, 9, 1)):
        step_logits, cache = decode_step(
            params, cache, jnp.array(codewords), jnp.array(parents), level
        )
        assert step_logits.shape == (*paths.shape[:2], LAYOUT.codebook_sizes[level])
        for beam in range(paths.shape[1]):
            codes = np.zeros((4, 4), np.int64)
            codes[:, :level] = paths[:, beam]
            inputs = np.concatenate(
                [np.zeros((4, 1), np.int32), LAYOUT.tokens_of(codes)[:, :-1]], 1
            )
            forced = LOGITS_FNS[name](params, history, jnp.array(inputs))[:, level]
            if name == "vocabulary":
                first = LAYOUT.level_offsets[level]
                forced = jax.nn.log_softmax(forced)[:, first:]
            forced = forced[:, : LAYOUT.codebook_sizes[level]]
            np.testing.assert_allclose(step_logits[:, beam], forced, atol=1e-5)
        parents = rng.integers(0, paths.shape[1], (4, next_beams), dtype=np.int32)
        codewords = rng.integers(
            0, LAYOUT.codebook_sizes[level], (4, next_beams), dtype=np.int32
        )
        chosen = np.take_along_axis(paths, parents[:, :, None], axis=1)
        paths = np.concatenate([chosen, codewords[:, :, None]], axis=2)


def test_an_encoder_of_items_has_one_position_per_item():
    """An encoder of items has one position per item and one for the user."""
    model = Tiger(CONFIGS["items"], LAYOUT)
    encoded, is_position = model.apply(
        {"params": params_of("items")},
        BATCH["encoder_input_tokens"],
        is_training=False,
        method="encode",
    )
    assert encoded.shape == (4, 11, 32)
    np.testing.assert_array_equal(is_position.sum(1), [11, 7, 4, 2])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_axis_of_every_option_has_a_sharding_rule(name):
    config = dataclasses.replace(
        CONFIGS[name], has_level_embeddings=True, has_item_context=True
    )
    boxed = jax.eval_shape(
        lambda: init_params(Tiger(config, LAYOUT), jax.random.key(0))
    )
    Partitioner().shardings_of(boxed)


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "float16"), ("output", "levels"), ("encoder_positions", "item")],
)
def test_a_misspelt_option_is_refused(field, value):
    # Past the annotations, which only tests check at every call.
    config = TigerConfig()
    vars(config)[field] = value
    with pytest.raises(InputError, match=f"TigerConfig.{field} is '{value}'"):
        config.__post_init__()
