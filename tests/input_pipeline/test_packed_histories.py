"""Packed histories: every target once an epoch, and no row that leaks into another."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiger_jax.errors import InputError
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline.packed_histories import PackedConfig, PackedHistories
from tiger_jax.models.generator import init_params, make_loss_fn
from tiger_jax.models.two_level import TwoLevelConfig
from tiger_jax.semantic_ids.token_ids import TokenLayout

LAYOUT = TokenLayout((6, 5, 4))
NUM_ITEMS, WIDTH, ROWS = 40, 8, 4
CODES = np.stack(np.unravel_index(np.arange(NUM_ITEMS), (6, 5, 4)), -1).astype(np.int32)
RNG = np.random.default_rng(0)
LISTS = [RNG.integers(0, NUM_ITEMS, n).tolist() for n in (1, 2, 3, 30, 9, 5, 8, 2, 17)]
HISTORIES = Histories.from_lists(LISTS)
CONFIG = PackedConfig(
    batch_size=ROWS, microbatch_size=2, max_items=WIDTH, repeated_items=3
)


def open_input(**options):
    return PackedHistories(HISTORIES, CODES, LAYOUT, CONFIG, **options)


def batches_of(update, examples):
    for number in range(len(update.buckets)):
        arrays = {name: jnp.asarray(x[number]) for name, x in update.arrays.items()}
        constants = jax.tree.map(jnp.asarray, examples.constants)
        yield examples.make_batch(constants, arrays, 0)


def pairs_of(batch):
    """(window's items so far, target) at each position that has a target."""
    item_of = {tuple(t): i for i, t in enumerate(LAYOUT.tokens_of(CODES).tolist())}
    shape = (*batch["windows"].shape, LAYOUT.semantic_id_length)
    read = np.asarray(batch["encoder_input_tokens"]).reshape(shape)
    wanted = np.asarray(batch["decoder_target_tokens"]).reshape(shape)
    windows = np.asarray(batch["windows"])
    for row, place in zip(*np.nonzero(wanted[..., 0]), strict=True):
        own = np.flatnonzero(windows[row, : place + 1] == windows[row, place])
        seen = [item_of[tuple(read[row, at])] for at in own]
        yield tuple(seen), item_of[tuple(wanted[row, place])]


def test_an_epoch_has_every_target_once_after_its_own_history():
    examples, found = open_input(), []
    while examples.epochs < 1:
        update = next(examples)
        for batch in batches_of(update, examples):
            found += list(pairs_of(batch))
    found = found[: sum(len(h) - 1 for h in LISTS)]  # the last update goes on
    expected = [(h[at - 1], h[at]) for h in LISTS for at in range(1, len(h))]
    assert sorted((seen[-1], target) for seen, target in found) == sorted(expected)
    for seen, target in found:  # what was seen stands before the target in one history
        ended = [
            h[at - len(seen) : at]
            for h in LISTS
            for at in range(1, len(h))
            if h[at] == target and at >= len(seen)
        ]
        assert list(seen) in ended
    assert min(len(seen) for seen, _ in found[-5:]) >= 1


def test_a_window_that_goes_on_repeats_the_items_before():
    examples = open_input()
    windows = examples._examples
    later = windows["repeated"] > 0
    assert later.sum() == 5 + 2  # of 29 and of 16 targets: 8, then 5 at a time
    assert (windows["length"] - windows["repeated"]).sum() == sum(
        len(h) - 1 for h in LISTS
    )


def test_rows_are_nearly_full():
    lists = [RNG.integers(0, NUM_ITEMS, n).tolist() for n in RNG.integers(2, 8, 500)]
    examples = PackedHistories(Histories.from_lists(lists), CODES, LAYOUT, CONFIG)
    updates = [next(examples) for _ in range(10)]
    assert np.mean([u.arrays["window"] > 0 for u in updates]) > 0.95


def test_it_goes_on_where_it_was(tmp_path):
    first = open_input(seed=3)
    for _ in range(3):
        next(first)
    first.save(tmp_path)
    expected = [next(first) for _ in range(4)]  # over the end of an epoch
    again = open_input(seed=3)
    again.restore(tmp_path)
    for update in expected:
        for name, array in next(again).arrays.items():
            np.testing.assert_array_equal(array, update.arrays[name])


def test_a_packed_row_loses_what_its_histories_lose_alone():
    config = TwoLevelConfig(d_model=16, num_heads=2, mlp_dim=24, max_distance=6)
    model = config.build(LAYOUT)
    params = nn.unbox(init_params(model, jax.random.key(1)))
    bias = jax.random.normal(jax.random.key(2), (2, 6))
    params["block_0"]["distance_bias"] = bias  # it starts as zeros
    loss_fn, examples = jax.jit(make_loss_fn(model)), open_input()
    (batch, _) = batches_of(next(examples), examples)
    packed, sums = loss_fn(params, batch, None)
    alone, tokens = 0.0, LAYOUT.tokens_of(CODES)
    pairs = list(pairs_of(batch))
    for seen, target in pairs:
        wanted = tokens[[target]]
        read = tokens[list(seen)].reshape(1, -1)
        one = {  # padded, so that all have one shape
            "encoder_input_tokens": np.pad(
                read, ((0, 0), (0, WIDTH * tokens.shape[1] - read.shape[1]))
            ),
            "decoder_input_tokens": np.pad(wanted[:, :-1], ((0, 0), (1, 0))),
            "decoder_target_tokens": wanted,
            "decoder_loss_weights": np.ones_like(wanted),
        }
        alone += float(loss_fn(params, jax.tree.map(jnp.asarray, one), None)[0])
    np.testing.assert_allclose(packed, alone, rtol=1e-4)
    assert float(sums["weight"]) == 3 * len(pairs)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="repeated_items = 9 must be less than"):
        PackedConfig(max_items=9, repeated_items=9)
    with pytest.raises(InputError, match="multiple of microbatch_size"):
        PackedConfig(batch_size=9, microbatch_size=4)
    with pytest.raises(InputError, match="nothing to predict"):
        PackedHistories(Histories.from_lists([[1], [2]]), CODES, LAYOUT, CONFIG)
