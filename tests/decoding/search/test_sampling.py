import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from decoding_reference import Reference, decode_step, init_decode, make_tables

from tiger_jax.decoding.search import sample_distinct_items
from tiger_jax.decoding.trie import Trie

SIZES = (3, 40, 2)
# Wide and narrow levels, an only child, and a subtree with most of the items.
CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 39, 1], [1, 7, 0], [2, 3, 0], [2, 3, 1]])
DRAWS = 4000
TEMPERATURE = 0.7

model = {"init_decode": init_decode, "decode_step": decode_step}
draw = jax.jit(
    functools.partial(sample_distinct_items, **model), static_argnames="num_samples"
)
trie = Trie.build(CODES, SIZES)
tables = make_tables(np.random.default_rng(0), SIZES)
# Every draw is a request of its own, all with the same history.
requests = jnp.full((DRAWS,), 5, jnp.int32)


def probabilities(items=None):
    """Each item's probability, by the dictionary."""
    hot = [table / TEMPERATURE for table in tables]
    scores = Reference(CODES, hot, "children").score(5, items)
    return {item: np.exp(score) for item, score in scores.items()}


def assert_frequencies(counts, expected):
    """Within five standard deviations of what is expected."""
    assert sum(expected.values()) == np.float64(1).item() or np.isclose(
        sum(expected.values()), 1
    )
    for outcome, p in expected.items():
        deviation = np.sqrt(DRAWS * p * (1 - p)) + 1
        assert abs(counts.get(outcome, 0) - DRAWS * p) < 5 * deviation, outcome


def test_draws_are_those_of_an_urn_without_replacement():
    result = draw(
        tables,
        requests,
        trie,
        jax.random.key(1),
        num_samples=3,
        temperature=TEMPERATURE,
    )
    items = np.asarray(result.item_numbers)
    assert all(len(set(row)) == 3 for row in items.tolist())
    assert (np.diff(result.perturbed_scores, axis=1) <= 0).all()
    p = probabilities()
    # The urn: the first by p, the next by p over what is left, and so on.
    urn = {
        100 * i + 10 * j + k: p[i] * p[j] / (1 - p[i]) * p[k] / (1 - p[i] - p[j])
        for i, j, k in itertools.permutations(p, 3)
    }
    drawn, counts = np.unique(items @ [100, 10, 1], return_counts=True)
    assert_frequencies(dict(zip(drawn.tolist(), counts.tolist(), strict=True)), urn)
    by_item = np.log([[p[item] for item in row] for row in items.tolist()])
    np.testing.assert_allclose(result.scores, by_item, atol=1e-5)


def test_more_draws_than_items_return_every_item_once():
    result = draw(tables, requests[:50], trie, jax.random.key(2), num_samples=9)
    for row in np.asarray(result.item_numbers).tolist():
        assert sorted(row[:6]) == [0, 1, 2, 3, 4, 5]
        assert row[6:] == [-1] * 3
    assert (result.scores[:, 6:] == -jnp.inf).all()


def test_the_excluded_is_never_drawn():
    """What is excluded is never drawn, and the rest shares its probability."""
    exclude = jnp.tile(jnp.array([[0, 3, -1]], jnp.int32), (DRAWS, 1))
    options = {"exclude": exclude, "temperature": TEMPERATURE}
    result = draw(tables, requests, trie, jax.random.key(3), num_samples=1, **options)
    items, counts = np.unique(result.item_numbers, return_counts=True)
    found = dict(zip(items.tolist(), counts.tolist(), strict=True))
    assert set(found) <= {1, 2, 4, 5}
    assert_frequencies(found, probabilities([1, 2, 4, 5]))
    distinct = draw(
        tables,
        requests[:50],
        trie,
        jax.random.key(4),
        num_samples=5,
        **{**options, "exclude": exclude[:50]},
    )
    for row in np.asarray(distinct.item_numbers).tolist():
        assert sorted(row[:4]) == [1, 2, 4, 5]
        assert row[4] == -1


def test_all_excluded_draws_nothing():
    exclude = jnp.arange(6, dtype=jnp.int32)[None, :]
    result = draw(
        tables, requests[:1], trie, jax.random.key(5), num_samples=2, exclude=exclude
    )
    assert result.item_numbers.tolist() == [[-1, -1]]
    assert (result.scores == -jnp.inf).all()
