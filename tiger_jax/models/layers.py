"""T5's building blocks: dropout, RMS norm, MLP and relative positions.

Parameters carry logical axis names ("vocab", "embed", "joined_kv", "mlp",
"relpos_buckets", "heads"), which `training.partitioning` maps to mesh axes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from tiger_jax.models.tuned_ops import dropout, linear, relu_dropout


class RmsNorm(nn.Module):
    """Scales vectors to unit root mean square; no mean, no bias.

        y = x / sqrt(mean(x^2) + epsilon) * scale

    The statistics are float32 whatever the compute dtype.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        init = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        scale = self.param("scale", init, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        inverse_rms = jax.lax.rsqrt((x32**2).mean(-1, keepdims=True) + self.epsilon)
        scale = scale.reshape((1,) * (x.ndim - 1) + (-1,))
        return (x32 * inverse_rms * scale).astype(x.dtype)


class Dropout(nn.Module):
    """Drops elements with probability `rate` in training; see `dropout`."""

    rate: float

    def __call__(
        self, x: Float[Array, "*shape"], *, is_training: bool
    ) -> Float[Array, "*shape"]:
        if not is_training or self.rate == 0.0:
            return x
        return dropout(x, self.rate, self.make_rng("dropout"))


class Mlp(nn.Module):
    """Two matrices with a ReLU between; dropout on the hidden units."""

    mlp_dim: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], *, is_training: bool
    ) -> Float[Array, "B S D"]:
        d_model = x.shape[-1]
        wi = linear_param(self, "wi", (d_model, self.mlp_dim), ("embed", "mlp"))
        wo = linear_param(self, "wo", (self.mlp_dim, d_model), ("mlp", "embed"))
        hidden = linear(x, wi.astype(self.dtype))
        if is_training and self.dropout_rate:
            hidden = relu_dropout(hidden, self.dropout_rate, self.make_rng("dropout"))
        else:
            hidden = nn.relu(hidden)
        return linear(hidden, wo.astype(self.dtype))


def linear_param(
    module: nn.Module,
    name: str,
    shape: tuple[int, int],
    axes: tuple[str, str],
    fan_in: int | None = None,
) -> Float[Array, "fan_in fan_out"]:
    """Declares a matrix with T5's initialisation, normal of std fan_in^-0.5."""
    init = nn.initializers.normal((fan_in or shape[0]) ** -0.5)
    return module.param(name, nn.with_logical_partitioning(init, axes), shape)


class RelativePositionBias(nn.Module):
    """Learns one score per head and bucket of key position - query position.

    A stack's layers share it.
    """

    num_heads: int
    d_model: int
    is_bidirectional: bool
    num_buckets: int = 32
    max_distance: int = 128

    @nn.compact
    def __call__(self, query_length: int, key_length: int) -> Float[Array, "H Q S"]:
        init = nn.initializers.normal(self.d_model**-0.5)
        table = self.param(
            "relative_bias",
            nn.with_logical_partitioning(init, ("relpos_buckets", "heads")),
            (self.num_buckets, self.num_heads),
        )
        distance = np.arange(key_length)[None, :] - np.arange(query_length)[:, None]
        bucket = relative_position_bucket(
            distance, self.is_bidirectional, self.num_buckets, self.max_distance
        )
        # A matmul rather than a gather, whose gradient is a scatter.
        one_hot = jax.nn.one_hot(bucket, self.num_buckets, dtype=table.dtype)
        return jnp.einsum("qsr,rh->hqs", one_hot, table)


def relative_position_bucket(
    distance: Int[np.ndarray, "*shape"],
    is_bidirectional: bool,
    num_buckets: int,
    max_distance: int,
) -> Int[np.ndarray, "*shape"]:
    """Maps key position - query position to T5's buckets.

    Half of the buckets are for single distances, the other half grow
    logarithmically up to `max_distance`; all farther ones share the last.
    Bidirectional tables spend one half of the buckets on keys after the query,
    causal tables put every such key into bucket 0.

    References:
      Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a
      Unified Text-to-Text Transformer", 2.1.

    Examples:
      >>> relative_position_bucket(np.array([-9, -1, 0, 1, 9]), True, 32, 128)
      array([ 8,  1,  0, 17, 24])
      >>> relative_position_bucket(np.array([-9, -1, 0, 1, 9]), False, 32, 128)
      array([9, 1, 0, 0, 0])
    """
    if is_bidirectional:
        num_buckets //= 2
        first_bucket = np.where(distance > 0, num_buckets, 0)
        distance = abs(distance)
    else:
        first_bucket = np.zeros_like(distance)
        distance = np.maximum(-distance, 0)
    num_exact = num_buckets // 2
    # Published models computed the logarithm in float32; so do we, because at
    # powers of two it decides the bucket.
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(num_exact)
    share = np.log(ratio) / np.float32(math.log(max_distance / num_exact))
    coarse = num_exact + (share * (num_buckets - num_exact)).astype(distance.dtype)
    coarse = np.minimum(coarse, num_buckets - 1)
    return first_bucket + np.where(distance < num_exact, distance, coarse)


def low_pass_matrix(
    length: int, window: int, cutoff: int
) -> Float[np.ndarray, "length length"]:
    """What keeps the lowest frequencies of a window that ends in `length` items.

    Its product with the items is what is left of their discrete Fourier transform's
    frequencies 0 .. cutoff // 2, the window being zero before them.
    """
    place = np.arange(length)
    distance = place[:, None] - place[None, :]
    frequencies = np.arange(1, cutoff // 2 + 1)[:, None, None]
    waves = np.cos(2 * np.pi * frequencies * distance / window).sum(0)
    return ((1 + 2 * waves) / window).astype(np.float32)
