import numpy as np
import pytest

from tiger_jax.decoding.trie import prefixes, sort_prefixes
from tiger_jax.errors import InputError


@pytest.mark.parametrize("sizes", [(3,) * 8, (4096,) * 8, (256,) * 8, (5, 4096, 7)])
@pytest.mark.parametrize("num_items", [1, 500, 300_000])
def test_prefixes_are_in_lexicographic_order(sizes, num_items):
    rng = np.random.default_rng(0)
    # Few distinct leading codewords, so that ties last through several rounds.
    spread = [min(size, 6 + level) for level, size in enumerate(sizes)]
    codes = rng.integers(0, spread, (num_items, len(sizes))).astype(np.int32)
    codes = np.unique(codes, axis=0)
    codes = codes[rng.permutation(len(codes))]
    check_sorted(codes, sizes)


def check_sorted(codes, sizes):
    found = sort_prefixes(codes, sizes)
    order = np.lexsort(codes.T[::-1])
    np.testing.assert_array_equal(found.order, order)
    by_id = codes[order]
    for level in range(len(sizes)):
        nodes, where = np.unique(by_id[:, : level + 1], axis=0, return_index=True)
        np.testing.assert_array_equal(found.tokens[level], nodes[:, -1])
        starts = np.unique(by_id[where, :level], axis=0, return_index=True)[1]
        np.testing.assert_array_equal(found.first[level], starts if level else [0])
    is_new = np.ones((len(codes), len(sizes)), bool)
    is_new[1:] = by_id[1:] != by_id[:-1]
    np.testing.assert_array_equal(found.first_difference[1:], is_new.argmax(1)[1:])


@pytest.mark.parametrize(
    "sizes", [(1, 4, 1), (65536, 3, 65536, 2, 65536, 9), (300,) * 12, (7,) * 30]
)
@pytest.mark.parametrize("spread", [2, 5, 1 << 16])
def test_blocks_and_ranges_join(sizes, spread, monkeypatch):
    monkeypatch.setattr(prefixes, "_BLOCK", 64)
    monkeypatch.setattr(prefixes, "_SAMPLE", 32)
    rng = np.random.default_rng(1)
    bounds = np.minimum(sizes, spread)
    for num_items in (2, 63, 64, 65, 1000):
        drawn = rng.integers(0, bounds, (num_items, len(sizes)))
        codes = np.unique(drawn.astype(np.uint16), axis=0)
        check_sorted(codes[rng.permutation(len(codes))], sizes)
        twice = np.concatenate([codes, codes[-1:]])
        with pytest.raises(InputError, match=f"{len(codes) - 1} and {len(codes)} sha"):
            sort_prefixes(twice, sizes)


def test_more_ties_than_16_bits_count_are_broken():
    rng = np.random.default_rng(2)
    leading = rng.integers(0, 1 << 32, 100_000, dtype=np.uint64) << np.uint64(32)
    word = np.concatenate([leading | np.uint64(1 << 20), leading, leading])
    rows = prefixes._order_of([word], num_digits=4)
    np.testing.assert_array_equal(rows, np.argsort(word, kind="stable"))
