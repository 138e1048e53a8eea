"""Items found again by their tokens, and the content that a loss then sees."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_workdir import small_table
from trained_workdir import TINY_TWO_LEVEL, make_trained_workdir

from tasks.tiger import register_tiger_task
from tiger_jax.data.prepared import PreparedData
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline import item_content
from tiger_jax.input_pipeline.batches import SeqioBatches, SeqioConfig
from tiger_jax.input_pipeline.item_content import SpelledItems, add_content
from tiger_jax.input_pipeline.microbatches import BucketConfig, BucketedBatches
from tiger_jax.input_pipeline.packed_histories import PackedConfig, PackedHistories
from tiger_jax.input_pipeline.quiet_tensorflow import seqio
from tiger_jax.models.generator import make_loss_fn
from tiger_jax.recommending.trained_model import load_content, load_recommender
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.t5x_bridge.model import T5xTiger


@pytest.mark.parametrize("count", [1, 2, 50])
def test_items_are_found_by_their_tokens(count):
    table = small_table(count, 0)
    layout = TokenLayout(table.codebook_sizes, 0)
    content = np.arange(count, dtype=np.float32)[:, None]
    items = SpelledItems.of(table.codes, layout, content, np.ones(count, int))
    tokens = jnp.asarray(layout.tokens_of(table.codes))
    np.testing.assert_array_equal(jax.jit(items.find)(tokens), np.arange(count))
    largest = np.array(layout.codebook_sizes) - 1
    for none in (np.zeros_like(tokens[:1]), layout.tokens_of(largest[None])):
        if (none != tokens).any(1).all():
            assert items.find(jnp.asarray(none)).tolist() == [-1]


def test_a_stream_has_the_loss_of_packed_histories(tmp_path):
    """The codewords' and the dense head's, each over an epoch of all histories."""
    workdir = make_trained_workdir(
        tmp_path / "work", model=TINY_TWO_LEVEL, num_user_tokens=0
    )
    data = PreparedData.load(workdir / "data")
    table = SemanticIdTable.load(workdir / "semantic_ids")
    content = load_content(workdir, data.num_items)
    _, layout, model, params = load_recommender(workdir / "recommender")
    task = register_tiger_task(
        "tiger_content",
        str(workdir),
        num_user_tokens=0,
        num_items=8,
        whole_histories=True,
    )
    count = seqio.get_mixture_or_task(task).source.num_pairs("train")
    stream = SeqioBatches(SeqioConfig(task, count, max_items=8), seed=0)
    streamed = BucketedBatches(
        stream,
        BucketConfig(),
        max_length=stream.max_length,
        items=SpelledItems.of(table.codes, layout, content, data.occurrences),
        ranks_items=True,
    )
    packed = PackedHistories(
        data.train,
        table.codes,
        layout,
        PackedConfig(batch_size=1, microbatch_size=1, max_items=8, repeated_items=0),
        content=content,
        ranks_items=True,
    )
    loss_fn = make_loss_fn(model)

    def mean_losses(examples):
        """Over an epoch."""
        constants = jax.tree.map(jnp.asarray, examples.constants)

        @jax.jit
        def sums_of(arrays):
            return loss_fn(params, examples.make_batch(constants, arrays, 0), None)[1]

        sums, seen = collections.Counter(), 0
        while seen < count:
            update = next(examples)
            seen += update.num_examples
            sums.update(sums_of({name: x[0] for name, x in update.arrays.items()}))
        return {name: float(sums[name] / sums["weight"]) for name in sums}

    ours, theirs = mean_losses(streamed), mean_losses(packed)
    assert ours["item_nll"] > 0
    assert ours == pytest.approx(theirs, rel=1e-4)
    batch = next(stream)
    loss, _ = jax.jit(T5xTiger(task, model.config).eval_fn)(params, batch)
    assert float(loss) == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.parametrize("form", ["packed", "streamed"])
def test_items_without_interactions_are_no_negatives(form):
    """As one of every target, such an item would learn to be ranked last."""
    histories = Histories.from_lists([[0, 2], [2, 5, 0]])
    table = small_table(6, 0)
    layout = TokenLayout(table.codebook_sizes, 0)
    content = np.eye(6, dtype=np.float32)
    if form == "packed":
        config = PackedConfig(1, 1, max_items=2, repeated_items=0)
        given = {"content": content, "ranks_items": True}
        input = PackedHistories(histories, table.codes, layout, config, **given)
        constants = jax.tree.map(jnp.asarray, input.constants)
        batch = input.make_batch(constants, one_row(next(input)), 0)
    else:
        occurrences = np.bincount(histories.items, minlength=6)
        items = SpelledItems.of(table.codes, layout, content, occurrences)
        tokens = jnp.asarray(layout.tokens_of(table.codes[[0]]))
        names = "encoder_input_tokens", "decoder_target_tokens"
        batch = items.add_to(dict.fromkeys(names, tokens), ranks_items=True)
    assert batch["ranked_items"].tolist() == [0, 2, 5]
    np.testing.assert_array_equal(batch["ranked_content"], content[[0, 2, 5]])
    assert batch["log_share"] == 0


def one_row(update):
    return {name: jnp.asarray(array[0]) for name, array in update.arrays.items()}


def test_of_very_many_items_an_even_share_is_ranked(monkeypatch):
    monkeypatch.setattr(item_content, "MAX_RANKED_ITEMS", 2)
    items = jnp.array([[4]]), jnp.array([[1]])
    batch = add_content({}, *items, jnp.eye(6), jnp.array([0, 2, 5]))
    assert batch["ranked_items"].tolist() == [2, 5]  # from the 4th on, of three
    assert batch["log_share"] == pytest.approx(np.log(3 / 2))
