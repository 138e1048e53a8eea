import jax.numpy as jnp
import numpy as np
import pytest
from decoding_cases import (
    CAPACITY,
    KINDS,
    SHAPES,
    assert_same,
    draw_case,
    found_items,
    plan_of,
    search,
)
from decoding_reference import (
    Reference,
    make_tables,
    random_codes,
)
from hypothesis import given
from hypothesis import strategies as st

from tiger_jax.decoding.trie import Trie

REQUESTS = 24
requests = jnp.arange(REQUESTS, dtype=jnp.int32)


def check_sweep(shape, kind, num_beams, normalize, num_catalogues, seed=0):
    """Compares `REQUESTS` searches in each of some catalogues with the dictionary."""
    rng = np.random.default_rng([seed, num_beams, len(SHAPES[shape])])
    for catalogue in range(num_catalogues):
        # With eighths as logits, sums are exact and ties are everywhere.
        step = 0.125 if normalize == "given" else None
        trie, codes, tables = draw_case(rng, shape, kind, step=step)
        result = search(
            tables, requests, trie, num_beams=num_beams, normalize=normalize
        )
        reference = Reference(codes, tables, normalize)
        for row in range(REQUESTS):
            found = found_items(result, row)
            assert_same(found, reference.search(row, num_beams))
            if num_beams >= CAPACITY:  # no level has more nodes than beams
                assert_same(found, reference.exhaustive(row, num_beams))
        assert len(found) == min(num_beams, len(codes)), catalogue


@pytest.mark.parametrize(
    ("shape", "kind", "num_beams", "normalize"),
    [
        ("wide", "bitset", 16, "given"),
        ("four", "csr", 4, "given"),
        ("narrow_wide", "bitmap", 100, "level"),
        ("eight", "mixed", 7, "children"),
    ],
)
def test_beams_are_those_of_a_dictionary(shape, kind, num_beams, normalize):
    check_sweep(shape, kind, num_beams, normalize, num_catalogues=4)


SWEEP = [
    (shape, kind, (1, 4, 16, 100)[(i + j + k) % 4], normalize)
    for i, shape in enumerate(SHAPES)
    for j, kind in enumerate([*KINDS, "mixed"])
    for k, normalize in enumerate(("given", "level", "children"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "kind", "num_beams", "normalize"), SWEEP)
def test_beams_are_those_of_a_dictionary_in_13824_cases(
    shape, kind, num_beams, normalize
):
    check_sweep(shape, kind, num_beams, normalize, num_catalogues=8, seed=1)


@given(
    seed=st.integers(0, 2**32 - 1),
    num_items=st.integers(1, CAPACITY),
    skew=st.booleans(),
    step=st.sampled_from([0.5, 2.0]),
)
def test_beams_are_those_of_a_dictionary_whatever_ties(seed, num_items, skew, step):
    rng = np.random.default_rng(seed)
    codes = random_codes(rng, SHAPES["wide"], num_items, skew=skew)
    tables = make_tables(rng, SHAPES["wide"], step=step)
    trie = Trie.build(codes, SHAPES["wide"], plan=plan_of("wide", "bitset"))
    result = search(tables, requests, trie, num_beams=16, normalize="given")
    reference = Reference(codes, tables, "given")
    for row in range(0, REQUESTS, 6):
        assert_same(found_items(result, row), reference.search(row, 16))
