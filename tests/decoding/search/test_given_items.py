"""Items that a request names: their scores, and whether it may have them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_cases import SHAPES, draw_codes, plan_of
from decoding_reference import Reference, decode_step, init_decode, make_tables
from test_restrictions import draw_exclusions, draw_prefixes

from tiger_jax.decoding.search import find_allowed_items, score_items
from tiger_jax.decoding.trie import Trie
from tiger_jax.errors import InputError

REQUESTS = 16
requests = jnp.arange(REQUESTS, dtype=jnp.int32)
score = jax.jit(
    functools.partial(score_items, init_decode=init_decode, decode_step=decode_step),
    static_argnames="normalize",
)
find = jax.jit(find_allowed_items, static_argnums=(1, 2))


@pytest.mark.parametrize("kind", ["csr", "bitmap", "mixed"])
@pytest.mark.parametrize("shape", ["wide", "four"])
def test_what_a_request_may_have_is_found(shape, kind):
    rng = np.random.default_rng(1)
    codes = draw_codes(rng, shape)
    count = len(codes)
    bits = (1 << rng.integers(0, 4, count)).astype(np.uint32)
    trie = Trie.build(codes, SHAPES[shape], plan=plan_of(shape, kind), attributes=bits)
    exclude, prefix = draw_exclusions(rng, count), draw_prefixes(rng, codes)
    allowed = rng.integers(0, 16, REQUESTS).astype(np.uint32)
    named = np.zeros((REQUESTS, count), bool)
    for row, items in enumerate(exclude):
        named[row, items[(items >= 0) & (items < count)]] = True
    fits = ((prefix[:, None] < 0) | (codes[None] == prefix[:, None])).all(-1)
    has = (bits[None] & allowed[:, None]) != 0
    limits = {"exclude": exclude, "allowed": allowed, "prefix": prefix}
    expected = {"exclude": ~named, "allowed": has, "prefix": fits}
    for names in (["exclude"], ["allowed"], ["prefix"], list(limits)):
        own = {name: jnp.asarray(limits[name]) for name in names}
        found = np.asarray(find(trie, REQUESTS, count, **own))
        np.testing.assert_array_equal(
            found, np.logical_and.reduce([expected[name] for name in names])
        )
    # A table with more rows than the trie has room for has no items there.
    room = trie.plan.item_capacity + 3
    assert not np.asarray(find(trie, REQUESTS, room))[:, count:].any()


@pytest.mark.parametrize("normalize", ["level", "given", "children"])
@pytest.mark.parametrize("shape", ["wide", "four"])
def test_given_items_score_as_by_teacher_forcing(shape, normalize):
    rng = np.random.default_rng(2)
    codes = draw_codes(rng, shape)
    tables = make_tables(rng, SHAPES[shape])
    trie = Trie.build(codes, SHAPES[shape], plan=plan_of(shape, "mixed"))
    items = rng.integers(-1, len(codes), (REQUESTS, 7)).astype(np.int32)
    found = score(tables, requests, trie, jnp.asarray(items), normalize=normalize)
    reference = Reference(codes, tables, normalize)
    for row in range(REQUESTS):
        own = reference.score(row)
        expected = [*(own[i] for i in range(len(codes))), -np.inf]  # -1: none
        np.testing.assert_allclose(
            found[row], np.array(expected)[items[row]], rtol=1e-5, atol=1e-5
        )


def test_children_are_those_that_the_request_may_have():
    """With every sibling excluded, an item's codewords are certain."""
    rng = np.random.default_rng(3)
    codes = draw_codes(rng, "four")
    tables = make_tables(rng, SHAPES["four"])
    trie = Trie.build(codes, SHAPES["four"], plan=plan_of("four", "mixed"))
    wanted = np.arange(REQUESTS, dtype=np.int32) % len(codes)
    others = np.stack([np.setdiff1d(np.arange(len(codes)), [item]) for item in wanted])
    found = score(
        tables,
        requests,
        trie,
        jnp.asarray(wanted[:, None]),
        normalize="children",
        exclude=jnp.asarray(others, jnp.int32),
    )
    np.testing.assert_allclose(found, 0.0, atol=1e-6)


def test_a_trie_that_knows_no_leaves_is_refused():
    codes = np.array([[0, 1], [1, 0]])
    trie = Trie.build(codes, (2, 2), exclusion=False)
    with pytest.raises(InputError, match="build it with exclusion"):
        find_allowed_items(trie, 1, 2)
