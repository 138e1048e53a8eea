"""Operations whose gradients or random numbers are written for speed, and plain ones.

They decide how fast a CPU trains; what each gains stands with it. The mathematics is
that of the plain forms, which the environment variable ``TIGER_PLAIN_OPS=1`` puts in
their place: to compare, or where a compiler does better by itself. Then sums come in
another order, and dropout draws other masks.
"""

import functools
import os

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt32

IS_PLAIN = os.environ.get("TIGER_PLAIN_OPS", "") not in ("", "0")


@jax.custom_vjp
def linear(
    x: Float[Array, "*batch fan_in"], kernel: Float[Array, "fan_in fan_out"]
) -> Float[Array, "*batch fan_out"]:
    """Computes ``x @ kernel``.

    The kernel's gradient x^T g contracts over the rows of both factors, and a
    compiler without such a product (XLA's on CPU) first transposes the left one.
    Differentiation puts either there, be it the 1024 hidden units of an MLP whose
    output has 128. Here the narrower factor goes left, and the product is
    (g^T x)^T where that is `g`: on CPU a training step takes two thirds of the
    time. The numbers are the same up to the order of additions.
    """
    return x @ kernel


def _linear_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _linear_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    # The barriers keep the compiler from undoing this: from computing x and g once
    # more, transposed, and from merging the last transposition into the product.
    x, g = jax.lax.optimization_barrier((x, g))
    rows = x.reshape(-1, x.shape[-1])
    g_rows = g.reshape(-1, g.shape[-1])
    contract_rows = (((0,), (0,)), ((), ()))
    if x.shape[-1] <= g.shape[-1]:
        d_kernel = jax.lax.dot_general(rows, g_rows, contract_rows)
    else:
        transposed = jax.lax.dot_general(g_rows, rows, contract_rows)
        d_kernel = jax.lax.optimization_barrier(transposed).T
    return g @ kernel.T, d_kernel


linear.defvjp(_linear_forward, _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def dropout(
    x: Float[Array, "*shape"], rate: float, key: Array
) -> Float[Array, "*shape"]:
    """Zeroes elements independently with probability `rate`, scales up the rest.

    The random bits are a hash of (key, element index), not `jax.random.bits`:
    a dozen integer operations that XLA fuses into the multiplication, where
    Threefry costs more than the layer it protects. An element is kept if its
    32 bits fall below a threshold, and the scale is the exact inverse of the
    share of uint32 values below it, so the expectation is x. The mask depends
    on no sharding: a mesh of any shape drops the same elements. The gradient is
    the same function of the cotangent, so nothing but the key is stored.
    """
    is_kept = random_bits(key, x.shape) < jnp.uint32(_keep_below(rate))
    return jnp.where(is_kept, x * (2**32 / _keep_below(rate)), 0).astype(x.dtype)


def _dropout_forward(x: Array, rate: float, key: Array) -> tuple[Array, Array]:
    return dropout(x, rate, key), key


def _dropout_backward(rate: float, key: Array, g: Array) -> tuple[Array, None]:
    return dropout(g, rate, key), None


dropout.defvjp(_dropout_forward, _dropout_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def relu_dropout(
    x: Float[Array, "*shape"], rate: float, key: Array
) -> Float[Array, "*shape"]:
    """Computes ``dropout(relu(x), rate, key)`` and stores only its output.

    A unit passes its gradient exactly where that output is positive, so neither
    the input, nor the mask, nor the ReLU's sign is needed again.
    """
    return dropout(nn.relu(x), rate, key)


def _relu_dropout_forward(x: Array, rate: float, key: Array) -> tuple[Array, Array]:
    y = relu_dropout(x, rate, key)
    return y, y


def _relu_dropout_backward(rate: float, y: Array, g: Array) -> tuple[Array, None]:
    scaled = g * (2**32 / _keep_below(rate))
    return jnp.where(y > 0, scaled, 0).astype(g.dtype), None


relu_dropout.defvjp(_relu_dropout_forward, _relu_dropout_backward)


def _keep_below(rate: float) -> int:
    return min(round((1.0 - rate) * 2**32), 2**32 - 1)


def random_bits(key: Array, shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    """Hashes (key, element index) to 32 bits whose high bits are random.

    Two rounds of multiply and xor-shift with full avalanche over the index, one
    word of the key added before each, so that two keys give streams that are
    not shifted copies of each other. Not for cryptography; the low 16 bits are
    weaker, as the last xor-shift is left out.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    x = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        x += index * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    x += first
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x += second
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def repeat_over_batch(
    bias: Float[Array, "H T S"], batch_size: int
) -> Float[Array, "B H T S"]:
    """Repeats a bias for every row of a batch.

    Its gradient is a sum over the batch, here written as a product with ones, for
    which compilers have a fast kernel everywhere; on CPU, XLA's own sum over a
    leading axis is twenty times slower.
    """
    return jnp.broadcast_to(bias[None], (batch_size, *bias.shape))


def _repeat_forward(bias: Array, batch_size: int) -> tuple[Array, None]:
    return repeat_over_batch(bias, batch_size), None


def _repeat_backward(batch_size: int, saved: None, g: Array) -> tuple[Array]:
    del saved
    ones = jnp.ones((1, batch_size), g.dtype)
    return ((ones @ g.reshape(batch_size, -1)).reshape(g.shape[1:]),)


repeat_over_batch.defvjp(_repeat_forward, _repeat_backward)


def _plain_dropout(
    x: Float[Array, "*shape"], rate: float, key: Array
) -> Float[Array, "*shape"]:
    is_kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(is_kept, x / (1.0 - rate), 0).astype(x.dtype)


if IS_PLAIN:
    linear = jnp.matmul  # type: ignore[assignment]
    repeat_over_batch = repeat_over_batch.__wrapped__  # type: ignore[attr-defined]
    dropout = _plain_dropout  # type: ignore[assignment]
    relu_dropout = relu_dropout.__wrapped__  # type: ignore[attr-defined]
