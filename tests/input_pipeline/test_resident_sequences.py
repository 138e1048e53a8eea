"""Windows of histories: every target once, and the same stream after a restart."""

import jax
import numpy as np
import pytest
from small_workdir import small_histories

from tiger_jax.errors import InputError
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline.resident_sequences import (
    ResidentSequences,
    SequenceConfig,
)

HISTORIES = small_histories()
CONFIG = SequenceConfig(batch_size=12, microbatch_size=4, bucket_items=(3, 6))
MAX_ITEMS = 9


def _stream(**settings):
    return ResidentSequences(HISTORIES, CONFIG, max_items=MAX_ITEMS, seed=1, **settings)


def _windows(stream, update):
    make_batch = jax.jit(stream.make_batch, static_argnums=2)
    for arrays, bucket in zip(_rows(update.arrays), update.buckets, strict=True):
        batch = make_batch(stream.constants, arrays, int(bucket))
        assert batch["items"].shape[1] == stream.buckets[bucket] + 1
        yield from (row[row >= 0].tolist() for row in np.asarray(batch["items"]))


def _rows(arrays):
    count = len(arrays["first"])
    return [jax.tree.map(lambda x, i=i: x[i], arrays) for i in range(count)]


def _all_pairs(histories):
    return sorted(
        pair
        for user in range(histories.num_users)
        for pair in zip(
            histories.of(user)[:-1].tolist(),
            histories.of(user)[1:].tolist(),
            strict=True,
        )
    )


def test_an_epoch_has_every_target_once():
    """An epoch has every target once, behind the item before it."""
    stream = _stream()
    windows = []
    while len(windows) < stream.num_examples:
        windows += _windows(stream, next(stream))
    # The last update has begun the next epoch.
    drawn = stream._drawn
    assert drawn == len(windows)
    epoch = sorted(map(tuple, _epoch(stream)))
    pairs = sorted(p for w in epoch for p in zip(w[:-1], w[1:], strict=True))
    assert pairs == _all_pairs(HISTORIES)
    assert max(map(len, epoch)) == MAX_ITEMS + 1
    assert stream.num_targets == len(pairs) == sum(len(w) - 1 for w in epoch)
    assert set(map(tuple, windows)) == set(epoch)


def test_a_target_alone_comes_with_the_items_before_it():
    stream = _stream(only_last=True)
    expected = [
        tuple(HISTORIES.of(user)[max(0, end - MAX_ITEMS) : end + 1].tolist())
        for user in range(HISTORIES.num_users)
        for end in range(1, len(HISTORIES.of(user)))
    ]
    assert sorted(map(tuple, _epoch(stream))) == sorted(expected)
    assert stream.num_targets == stream.num_examples == len(expected)
    drawn = [tuple(window) for window in _windows(stream, next(stream))]
    assert len(drawn) == CONFIG.batch_size
    assert set(drawn) <= set(expected)


def _epoch(stream):
    for first, targets in zip(*stream._examples.values(), strict=True):
        yield HISTORIES.items[first : first + targets + 1].tolist()


def test_a_restored_stream_goes_on_where_it_stood(tmp_path):
    stream = _stream()
    next(stream)
    stream.save(tmp_path)
    expected = next(stream)
    again = _stream()
    again.restore(tmp_path)
    found = next(again)
    np.testing.assert_array_equal(found.arrays["first"], expected.arrays["first"])
    np.testing.assert_array_equal(found.buckets, expected.buckets)
    other = ResidentSequences(HISTORIES, CONFIG, max_items=5, seed=1)
    with pytest.raises(InputError, match="other training examples"):
        other.restore(tmp_path)


def test_histories_without_a_target_are_refused():
    with pytest.raises(InputError, match="nothing to predict"):
        ResidentSequences(Histories.from_lists([[1], []]), CONFIG, max_items=3)
