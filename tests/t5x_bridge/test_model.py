"""Drives the classes as t5x does, without t5x."""

import functools

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze, unfreeze
from flax.linen.partitioning import AxisMetadata, get_axis_names
from jax.sharding import PartitionSpec
from small_workdir import make_workdir

from tasks.tiger import register_tiger_mixture, register_tiger_task
from tiger_jax.decoding.search import CatalogueWalk, score_catalogue
from tiger_jax.decoding.trie import Trie
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.batches import SeqioBatches, SeqioConfig
from tiger_jax.input_pipeline.microbatches import BucketConfig, BucketedBatches
from tiger_jax.input_pipeline.quiet_tensorflow import seqio
from tiger_jax.models.generator import init_params, make_decode_fns, make_loss_fn
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.models.two_level import TwoLevelConfig
from tiger_jax.t5x_bridge.model import T5xTiger
from tiger_jax.t5x_bridge.optimizer import make_optimizer_definition
from tiger_jax.training.optimizers import OptimizerConfig, make_optimizer
from tiger_jax.training.partitioning import MeshConfig, Partitioner
from tiger_jax.training.train_state import (
    init_train_state,
    split_seed,
    to_checkpoint_tree,
)
from tiger_jax.training.train_step import make_train_step

TASK, BATCH = "tiger_bridge", 16
CONFIG = TigerConfig(
    num_encoder_layers=1,
    num_decoder_layers=1,
    d_model=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
)
ADAFACTOR = OptimizerConfig(learning_rate=0.03, warmup_steps=5)
ADAMW = OptimizerConfig(
    name="adamw", schedule="cosine", learning_rate=0.01, warmup_steps=2, clip_norm=1.0
)
INPUT_SHAPES = {"encoder_input_tokens": (BATCH, 81), "decoder_input_tokens": (BATCH, 4)}


@pytest.fixture(scope="module", autouse=True)
def shop(tmp_path_factory):
    workdir = make_workdir(tmp_path_factory.mktemp("bridge") / "work")
    register_tiger_task(TASK, str(workdir), num_user_tokens=20)
    return seqio.TaskRegistry.get(TASK).source.shop


@pytest.fixture(scope="module")
def model(shop):
    return T5xTiger(TASK, CONFIG, num_beams=10)


@pytest.fixture(scope="module")
def variables(model):
    return model.get_initial_variables(jax.random.PRNGKey(1), INPUT_SHAPES)


@pytest.fixture(scope="module")
def batch(shop):
    return next(SeqioBatches(SeqioConfig(TASK, BATCH), seed=0))


def test_every_parameter_has_logical_axes_that_t5x_knows(variables):
    known = {"vocab", "embed", "mlp", "heads", "kv", "joined_kv", "relpos_buckets"}
    flat = jax.tree_util.tree_leaves_with_path(variables["params"])
    axes = jax.tree_util.tree_leaves_with_path(
        variables["params_axes"], is_leaf=lambda x: isinstance(x, AxisMetadata)
    )
    assert len(flat) == len(axes)
    for (path, leaf), (axes_path, metadata) in zip(flat, axes, strict=True):
        assert axes_path[-1].key == f"{path[-1].key}_axes"
        assert axes_path[:-1] == path[:-1]
        assert len(metadata.names) == leaf.ndim
        assert set(metadata.names) <= known | {None}


def test_parameters_are_those_of_our_own_engine(model, variables):
    ours = init_params(model.module, jax.random.key(1))
    for mine, theirs in zip(
        jax.tree.leaves(ours), jax.tree.leaves(variables["params"]), strict=True
    ):
        assert np.array_equal(mine, theirs)


def test_the_loss_is_the_mean_of_our_own(model, variables, batch):
    key = jax.random.PRNGKey(7)
    params = variables["params"]
    loss, metrics = jax.jit(model.loss_fn)(params, batch, key)
    loss_sum, sums = jax.jit(make_loss_fn(model.module))(params, batch, key)
    assert float(loss) == pytest.approx(float(loss_sum) / (BATCH * 4), rel=1e-6)
    assert isinstance(metrics["loss"], clu.metrics.Metric)
    assert float(metrics["loss"].compute()) == pytest.approx(float(loss), rel=1e-6)
    accuracy = float(sums["correct"] / sums["weight"])
    assert float(metrics["accuracy"].compute()) == pytest.approx(accuracy)
    merged = metrics["loss"].merge(metrics["loss"])
    assert float(merged.compute()) == pytest.approx(float(loss), rel=1e-6)
    assert jax.jit(model.loss_fn)(params, batch, jax.random.PRNGKey(8))[0] != loss
    evaluate = jax.jit(model.eval_fn)
    assert evaluate(params, batch)[0] == evaluate(params, batch)[0] != loss


def test_microbatches_add_up_to_the_whole_gradient(shop, variables, batch):
    """As t5x accumulates: the sum of the gradients of each microbatch's loss."""
    whole, quarters = T5xTiger(TASK, CONFIG), T5xTiger(TASK, CONFIG, num_microbatches=4)
    gradient = jax.jit(jax.grad(lambda p, b: whole.loss_fn(p, b, None)[0]))
    piece = jax.jit(jax.grad(lambda p, b: quarters.loss_fn(p, b, None)[0]))
    pieces = [
        piece(variables["params"], {k: v[i * 4 : i * 4 + 4] for k, v in batch.items()})
        for i in range(4)
    ]
    total = jax.tree.map(lambda *gs: sum(gs), *pieces)
    for one, other in zip(
        jax.tree.leaves(gradient(variables["params"], batch)),
        jax.tree.leaves(total),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_prediction_is_the_exact_search_of_the_catalogue(model, variables, batch, shop):
    params = variables["params"]
    best, aux = jax.jit(model.predict_batch_with_aux)(params, batch)
    init_decode, decode_step = make_decode_fns(model.module)
    codes = model._codes
    walk = CatalogueWalk.build(Trie.build(codes, shop.table.codebook_sizes))
    score = functools.partial(
        score_catalogue, init_decode=init_decode, decode_step=decode_step
    )
    scores = jax.jit(score)(params, batch["encoder_input_tokens"], walk)
    assert aux["beams"].shape == (BATCH, 10, 4)
    assert np.array_equal(best, aux["beams"][:, 0])
    # As many beams as items: nothing is pruned, so this is a sort of all scores.
    all_beams = T5xTiger(TASK, CONFIG, num_beams=60)
    _, aux = jax.jit(all_beams.predict_batch_with_aux)(params, batch)
    expected = np.sort(np.asarray(scores), axis=1)[:, ::-1]
    np.testing.assert_allclose(aux["scores"][:, :50], expected[:, :50], atol=1e-4)
    tokens = model.module.layout.tokens_of(codes)
    item_of = {tuple(row): item for item, row in enumerate(tokens.tolist())}
    for row in range(BATCH):
        items = [item_of[tuple(beam)] for beam in aux["beams"][row, :50].tolist()]
        assert len(set(items)) == 50
    assert (aux["beams"][:, 50:] == 0).all()
    assert (aux["scores"][:, 50:] == -np.inf).all()


def test_scores_are_the_searchs_log_probabilities(model, variables, batch):
    """Scores are the log-probabilities that the search reports."""
    params = variables["params"]
    _, aux = jax.jit(model.predict_batch_with_aux)(params, batch)
    targets = aux["beams"][:, 3]
    scored = {
        **jax.device_put(batch),
        "decoder_target_tokens": targets,
        "decoder_input_tokens": jnp.pad(targets[:, :-1], ((0, 0), (1, 0))),
    }
    scores = jax.jit(model.score_batch)(params, scored)
    np.testing.assert_allclose(scores, aux["scores"][:, 3], atol=1e-4)
    with pytest.raises(NotImplementedError):
        model.score_batch(params, scored, return_intermediates=True)


def test_a_mixture_is_searched_over_the_items_of_all_its_tasks(tmp_path, shop):
    other = make_workdir(tmp_path / "other", seed=1)
    register_tiger_task("tiger_other", str(other), num_user_tokens=20)
    register_tiger_mixture("tiger_bridged", {TASK: 1, "tiger_other": 1})
    both = T5xTiger("tiger_bridged", CONFIG)
    rows = {tuple(row) for row in shop.table.codes.tolist()}
    assert rows < {tuple(row) for row in both._codes.tolist()}


def _t5x_state(model, seed: int):
    """What t5x's FlaxOptimTrainState.create does with a model's variables."""
    init_rng, step_rng = jax.random.split(jax.random.PRNGKey(seed))
    initial = model.get_initial_variables(init_rng, INPUT_SHAPES)
    return model.optimizer_def.create(initial["params"]), step_rng


@pytest.mark.parametrize(
    ("config", "tolerance"),
    [
        pytest.param(ADAFACTOR, 1e-5, id="adafactor", marks=pytest.mark.slow),
        # Adam divides each gradient by its own size: where the exact gradient is 0,
        # the rounding of one engine's sums against the other's takes a full step.
        pytest.param(ADAMW, 2e-3, id="adamw", marks=pytest.mark.slow),
    ],
)
def test_both_engines_take_the_same_steps(shop, config, tolerance):
    """Losses agree over 30 steps, with dropout; equal checkpoints at the end."""
    model = T5xTiger(TASK, CONFIG, make_optimizer_definition(config, total_steps=30))
    optimizer, step_rng = _t5x_state(model, seed=3)

    @jax.jit
    def t5x_step(optimizer, batch, rng):
        gradient_fn = jax.value_and_grad(model.loss_fn, has_aux=True)
        rng = jax.random.fold_in(rng, optimizer.state.step)
        (loss, _), gradient = gradient_fn(optimizer.target, batch, rng)
        return optimizer.apply_gradient(gradient, learning_rate=123.0), loss

    stream = SeqioBatches(SeqioConfig(TASK, BATCH), seed=5)
    theirs = []
    for _ in range(30):
        optimizer, loss = t5x_step(optimizer, next(stream), step_rng)
        theirs.append(float(loss))

    tiger, transformation = model.module, make_optimizer(config, 30)
    partitioner = Partitioner(MeshConfig(), devices=jax.devices()[:1])
    init_key, key = split_seed(3)
    state = init_train_state(
        lambda k: init_params(tiger, k), transformation, partitioner, init_key
    )
    stream = SeqioBatches(SeqioConfig(TASK, BATCH), seed=5)
    updates = BucketedBatches(stream, BucketConfig(), max_length=stream.max_length)
    step = make_train_step(
        make_loss_fn(tiger),
        transformation,
        partitioner,
        jax.tree.map(lambda x: x.sharding, state),
        make_batch=updates.make_batch,
        num_buckets=1,
    )
    ours = []
    for _ in range(30):
        update = next(updates)
        arrays = jax.tree.map(lambda x: x[None], update.arrays)
        state, metrics = step(state, key, {}, arrays, update.buckets[None])
        ours.append(float(metrics["loss"][0]))
    np.testing.assert_allclose(ours[:8], theirs[:8], atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=tolerance)

    mine, yours = to_checkpoint_tree(state), optimizer.state_dict()
    assert jax.tree.structure(mine) == jax.tree.structure(unfreeze(yours))
    for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(yours), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("config", [ADAFACTOR, ADAMW], ids=["adafactor", "adamw"])
def test_optimizer_state_is_laid_out_with_its_parameters(variables, config):
    definition = make_optimizer_definition(config, total_steps=30)
    optimizer = jax.eval_shape(definition.create, variables["params"])
    names = get_axis_names(variables["params_axes"])
    axes = definition.derive_logical_axes(optimizer, names)
    assert axes.state.step is None
    flat_axes = jax.tree_util.tree_leaves_with_path(
        axes.state_dict(), is_leaf=lambda x: x is None or isinstance(x, PartitionSpec)
    )
    flat = jax.tree_util.tree_leaves_with_path(optimizer.state_dict())
    assert [path for path, _ in flat_axes] == [path for path, _ in flat]
    laid_out = 0
    for (path, leaf), (_, spec) in zip(flat, flat_axes, strict=True):
        if spec is not None:
            assert len(spec) == leaf.ndim, path
            laid_out += path[0].key == "state"
    assert laid_out >= len(jax.tree.leaves(variables["params"])) // 2
    # As t5x's partitioner does: names to mesh axes, and back into the same form.
    again = axes.restore_state(axes.state_dict())
    assert jax.tree.structure(again) == jax.tree.structure(axes)


def test_a_state_dict_restores(variables):
    definition = make_optimizer_definition(ADAMW, total_steps=30)
    optimizer = definition.create(variables["params"])
    ones = jax.tree.map(jnp.ones_like, optimizer.target)
    moved = optimizer.apply_gradient(ones)
    restored = optimizer.restore_state(moved.state_dict())
    assert jax.tree.structure(restored) == jax.tree.structure(moved)
    for one, other in zip(
        jax.tree.leaves(restored), jax.tree.leaves(moved), strict=True
    ):
        assert np.array_equal(one, other)
    assert int(restored.state.step) == 1


def test_clipping_and_decay_see_frozen_parameters_as_plain_ones(variables):
    """t5x's parameters are frozen dictionaries; names decide what is decayed."""
    config = OptimizerConfig(
        name="adamw", schedule="constant", warmup_steps=0, weight_decay=0.5
    )
    definition = make_optimizer_definition(config)
    plain = unfreeze(variables["params"])
    gradient = jax.tree.map(jnp.zeros_like, plain)
    frozen = definition.create(freeze(plain)).apply_gradient(freeze(gradient))
    transformation = make_optimizer(config)
    updates, _ = transformation.update(gradient, transformation.init(plain), plain)
    moved = optax.apply_updates(plain, updates)
    for one, other in zip(
        jax.tree.leaves(frozen.target), jax.tree.leaves(moved), strict=True
    ):
        assert np.array_equal(one, other)
    before, after = (tree["encoder"]["block_0"]["mlp"]["wi"] for tree in (plain, moved))
    assert not np.array_equal(before, after)
    assert np.array_equal(plain["token_embeddings"], moved["token_embeddings"])


@pytest.fixture(scope="module")
def whole(shop):
    """The two-level model on a task of whole histories."""
    task = register_tiger_task(
        "tiger_bridge_whole",
        str(shop.workdir),
        num_user_tokens=0,
        whole_histories=True,
    )
    config = TwoLevelConfig(
        num_layers=1, num_depth_layers=1, d_model=16, num_heads=2, mlp_dim=32
    )
    model = T5xTiger(task, config, num_beams=10)
    variables = model.get_initial_variables(jax.random.PRNGKey(1), INPUT_SHAPES)
    return model, variables["params"], SeqioBatches(SeqioConfig(task, BATCH), seed=0)


def test_t5x_trains_the_two_level_model_on_whole_histories(whole):
    """A batch of histories loses what each of their prefixes loses alone."""
    model, params, stream = whole
    batch = next(stream)
    assert batch["decoder_target_tokens"].shape == (BATCH, 80)
    batch = {name: array[:3] for name, array in batch.items()}
    loss, metrics = jax.jit(model.eval_fn)(params, batch)
    prefixes: dict[str, list] = {name: [] for name in batch}
    for row in range(3):
        inputs = batch["encoder_input_tokens"][row]
        wanted = batch["decoder_target_tokens"][row].reshape(20, 4)
        for place in np.flatnonzero(wanted[:, 0]):
            own = np.where(np.arange(80) < 4 * (place + 1), inputs, 0)
            prefixes["encoder_input_tokens"].append(own)
            prefixes["decoder_target_tokens"].append(wanted[place])
            before = np.pad(wanted[place, :-1], (1, 0))
            prefixes["decoder_input_tokens"].append(before)
            prefixes["decoder_loss_weights"].append(np.ones(4, np.int32))
    rows = {name: np.stack(arrays) for name, arrays in prefixes.items()}
    alone, _ = jax.jit(model.eval_fn)(params, rows)
    np.testing.assert_allclose(loss, alone, rtol=1e-5)
    assert float(metrics["loss"].count) == 4 * len(rows["decoder_target_tokens"])


def test_buckets_cut_both_sides_of_whole_histories(whole):
    model, params, stream = whole
    config = BucketConfig(microbatch_size=4, lengths=(8, 24, 48))
    examples = BucketedBatches(stream, config, max_length=stream.max_length)
    update = next(examples)
    loss_fn = jax.jit(lambda batch: model.loss_fn(params, batch, None)[1])
    for number, bucket in enumerate(update.buckets):
        arrays = {name: x[number] for name, x in update.arrays.items()}
        cut = examples.make_batch({}, arrays, int(bucket))
        length = examples.buckets[bucket]
        assert {x.shape[1] for x in cut.values()} == {length}
        np.testing.assert_allclose(
            loss_fn(cut)["loss"].total, loss_fn(arrays)["loss"].total, rtol=1e-5
        )


def test_content_vectors_are_those_of_one_work_directory(tmp_path, shop):
    config = TwoLevelConfig(reads_content=True)
    with pytest.raises(InputError, match="run --stage=embed_items"):
        T5xTiger(TASK, config)
    other = make_workdir(tmp_path / "other", seed=1)
    register_tiger_task("tiger_third", str(other), num_user_tokens=20)
    register_tiger_mixture("tiger_mixed", {TASK: 1, "tiger_third": 1})
    with pytest.raises(InputError, match="turn reads_content and dense_head off"):
        T5xTiger("tiger_mixed", config)
