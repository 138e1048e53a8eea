import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_cases import CAPACITY, assert_same, draw_case, found_items
from decoding_reference import Reference, decode_step, init_decode

from tiger_jax.decoding.search import (
    CatalogueWalk,
    exact_search,
    score_catalogue,
)

REQUESTS = 6
requests = jnp.arange(REQUESTS, dtype=jnp.int32)
model = {"init_decode": init_decode, "decode_step": decode_step}
score = jax.jit(
    functools.partial(score_catalogue, **model), static_argnames="normalize"
)
best = jax.jit(
    functools.partial(exact_search, **model),
    static_argnames=("normalize", "num_results"),
)


@pytest.mark.parametrize("normalize", ["level", "given", "children"])
@pytest.mark.parametrize(
    ("shape", "chunk_size"), [("wide", 7), ("four", 1000), ("eight", 1)]
)
def test_every_item_scores_as_by_teacher_forcing(shape, chunk_size, normalize):
    rng = np.random.default_rng(3)
    trie, codes, tables = draw_case(rng, shape, "mixed")
    walk = CatalogueWalk.build(trie, chunk_size=chunk_size)
    scores = score(tables, requests, walk, normalize=normalize)
    reference = Reference(codes, tables, normalize)
    assert scores.shape == (REQUESTS, len(codes))
    for row in range(REQUESTS):
        expected = reference.score(row)
        for item in range(len(codes)):
            assert scores[row, item] == pytest.approx(expected[item], abs=1e-5)


def test_an_exact_search_ranks_all_but_the_excluded():
    """An exact search ranks all that is not excluded, ties included."""
    rng = np.random.default_rng(4)
    trie, codes, tables = draw_case(rng, "four", "csr", step=0.5)
    walk = CatalogueWalk.build(trie, chunk_size=5)
    exclude = jnp.asarray(rng.integers(-1, len(codes) + 5, (REQUESTS, 10)), jnp.int32)
    result = best(
        tables,
        requests,
        walk,
        normalize="given",
        num_results=CAPACITY + 3,
        exclude=exclude,
    )
    reference = Reference(codes, tables, "given")
    for row in range(REQUESTS):
        left = sorted(set(range(len(codes))) - set(exclude[row].tolist()))
        assert_same(found_items(result, row), reference.exhaustive(row, 99, left))


def test_a_walk_visits_every_node_in_chunks_of_its_size():
    rng = np.random.default_rng(5)
    trie, codes, _ = draw_case(rng, "four", "bitset")
    walk = CatalogueWalk.build(trie, chunk_size=8)
    assert all(window.nodes.shape[-1] <= 8 for window in (*walk.whole, *walk.chunked))
    for depth, window in enumerate((*walk.whole, *walk.chunked)):
        prefixes = {tuple(code[:depth]) for code in codes.tolist()}
        assert set(np.asarray(window.nodes).ravel()) == set(range(len(prefixes)))


def test_walks_that_fill_one_plan_have_one_shape_and_score_alike():
    shapes = []
    for seed in (6, 7):
        rng = np.random.default_rng(seed)
        trie, codes, tables = draw_case(rng, "four", "mixed")
        plain = score(tables, requests, CatalogueWalk.build(trie), normalize="level")
        walk = CatalogueWalk.build(trie, chunk_size=7, fills_plan=True)
        scores = np.asarray(score(tables, requests, walk, normalize="level"))
        np.testing.assert_allclose(scores[:, : len(codes)], plain, atol=1e-5)
        assert scores.shape == (REQUESTS, CAPACITY)
        assert (scores[:, len(codes) :] == -np.inf).all()
        shapes.append(jax.tree.map(np.shape, walk))
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
