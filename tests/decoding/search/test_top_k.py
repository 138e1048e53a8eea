import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiger_jax.decoding.search.top_k import masked_top_k, top_k
from tiger_jax.decoding.trie import bits

fused = jax.jit(masked_top_k, static_argnums=3)


@functools.partial(jax.jit, static_argnums=3)
def plain(logits, rows, offset, k):
    is_set = bits.unpack(rows, logits.shape[2])
    values = jnp.where(is_set, logits, -jnp.inf) + offset[:, :, None]
    return jax.lax.top_k(values.reshape(len(values), -1), k)


@pytest.mark.parametrize(
    ("beams", "num_codewords", "k"), [(1, 64, 8), (6, 100, 4), (50, 256, 50)]
)
@pytest.mark.parametrize("step", [None, 0.5])
def test_looking_at_chunks_first_changes_nothing(beams, num_codewords, k, step):
    rng = np.random.default_rng(beams)
    for density in (1.0, 0.5, 0.01, 0.0):
        logits = rng.normal(size=(9, beams, num_codewords)).astype(np.float32)
        offset = rng.normal(size=(9, beams)).astype(np.float32)
        if step is not None:
            logits, offset = (np.round(a / step) * step + 0.0 for a in (logits, offset))
            offset[:, ::3] = -np.inf  # dead beams
        is_set = rng.random(logits.shape) < density
        rows = bits.pack(jnp.asarray(is_set))
        values, index = fused(logits, rows, offset, k)
        expected_values, expected_index = plain(logits, rows, offset, k)
        np.testing.assert_array_equal(values, expected_values)
        counts = np.asarray(values) > -np.inf
        np.testing.assert_array_equal(
            np.asarray(index)[counts], np.asarray(expected_index)[counts]
        )


def test_zero_and_minus_zero_tie():
    values, index = jax.jit(top_k, static_argnums=1)(jnp.array([[-0.0, 0.0, -1.0]]), 2)
    assert index.tolist() == [[0, 1]]


def test_a_top_k_is_not_compiled_into_a_full_sort():
    k = 50
    arrays = jnp.zeros((4, 50, 256)), jnp.zeros((4, 50, 8), jnp.uint32)
    text = fused.lower(*arrays, jnp.zeros((4, 50)), k).compile().as_text()
    lengths = [
        int(shape.split(",")[-1])
        for line in text.splitlines()
        if " sort(" in line
        for shape in re.findall(r"\[([\d,]+)\]", line.split(" sort(")[0])
    ]
    if jax.default_backend() == "cpu":
        assert lengths, "the winners are sorted by their places"
        assert max(lengths) == k
