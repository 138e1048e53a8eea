"""Exclusion, filters, prefixes, cold-start groups: searches among what they leave."""

import jax.numpy as jnp
import numpy as np
import pytest
from decoding_cases import (
    SHAPES,
    assert_same,
    draw_codes,
    found_items,
    plan_of,
    search,
)
from decoding_reference import Reference, make_tables

from tiger_jax.decoding.trie import Trie, make_plan, worst_case
from tiger_jax.errors import InputError

REQUESTS = 16
NUM_BEAMS = 9
NUM_UNSEEN = 3
NUM_EXCLUDED = 40
requests = jnp.arange(REQUESTS, dtype=jnp.int32)


def draw_exclusions(rng, num_items):
    """From nothing to everything excluded, with repeats, padding and non-items."""
    exclude = rng.integers(0, num_items, (REQUESTS, NUM_EXCLUDED))
    share = np.linspace(0, 1, REQUESTS)[:, None]
    exclude[rng.random(exclude.shape) > share] = -1
    exclude[0, :2] = [num_items, 10**6]
    # The last request excludes all it can of a small catalogue.
    exclude[-1] = rng.permutation(np.arange(NUM_EXCLUDED) % num_items)
    return exclude.astype(np.int32)


def draw_prefixes(rng, codes):
    """Beginnings of items' Semantic IDs, of every length, and one of no item."""
    prefix = codes[rng.integers(0, len(codes), REQUESTS)].copy()
    length = rng.integers(0, codes.shape[1] + 1, REQUESTS)
    prefix[np.arange(codes.shape[1])[None, :] >= length[:, None]] = -1
    return prefix.astype(np.int32)


def check(shape, kind, abilities, *, normalize="given", num_catalogues=4, seed=0):
    rng = np.random.default_rng([seed, len(abilities), len(SHAPES[shape])])
    step = 0.125 if normalize == "given" else None
    for _ in range(num_catalogues):
        codes = draw_codes(rng, shape)
        num_items = len(codes)
        tables = make_tables(rng, SHAPES[shape], step=step)
        bits = (1 << rng.integers(0, 4, num_items)).astype(np.uint32)
        bits[rng.random(num_items) < 0.2] = 0
        unseen = rng.random(num_items) < 0.3
        trie = Trie.build(
            codes,
            SHAPES[shape],
            plan=plan_of(shape, kind),
            attributes=bits if "allowed" in abilities else None,
            unseen=unseen if "unseen" in abilities else None,
        )
        exclude = draw_exclusions(rng, num_items)
        allowed = rng.integers(0, 16, REQUESTS).astype(np.uint32)
        prefix = draw_prefixes(rng, codes)
        arrays = {"exclude": exclude, "allowed": allowed, "prefix": prefix}
        options = {
            name: jnp.asarray(array)
            for name, array in arrays.items()
            if name in abilities
        }
        num_unseen = NUM_UNSEEN if "unseen" in abilities else 0
        result = search(
            tables,
            requests,
            trie,
            num_beams=NUM_BEAMS,
            normalize=normalize,
            num_unseen_beams=num_unseen,
            **options,
        )
        reference = Reference(codes, tables, normalize)
        for row in range(REQUESTS):
            left = set(range(num_items))
            if "exclude" in abilities:
                left -= set(exclude[row].tolist())
            if "allowed" in abilities:
                left &= set(np.flatnonzero(bits & allowed[row]).tolist())
            if "prefix" in abilities:
                wanted = prefix[row]
                fits = ((wanted < 0) | (codes == wanted)).all(axis=1)
                left &= set(np.flatnonzero(fits).tolist())
            cold = {item for item in left if unseen[item]}
            if num_unseen:
                groups = [(left - cold, NUM_BEAMS - NUM_UNSEEN), (cold, NUM_UNSEEN)]
            else:
                groups = [(left, NUM_BEAMS)]
            expected = []
            for items, beams in groups:
                expected += reference.search(row, beams, sorted(items))
            expected.sort(key=lambda p: (-round(p[1], 9), reference.codes[p[0]]))
            assert_same(found_items(result, row), expected)


@pytest.mark.parametrize(
    ("shape", "kind", "abilities"),
    [
        ("four", "mixed", ["exclude"]),
        ("wide", "bitmap", ["allowed"]),
        ("four", "csr", ["unseen"]),
        ("wide", "mixed", ["exclude", "allowed", "prefix", "unseen"]),
    ],
)
def test_a_restricted_search_is_a_search_among_what_is_left(shape, kind, abilities):
    check(shape, kind, abilities)


@pytest.mark.slow
@pytest.mark.parametrize("normalize", ["given", "children"])
@pytest.mark.parametrize("kind", ["csr", "bitset", "bitmap"])
@pytest.mark.parametrize("shape", ["four", "wide", "eight"])
@pytest.mark.parametrize(
    "abilities",
    [
        ["exclude"],
        ["allowed"],
        ["prefix"],
        ["unseen"],
        ["exclude", "allowed"],
        ["exclude", "allowed", "prefix", "unseen"],
    ],
)
def test_a_restricted_search_is_a_search_among_the_rest(
    shape, kind, abilities, normalize
):
    """A restricted search is a search among what is left, in 13,824 cases."""
    check(shape, kind, abilities, normalize=normalize, num_catalogues=8, seed=1)


def test_an_ancestor_dies_with_its_last_item():
    # Three items under (0,), one under (1,).
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    tables = make_tables(np.random.default_rng(0), (2, 2, 2))
    plan = make_plan(worst_case((2, 2, 2), 6))
    trie = Trie.build(codes, (2, 2, 2), plan=plan)
    exclude = jnp.array([[0, 1, 0, -1], [2, 1, 0, -1], [3, -1, -1, 9]], jnp.int32)
    result = search(tables, requests[:3], trie, num_beams=1, exclude=exclude)
    first = result.item_numbers[:, 0].tolist()
    assert first[0] in (2, 3), "(0, 0) is dead, (0,) is not"
    assert first[1] == 3, "(0,) is dead"
    assert first[2] in (0, 1, 2), "(1,) is dead; 9 is no item"


def test_asking_for_what_a_trie_has_not_is_an_error():
    codes = np.array([[0, 1], [1, 0]])
    tables = make_tables(np.random.default_rng(0), (2, 2))
    bare = Trie.build(codes, (2, 2), exclusion=False)
    one = jnp.zeros((1,), jnp.int32)
    with pytest.raises(InputError, match="exclusion"):
        search(tables, one, bare, num_beams=2, exclude=jnp.zeros((1, 1), jnp.int32))
    with pytest.raises(InputError, match="attributes"):
        search(tables, one, bare, num_beams=2, allowed=jnp.ones(1, jnp.uint32))
    with pytest.raises(InputError, match="unseen"):
        search(tables, one, bare, num_beams=2, num_unseen_beams=1)
    with pytest.raises(InputError, match="beams"):
        search(tables, one, bare, num_beams=2, num_unseen_beams=3)
    two_words = Trie.build(codes, (2, 2), attributes=np.ones((2, 2), np.uint32))
    with pytest.raises(InputError, match="words"):
        search(tables, one, two_words, num_beams=2, allowed=jnp.ones(1, jnp.uint32))
    with pytest.raises(InputError, match="bit 31"):
        Trie.build(codes, (2, 2), attributes=np.array([1, 1 << 31], np.uint32))
