"""Token embeddings made of codewords keep the codewords' geometry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tiger_jax.models.generator import init_params
from tiger_jax.models.tiger import Tiger, TigerConfig
from tiger_jax.recommending.codeword_embeddings import init_token_embeddings
from tiger_jax.semantic_ids.token_ids import TokenLayout

LAYOUT = TokenLayout((12, 8, 5), num_user_tokens=6)
CONFIG = TigerConfig(num_encoder_layers=1, num_decoder_layers=1, d_model=16)


@functools.cache
def drawn():
    init = functools.partial(init_params, Tiger(CONFIG, LAYOUT))
    return jax.jit(init)(jax.random.key(0))


def codebooks(latent_dim):
    rng = np.random.default_rng(0)
    return [
        jnp.array(3 + 0.1 * rng.normal(size=(size, latent_dim)), jnp.float32)
        for size in (12, 8)
    ]


def cosines(x):
    x = x - x.mean(0, keepdims=True)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return x @ x.T


def test_distances_and_the_tables_scale_survive():
    """Distances between codewords survive and rows have the table's scale."""
    books = codebooks(latent_dim=4)
    params = init_token_embeddings(drawn(), books, jax.random.key(1))
    table = np.asarray(nn.unbox(params)["token_embeddings"])
    for first, book in zip((1, 13), books, strict=True):
        rows = table[first : first + len(book)]
        np.testing.assert_allclose(cosines(rows), cosines(np.asarray(book)), atol=1e-4)
        assert rows.std() == pytest.approx(1.0, abs=0.02)


def test_other_rows_and_parameters_stay():
    """Other rows and parameters stay, also when latents are wider."""
    params = init_token_embeddings(drawn(), codebooks(latent_dim=32), jax.random.key(1))
    before, after = nn.unbox(drawn()), nn.unbox(params)
    table = before.pop("token_embeddings"), after.pop("token_embeddings")
    jax.tree.map(np.testing.assert_array_equal, before, after)
    for rows in (slice(0, 1), slice(21, None)):  # padding; collision level, users
        np.testing.assert_array_equal(table[0][rows], table[1][rows])
    assert (abs(table[0] - table[1])[1:21].max(-1) > 1e-3).all()
    assert params["token_embeddings"].names == drawn()["token_embeddings"].names


def test_codebooks_larger_than_the_table_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        init_token_embeddings(drawn(), codebooks(4) * 3, jax.random.key(1))
