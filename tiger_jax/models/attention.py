"""Multi-head attention as in T5: no biases, no scaling of the scores.

T5 leaves out the 1 / sqrt(head_dim) and initialises the query matrix smaller
instead. Training attends over whole sequences; decoding goes one position at a
time, against what was kept of earlier positions (`SelfAttention.extend`) and of
the encoder (`CrossAttention`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from tiger_jax.models.layers import Dropout, linear_param
from tiger_jax.models.tuned_ops import linear

# Added to the scores of keys that must not be seen: large enough for a weight of
# exactly zero, and finite, so that a row without any key gives no NaN.
MASKED = -1e9


class BeamPosition(NamedTuple):
    """Self-attention keys and values of one position, for every beam."""

    keys: Float[Array, "B M joined"]
    values: Float[Array, "B M joined"]


class Memory(NamedTuple):
    """Cross-attention keys and values of a request, shared by its beams."""

    keys: Float[Array, "B H C S"]
    values: Float[Array, "B H S C"]


class _Attention(nn.Module):
    """The four matrices, and what both kinds of attention do with them."""

    d_model: int
    num_heads: int
    head_dim: int
    dropout_rate: float
    dtype: jnp.dtype

    def setup(self) -> None:
        inner = (self.d_model, self.num_heads * self.head_dim)
        axes = ("embed", "joined_kv")
        query_fan_in = self.d_model * self.head_dim
        self.query = linear_param(self, "query", inner, axes, query_fan_in)
        self.key = linear_param(self, "key", inner, axes)
        self.value = linear_param(self, "value", inner, axes)
        self.out = linear_param(self, "out", inner[::-1], axes[::-1])
        self.dropout = Dropout(self.dropout_rate)

    def _heads(
        self, x: Float[Array, "B S D"], kernel: Float[Array, "D joined"]
    ) -> Float[Array, "B S H C"]:
        projected = linear(x, kernel.astype(self.dtype))
        return projected.reshape(*x.shape[:2], self.num_heads, self.head_dim)

    def _join(self, x: Float[Array, "B T H C"]) -> Float[Array, "B T D"]:
        return linear(x.reshape(*x.shape[:2], -1), self.out.astype(self.dtype))

    def _weights(self, scores: Array, bias: Array, is_training: bool) -> Array:
        weights = jax.nn.softmax(scores + bias).astype(self.dtype)
        return self.dropout(weights, is_training=is_training)


class SelfAttention(_Attention):
    """Attends from each position to the others, or to those before it."""

    def __call__(
        self,
        x: Float[Array, "B S D"],
        bias: Float[Array, "B H S S"],
        *,
        is_training: bool,
    ) -> Float[Array, "B S D"]:
        """Attends over whole sequences; `bias` is added to the scores."""
        # Laid out once for all their uses, forward and backward. Without the
        # barrier, XLA's CPU compiler transposes anew inside each of them.
        queries, keys, values = jax.lax.optimization_barrier(
            [
                self._heads(x, kernel).transpose(0, 2, 1, 3)  # [B, H, S, C]
                for kernel in (self.query, self.key, self.value)
            ]
        )
        scores = _scores("bhtc,bhsc->bhts", queries, keys)
        weights = self._weights(scores, bias, is_training)
        outputs = jnp.einsum("bhts,bhsc->bhtc", weights, values)
        return self._join(outputs.transpose(0, 2, 1, 3))

    def extend(
        self,
        x: Float[Array, "B M D"],
        past: tuple[BeamPosition, ...],
        bias: Float[Array, "H level"],
    ) -> tuple[Float[Array, "B M D"], tuple[BeamPosition, ...]]:
        """Attends from each beam's newest position to its past and itself.

        There are only a few positions and one query, so there are no B * M * H tiny
        matmuls: keys and values stay as the projections left them, all heads side by
        side, which fills a TPU's lanes, and sums over a head's columns are products
        with a matrix of zeros and ones.

        Args:
          past: Keys and values of the earlier positions, one entry a position,
            rows in the order of today's beams. The first may have a single row,
            the start token that all beams share.
          bias: Position bias of the newest query to all positions, itself last.
        """
        query, key, value = (
            linear(x, kernel.astype(self.dtype))
            for kernel in (self.query, self.key, self.value)
        )  # [B, M, joined]
        past = (*past, BeamPosition(key, value))
        of_head = jnp.repeat(jnp.eye(self.num_heads), self.head_dim, axis=0)
        wide = query.astype(jnp.float32)
        scores = [
            jnp.matmul(wide * at.keys, of_head, precision="highest")
            + bias[None, None, :, i]
            for i, at in enumerate(past)
        ]  # [B, M, H] each
        highest = functools.reduce(jnp.maximum, scores)
        weights = [jnp.exp(score - highest) for score in scores]
        total = sum(weights)
        spread = of_head.T.astype(self.dtype)
        outputs = sum(
            jnp.matmul((weight / total).astype(self.dtype), spread) * at.values
            for weight, at in zip(weights, past, strict=True)
        )
        return linear(outputs, self.out.astype(self.dtype)), past


class CrossAttention(_Attention):
    """Attends from each target position, or beam, to the encoder's output."""

    def __call__(
        self,
        x: Float[Array, "B T D"],
        encoded: Float[Array, "B S D"],
        bias: Float[Array, "B 1 1 S"],
        *,
        is_training: bool,
    ) -> Float[Array, "B T D"]:
        """Attends over whole sequences without computing keys or values.

        With W_q, W_k, W_v the parts of one head, and e the encoder's output:

            score = (x W_q) (e W_k)^T = (x W_q W_k^T) e^T
            output = softmax(score) (e W_v) = (softmax(score) e) W_v

        The right-hand sides cost T * H * D multiplications per encoder position
        and the left ones D * H * C, sixteen times as many at T = 4 and C = 64.
        """
        queries = self._heads(x, self.query)  # [B, T, H, C]
        wanted = jnp.einsum("bthc,dhc->bthd", queries, self._per_head(self.key))
        scores = _scores("bthd,bsd->bths", wanted, encoded)
        weights = self._weights(scores, bias, is_training)
        seen = jnp.einsum("bths,bsd->bthd", weights, encoded)
        return self._join(
            jnp.einsum("bthd,dhc->bthc", seen, self._per_head(self.value))
        )

    def init_memory(self, encoded: Float[Array, "B S D"]) -> Memory:
        """Computes a request's keys and values, once for all beams and levels."""
        keys = self._heads(encoded, self.key).transpose(0, 2, 3, 1)  # [B, H, C, S]
        values = self._heads(encoded, self.value).transpose(0, 2, 1, 3)
        return Memory(keys, values)

    def attend_memory(
        self, x: Float[Array, "B M D"], memory: Memory, bias: Float[Array, "B 1 1 S"]
    ) -> Float[Array, "B M D"]:
        """Attends from every beam to its request's memory."""
        queries = self._heads(x, self.query).transpose(0, 2, 1, 3)  # [B, H, M, C]
        scores = _scores("bhmc,bhcs->bhms", queries, memory.keys) + bias
        # The division waits until after the product with the values, whose last
        # axis is shorter than the keys'.
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        totals = weights.sum(-1, keepdims=True)
        outputs = jnp.einsum(
            "bhms,bhsc->bhmc", weights.astype(self.dtype), memory.values
        )
        outputs = (outputs / totals).astype(self.dtype)
        return self._join(outputs.transpose(0, 2, 1, 3))

    def _per_head(self, kernel: Float[Array, "D joined"]) -> Float[Array, "D H C"]:
        shape = (self.d_model, self.num_heads, self.head_dim)
        return kernel.astype(self.dtype).reshape(shape)


def _scores(axes: str, queries: Array, keys: Array) -> Float[Array, "*shape"]:
    """The product of queries and keys in float32, whatever dtype they come in."""
    return jnp.einsum(axes, queries, keys, preferred_element_type=jnp.float32)


def reorder_beams(
    past: tuple[BeamPosition, ...], parents: Int[Array, "B M"]
) -> tuple[BeamPosition, ...]:
    """Lets beam m continue the past of beam `parents[:, m]`.

    A position with a single row is shared by all beams and stays as it is.
    """
    index = parents[:, :, None]
    return jax.tree.map(
        lambda x: x if x.shape[1] == 1 else jnp.take_along_axis(x, index, axis=1), past
    )


def padding_bias(is_token: Bool[Array, "B S"]) -> Float[Array, "B 1 1 S"]:
    """Bias that hides padding keys."""
    return jnp.where(is_token, 0.0, MASKED)[:, None, None, :]


def causal_bias(length: int) -> Float[Array, "1 1 T T"]:
    """Bias that hides keys after the query."""
    is_seen = jnp.tril(jnp.ones((length, length), bool))
    return jnp.where(is_seen, 0.0, MASKED)[None, None]
