"""Random catalogues on fixed plans, so that few searches have to be compiled."""

import functools
import itertools

import jax
import numpy as np
from decoding_reference import (
    chain_codes,
    decode_step,
    init_decode,
    make_tables,
    random_codes,
)

from tiger_jax.decoding.search import beam_search
from tiger_jax.decoding.trie import Trie, make_plan, worst_case

CAPACITY = 60
# Codebooks of T = 1 to 8 levels; some wider than a word of 32 bits, none a multiple.
SHAPES = {
    "one_level": (50,),
    "square": (5, 5),
    "wide": (70, 33, 5),
    "narrow_wide": (3, 40, 2),
    "four": (8, 8, 4, 2),
    "eight": (3, 2, 4, 2, 3, 2, 2, 3),
}
KINDS = ("csr", "bitset", "bitmap")

search = jax.jit(
    functools.partial(beam_search, init_decode=init_decode, decode_step=decode_step),
    static_argnames=("num_beams", "normalize", "num_unseen_beams"),
)


@functools.cache
def plan_of(shape, kind, capacity=CAPACITY):
    """A plan for any catalogue of the capacity; "mixed" takes the kinds in turn."""
    sizes = SHAPES[shape]
    kinds = [kind] * len(sizes)
    if kind == "mixed":
        kinds = [KINDS[level % 3] for level in range(len(sizes))]
    return make_plan(worst_case(sizes, capacity), kinds=kinds)


def draw_codes(rng, shape):
    """A uniform, skewed or chain-like catalogue of 1 to CAPACITY items."""
    sizes = SHAPES[shape]
    style = rng.integers(3)
    num_items = int(rng.integers(1, min(CAPACITY, np.prod(sizes)) + 1))
    if style == 2 and len(sizes) > 2:
        return chain_codes(rng, sizes, num_items)
    return random_codes(rng, sizes, num_items, skew=style == 1)


def draw_case(rng, shape, kind, *, step=None, **options):
    """A trie, its Semantic IDs, and the model's tables."""
    codes = draw_codes(rng, shape)
    plan = plan_of(shape, kind)
    trie = Trie.build(codes, SHAPES[shape], plan=plan, **options)
    return trie, codes, make_tables(rng, SHAPES[shape], step=step)


def found_items(result, row):
    """(item, score) pairs of one request, without the padding."""
    items, scores = (np.asarray(part)[row] for part in result)
    count = int((items >= 0).sum())
    assert (items[count:] == -1).all(), "padding comes last"
    assert (scores[count:] == -np.inf).all()
    assert np.isfinite(scores[:count]).all()
    return list(zip(items[:count].tolist(), scores[:count].tolist(), strict=True))


def assert_same(found, expected):
    """The same items in the same order, with scores within 1e-5.

    Where float32 tells apart what is nearly or exactly a tie in the reference's
    float64, the float32 scores decide; what ties in both stands in its one order.
    """
    rank = {item: place for place, (item, _) in enumerate(expected)}
    exact = dict(expected)
    assert set(rank) == {item for item, _ in found}
    np.testing.assert_allclose(
        [score for _, score in found], [exact[item] for item, _ in found], atol=1e-5
    )
    for (first, high), (second, low) in itertools.pairwise(found):
        is_rounding = high > low and abs(exact[first] - exact[second]) < 2e-6
        assert rank[first] < rank[second] or is_rounding, (first, second)
