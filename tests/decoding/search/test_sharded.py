"""A trie over eight devices gives what the whole trie gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_cases import CAPACITY, SHAPES, draw_codes, plan_of, search
from decoding_reference import make_tables
from test_restrictions import draw_exclusions, draw_prefixes

from tiger_jax.decoding.trie import Trie
from tiger_jax.decoding.trie.sharded_trie import ShardedTrie, split_rows
from tiger_jax.errors import InputError

REQUESTS = 16
requests = jnp.arange(REQUESTS, dtype=jnp.int32)


def make_mesh(data, model):
    devices = np.array(jax.devices()[: data * model]).reshape(data, model)
    return jax.sharding.Mesh(devices, ("data", "model"))


def check(shape, kind, num_beams, normalize, mesh_shape, *, restricted, cases, seed=0):
    """Compares searches in random catalogues, bit for bit."""
    rng = np.random.default_rng([seed, num_beams, len(SHAPES[shape])])
    mesh = make_mesh(*mesh_shape)
    # Rounded logits tie everywhere; others show that sums are the same sums.
    for case in range(cases):
        codes = draw_codes(rng, shape)
        step = 0.125 if case % 2 else None
        tables = make_tables(rng, SHAPES[shape], step=step)
        made_of, options = {}, {}
        if restricted:
            bits = (1 << rng.integers(0, 4, len(codes))).astype(np.uint32)
            made_of = {"attributes": bits, "unseen": rng.random(len(codes)) < 0.3}
            options = {
                "exclude": jnp.asarray(draw_exclusions(rng, len(codes))),
                "prefix": jnp.asarray(draw_prefixes(rng, codes)),
                "allowed": jnp.asarray(rng.integers(0, 16, REQUESTS), jnp.uint32),
                "num_unseen_beams": num_beams // 3,
            }
        plan = plan_of(shape, kind)
        whole = Trie.build(codes, SHAPES[shape], plan=plan, **made_of)
        batch_axis = "data" if mesh_shape[0] > 1 else None
        sharded = ShardedTrie.build(
            codes, SHAPES[shape], mesh, plan=plan, batch_axis=batch_axis, **made_of
        )
        options |= {"num_beams": num_beams, "normalize": normalize}
        expected = search(tables, requests, whole, **options)
        found = search(tables, requests, sharded, **options)
        np.testing.assert_array_equal(found.item_numbers, expected.item_numbers)
        depths = range(1, 1 + len(whole.levels))
        groups = num_beams - options.get("num_unseen_beams", 0)
        if all(whole.width(d, groups) == sharded.width(d, groups) for d in depths):
            np.testing.assert_array_equal(found.scores, expected.scores)
        else:  # other shapes: sums of the model and of normalizers round differently
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "kind", "num_beams", "normalize", "mesh", "restricted"),
    [
        ("four", "mixed", 9, "children", (2, 4), True),
        ("narrow_wide", "csr", 4, "level", (1, 8), False),
    ],
)
def test_a_sharded_search_is_the_whole_search(
    shape, kind, num_beams, normalize, mesh, restricted
):
    check(shape, kind, num_beams, normalize, mesh, restricted=restricted, cases=2)


SWEEP = [
    ("one_level", "bitset", 16, "children", (1, 8), True),
    ("square", "csr", 9, "level", (1, 8), False),
    ("square", "mixed", 9, "given", (4, 2), True),
    ("wide", "bitset", 16, "given", (2, 4), False),
    ("wide", "mixed", 9, "level", (1, 8), True),
    ("narrow_wide", "bitmap", 100, "children", (1, 8), False),
    ("four", "bitmap", 1, "level", (2, 4), True),
    ("eight", "mixed", 16, "given", (1, 8), False),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "kind", "num_beams", "normalize", "mesh", "restricted"), SWEEP
)
def test_a_sharded_search_is_the_whole_search_in_1024_cases(
    shape, kind, num_beams, normalize, mesh, restricted
):
    assert 8 * REQUESTS * len(SWEEP) == 1024  # catalogues, requests each
    check(
        shape, kind, num_beams, normalize, mesh, restricted=restricted, cases=8, seed=1
    )


def test_shards_fit_their_own_plan_and_hold_each_item_once():
    rng = np.random.default_rng(0)
    sizes = (16, 16, 16)
    codes = np.stack(np.unravel_index(rng.permutation(4096)[:2000], sizes), axis=1)
    sharded = ShardedTrie.build(codes, sizes, make_mesh(1, 8))
    whole = Trie.build(codes, sizes)
    held = np.sort(np.asarray(sharded.numbers).ravel())[: len(codes)]
    assert held.tolist() == list(range(len(codes)))
    shard_bytes = sum(array.nbytes for array in jax.tree.leaves(sharded)) / 8
    assert shard_bytes < sum(whole.nbytes.values()) / 4
    tables = make_tables(rng, sizes)
    expected = search(tables, requests, whole, num_beams=50)
    found = search(tables, requests, sharded, num_beams=50)
    np.testing.assert_array_equal(found.item_numbers, expected.item_numbers)


def test_ranges_are_contiguous_and_as_even_as_they_can_be():
    first = np.repeat([0, 1, 2, 3, 5], [5, 1, 1, 3, 4])
    parts = split_rows(first, 6, 3)
    assert [len(part) for part in parts] == [5, 5, 4]
    assert np.concatenate(parts).tolist() == list(range(14))
    more = split_rows(np.array([1, 0]), 2, 4)
    assert [part.tolist() for part in more] == [[1], [0], [], []]
    with pytest.raises(InputError, match="codebook of 2"):
        split_rows(np.array([2]), 2, 2)


def test_what_no_mesh_or_plan_can_hold_is_an_error():
    codes, mesh = draw_codes(np.random.default_rng(0), "four"), make_mesh(1, 2)
    with pytest.raises(InputError, match="no 'shards'"):
        ShardedTrie.build(codes, SHAPES["four"], mesh, axis="shards")
    with pytest.raises(InputError, match="no Semantic IDs"):
        ShardedTrie.build(codes[:0], SHAPES["four"], mesh)
    small = plan_of("four", "csr", 1)
    with pytest.raises(InputError, match="exceed the plan"):
        ShardedTrie.build(codes, SHAPES["four"], mesh, plan=small)
    assert len(codes) <= CAPACITY
