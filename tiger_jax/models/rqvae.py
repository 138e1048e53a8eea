"""RQ-VAE: the auto-encoder whose bottleneck is a sum of codewords.

    x --encoder--> z --quantizer--> z_q = sum_l e_{l, c_l} --decoder--> x_hat

Item text embeddings x are summed up in L codewords c_l, which become the item's
Semantic ID (Rajput et al. 2023, "Recommender Systems with Generative Retrieval",
section 3.1; Zeghidour et al. 2021, "SoundStream", for the residual quantizer).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from tiger_jax.config import config
from tiger_jax.models.residual_quantizer import ResidualQuantizer


@config("rqvae")
class RqVaeConfig:
    """The architecture; the defaults are the paper's.

    Attributes:
        codebook_sizes: Codewords per level; they may fall, as 512, 256, 128, 64. Empty
            are the paper's 3 x 256, or less in a shop of few items: see
            `quantizers.quantizer.usual_codebook_size`.
        hidden_sizes: The encoder's hidden layers; the decoder mirrors them.
        latent_size: Z, the dimension of latents and codewords.
        commitment_weight: beta, what an encoder output's distance to its codeword
            weighs against the codeword's distance to the encoder output.
    """

    codebook_sizes: tuple[int, ...] = ()
    hidden_sizes: tuple[int, ...] = (512, 256, 128)
    latent_size: int = 32
    commitment_weight: float = 0.25


class Mlp(nn.Module):
    """Dense layers of these sizes, with ReLU between them."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "B _"]) -> Float[Array, "B _"]:
        for i, size in enumerate(self.sizes):
            x = nn.Dense(
                size,
                kernel_init=nn.with_logical_partitioning(
                    nn.initializers.he_normal(), ("rqvae_in", "rqvae_out")
                ),
                bias_init=nn.with_logical_partitioning(
                    nn.initializers.zeros, ("rqvae_out",)
                ),
                name=f"dense_{i}",
            )(x)
            if i + 1 < len(self.sizes):
                x = nn.relu(x)
        return x


class RqVaeOutput(NamedTuple):
    """Everything the loss is made of; see `residual_quantize` for the last three."""

    reconstruction: Float[Array, "B E"]
    codewords: Int[Array, "B L"]
    residuals: Float[Array, "L B Z"]
    chosen: Float[Array, "L B Z"]


class RqVae(nn.Module):
    """The network; works on embeddings [B E], standardized if that is wanted."""

    config: RqVaeConfig
    embedding_size: int

    def setup(self) -> None:
        config = self.config
        self.encoder = Mlp((*config.hidden_sizes, config.latent_size))
        self.quantizer = ResidualQuantizer(config.codebook_sizes, config.latent_size)
        self.decoder = Mlp((*config.hidden_sizes[::-1], self.embedding_size))

    def __call__(self, embeddings: Float[Array, "B E"]) -> RqVaeOutput:
        latents = self.encoder(embeddings)
        codewords, residuals, chosen = self.quantizer(latents)
        # Straight-through: the decoder sees the codewords, and its gradient reaches
        # the encoder as if it had seen the latents.
        quantized = latents + jax.lax.stop_gradient(chosen.sum(0) - latents)
        return RqVaeOutput(self.decoder(quantized), codewords, residuals, chosen)

    def encode(self, embeddings: Float[Array, "B E"]) -> Float[Array, "B Z"]:
        return self.encoder(embeddings)

    def quantize(
        self, embeddings: Float[Array, "B E"]
    ) -> tuple[Int[Array, "B L"], Float[Array, "L B Z"]]:
        """The codewords, and the residual before each level."""
        codewords, residuals, _ = self.quantizer(self.encoder(embeddings))
        return codewords, residuals

    def reconstruct(self, codewords: Int[Array, "B l"]) -> Float[Array, "B E"]:
        """What the decoder makes of the first l codewords."""
        return self.decoder(self.quantizer.look_up(codewords))


LossFn = Callable[
    [Mapping[str, Any], Mapping[str, Array], Array | None],
    tuple[Float[Array, ""], dict[str, Any]],
]


def make_loss_fn(model: RqVae) -> LossFn:
    """Makes the loss, with the shape that every loss here has.

    For each item, with sg = stop_gradient and r_l the residual before level l:

        |x - x_hat|^2 + sum_l |sg[r_l] - e_l|^2 + beta |r_l - sg[e_l]|^2

    Returns:
        ``loss_fn(params, batch, dropout_key) -> (loss_sum, sums)``. The batch has
        ``embeddings`` [B E] and perhaps ``weights`` [B], 0 for padded rows; there
        is no dropout. ``sums`` has the divisor ``weight``, the parts
        ``reconstruction``, ``quantization`` and ``variance`` (|x|^2, of which the
        reconstruction leaves a part), and ``codeword_counts``, a [K] for each level.
    """

    def loss_fn(
        params: Mapping[str, Any],
        batch: Mapping[str, Array],
        dropout_key: Array | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        embeddings = batch["embeddings"]
        weights = batch.get("weights", jnp.ones(len(embeddings), embeddings.dtype))
        output = model.apply({"params": params}, embeddings)
        sg = jax.lax.stop_gradient
        beta = model.config.commitment_weight
        codebook_term = ((sg(output.residuals) - output.chosen) ** 2).sum((0, 2))
        commitment = ((output.residuals - sg(output.chosen)) ** 2).sum((0, 2))
        reconstruction = ((embeddings - output.reconstruction) ** 2).sum(-1)  # [B]
        quantization = codebook_term + beta * commitment  # [B]
        loss_sum = (weights * (reconstruction + quantization)).sum()
        counts = {
            f"codebook_{level}": weights
            @ jax.nn.one_hot(output.codewords[:, level], size, dtype=weights.dtype)
            for level, size in enumerate(model.config.codebook_sizes)
        }
        return loss_sum, {
            "weight": weights.sum(),
            "reconstruction": (weights * reconstruction).sum(),
            "quantization": (weights * quantization).sum(),
            "variance": (weights * (embeddings**2).sum(-1)).sum(),
            "codeword_counts": counts,
        }

    return loss_fn
