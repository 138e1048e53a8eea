import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_cases import SHAPES, draw_case
from decoding_reference import Reference, decode_step, init_decode

from tiger_jax.decoding.search import unconstrained_search
from tiger_jax.errors import InputError

requests = jnp.arange(8, dtype=jnp.int32)
search = jax.jit(
    functools.partial(
        unconstrained_search, init_decode=init_decode, decode_step=decode_step
    ),
    static_argnames=("num_beams", "normalize"),
)


@pytest.mark.parametrize(
    ("shape", "kind", "num_beams"),
    [("wide", "mixed", 16), ("square", "csr", 40), ("four", "bitmap", 5)],
)
def test_beams_are_the_best_of_all_ids_valid_or_not(shape, kind, num_beams):
    """Beams are those of all Semantic IDs, and invalid ones are counted."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        trie, codes, tables = draw_case(rng, shape, kind, step=0.125)
        found = search(tables, requests, trie, num_beams=num_beams, normalize="given")
        reference = Reference(codes, tables, "given")
        for row in range(len(requests)):
            expected = reference.unconstrained(row, num_beams)
            items = [reference.item.get(prefix, -1) for prefix, _ in expected]
            missing = num_beams - len(expected)
            ids = [list(prefix) for prefix, _ in expected]
            ids += [[-1] * len(SHAPES[shape])] * missing
            assert found.semantic_ids[row].tolist() == ids
            assert found.item_numbers[row].tolist() == items + [-1] * missing
            assert int(found.num_invalid[row]) == items.count(-1)
            np.testing.assert_allclose(
                found.scores[row, : len(ids) - missing],
                [score for _, score in expected],
                atol=1e-5,
            )


def test_normalizing_over_children_is_refused():
    """Normalizing over children makes no sense without a constraint."""
    trie, _, tables = draw_case(np.random.default_rng(0), "square", "csr")
    with pytest.raises(InputError, match="children"):
        search(tables, requests, trie, num_beams=2, normalize="children")
