"""Integer arrays in fewer bytes than int32, read one look-up at a time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Integer

# Nodes that share one plainly stored number.
BLOCK = 16


def read(array: Array, index: Int[Array, "*n"]) -> Array:
    """Looks up without a bounds check: the trie's own numbers are never outside."""
    return array.at[index].get(mode="promise_in_bounds")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedNumbers:
    """Numbers in any order: 3 bytes each if all are below 2^24, 4 otherwise.

    Attributes:
        low: uint16 [n], the lower bits, beside `high`; or int32 [n], alone.
        high: uint8 [n], or None.
    """

    low: Any
    high: Any

    @classmethod
    def build(
        cls, numbers: Integer[np.ndarray, " n"], *, upper_bound: int
    ) -> "PackedNumbers":
        """Packs numbers from 0 to `upper_bound`, which alone decides the form."""
        if upper_bound >= 1 << 24:
            return cls(jnp.asarray(numbers, jnp.int32), None)
        low = jnp.asarray(numbers.astype(np.uint16))
        return cls(low, jnp.asarray((numbers >> 16).astype(np.uint8)))

    def __getitem__(self, index: Int[Array, "*n"]) -> Int32[Array, "*n"]:
        low = read(self.low, index).astype(jnp.int32)
        if self.high is None:
            return low
        return low + (read(self.high, index).astype(jnp.int32) << 16)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RisingNumbers:
    """Numbers that never fall: one plain in 16, the rest as the distance to it.

    Attributes:
        anchors: int32 [n / 16], or [n] when `deltas` is None.
        deltas: uint8 or uint16 [n], or None.
    """

    anchors: Any
    deltas: Any

    @classmethod
    def build(
        cls, numbers: Int32[np.ndarray, " n"], *, delta_bits: int
    ) -> "RisingNumbers":
        """Packs the numbers; `delta_bits` is 8, 16, or 32 for plain numbers."""
        if delta_bits == 32:
            return cls(jnp.asarray(numbers), None)
        anchors = np.ascontiguousarray(numbers[::BLOCK])
        deltas = np.empty(len(numbers), {8: np.uint8, 16: np.uint16}[delta_bits])
        whole = len(numbers) // BLOCK
        # By blocks of rows, so that no array of int32 as long as `numbers` is made.
        rows = numbers[: whole * BLOCK].reshape(whole, BLOCK)
        out = deltas[: whole * BLOCK].reshape(whole, BLOCK)
        for start in range(0, whole, 1 << 16):
            part = slice(start, start + (1 << 16))
            out[part] = rows[part] - anchors[:whole][part, None]
        deltas[whole * BLOCK :] = numbers[whole * BLOCK :] - anchors[-1]
        return cls(jnp.asarray(anchors), jnp.asarray(deltas))

    def __getitem__(self, index: Int[Array, "*n"]) -> Int32[Array, "*n"]:
        if self.deltas is None:
            return read(self.anchors, index)
        return read(self.anchors, index // BLOCK) + read(self.deltas, index)


def largest_delta(numbers: Int32[np.ndarray, " n"]) -> int:
    """The largest distance of a number to its block's first."""
    last = np.minimum(np.arange(len(numbers[::BLOCK])) * BLOCK + BLOCK, len(numbers))
    return int((numbers[last - 1] - numbers[::BLOCK]).max())
