"""Residual quantization: a vector becomes a sum of codewords, coarse to fine."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

# TPUs multiply in bfloat16 and recent GPUs in TF32 unless told otherwise: too coarse
# to tell neighbouring codewords apart, or to copy one.
_EXACT = jax.lax.Precision.HIGHEST

AnyFloats = Float[Array, "_ Z"] | Float[np.ndarray, "_ Z"]
AnyInts = Int[Array, " _"] | Int[np.ndarray, " _"]


def nearest_codewords(points: AnyFloats, codebook: AnyFloats) -> AnyInts:
    """The codeword nearest to each point; ties go to the smallest index.

    Args:
        points: [B Z], of NumPy or of JAX, as the codebook is.
        codebook: [K Z].
    """
    # |p - e|^2 without |p|^2, which no choice of codeword changes: one matmul, and
    # no [B, K, Z] array.
    norms = (codebook**2).sum(-1)[None, :]  # [1, K]
    return (norms - 2 * (points @ codebook.T)).argmin(-1)


def residual_quantize(
    latents: Float[Array, "B Z"], codebooks: Sequence[Float[Array, "_ Z"]]
) -> tuple[Int[Array, "B L"], Float[Array, "L B Z"], Float[Array, "L B Z"]]:
    """Replaces each vector by a sum of L codewords, chosen coarse to fine.

    Level l takes the codeword nearest to what the earlier levels left over:

        r_0 = z,    c_l = argmin_k |r_l - e_lk|^2,    r_{l+1} = r_l - e_{l,c_l}

    The choice has no gradient, and a residual has none with respect to the codewords
    of earlier levels; `rqvae.make_loss_fn` adds the straight-through term.

    Args:
        codebooks: One codebook a level; their sizes may differ.

    Returns:
        The codewords c_l; the residuals r_l, each before its level; and the codeword
        embeddings e_{l,c_l}, which sum to the quantized vector.

    Examples:
        >>> codebooks = [jnp.array([[0.0], [4.0]]), jnp.array([[0.0], [1.0]])]
        >>> codewords, _, chosen = residual_quantize(jnp.array([[4.9]]), codebooks)
        >>> codewords.tolist(), chosen.sum(0).tolist()
        ([[1, 1]], [[5.0]])

    References:
        Rajput et al. 2023, "Recommender Systems with Generative Retrieval", 3.1.
    """
    residual = latents
    codewords, residuals, chosen = [], [], []
    for codebook in codebooks:
        with jax.default_matmul_precision("highest"):
            codeword = nearest_codewords(
                jax.lax.stop_gradient(residual), jax.lax.stop_gradient(codebook)
            )
        # A one-hot matmul copies rows exactly, and its gradient adds up in a fixed
        # order, where a gather's would scatter: on GPUs, in another order every time.
        one_hot = jax.nn.one_hot(codeword, len(codebook), dtype=codebook.dtype)
        embedding = jnp.dot(one_hot, codebook, precision=_EXACT)  # [B, Z]
        codewords.append(codeword)
        residuals.append(residual)
        chosen.append(embedding)
        residual = residual - jax.lax.stop_gradient(embedding)
    return jnp.stack(codewords, 1), jnp.stack(residuals), jnp.stack(chosen)


class ResidualQuantizer(nn.Module):
    """One codebook a level: parameters ``codebook_0``, ``codebook_1``, and so on."""

    codebook_sizes: tuple[int, ...]
    latent_size: int

    def setup(self) -> None:
        """Declares the codebooks; k-means is to replace their first values."""
        init = nn.with_logical_partitioning(
            nn.initializers.normal(stddev=1.0), ("codebook", "latent")
        )
        self.codebooks = [
            self.param(f"codebook_{level}", init, (size, self.latent_size))
            for level, size in enumerate(self.codebook_sizes)
        ]

    def __call__(
        self, latents: Float[Array, "B Z"]
    ) -> tuple[Int[Array, "B L"], Float[Array, "L B Z"], Float[Array, "L B Z"]]:
        return residual_quantize(latents, self.codebooks)

    def look_up(self, codewords: Int[Array, "B l"]) -> Float[Array, "B Z"]:
        """The sum of the first l levels' codeword embeddings."""
        parts = [self.codebooks[l][codewords[:, l]] for l in range(codewords.shape[1])]
        return jnp.sum(jnp.stack(parts), axis=0)
