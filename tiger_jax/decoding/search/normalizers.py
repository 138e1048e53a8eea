"""The logarithm of a softmax's denominator."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Sums of exponentials between these lost nothing to float32's range: the smallest
# terms that matter to a sum of 1e-30 are far above the smallest normal number.
_SMALLEST, _LARGEST = 1e-30, 1e30


def log_sum_exp(logits: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """Log of the summed exponentials over the last axis.

    The usual way subtracts the maximum first, one more pass over the logits. On CPUs
    that pass is a quarter of a wide codebook's search step, so there the plain sum
    comes first, and the usual way is taken only if one of the sums left the range in
    which it is as accurate. Accelerators would wait for such a decision; they always
    take the usual way.
    """
    return jax.lax.platform_dependent(logits, cpu=_plain_first, default=_by_maximum)


def _by_maximum(logits: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    return jax.nn.logsumexp(logits, axis=-1)


def _plain_first(logits: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
    sums = jnp.exp(logits).sum(-1)
    return jax.lax.cond(
        _is_in_range(sums).all(),
        lambda sums, logits: jnp.log(sums),
        lambda sums, logits: _by_maximum(logits),
        sums,
        logits,
    )


def _is_in_range(sums: Float[Array, "*batch"]) -> Bool[Array, "*batch"]:
    return (sums > _SMALLEST) & (sums < _LARGEST)
