"""Quantizers that learn nothing: the paper's LSH and random codes (section 4.3)."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float32, Int, UInt64

from tiger_jax.config import config
from tiger_jax.quantizers.quantizer import ChunkedQuantizer, usual_codebook_size


@dataclasses.dataclass(frozen=True, eq=False)
class Hyperplanes(ChunkedQuantizer):
    """Reads each codeword off the sides of hyperplanes an embedding lies on.

    Attributes:
        center: The point all hyperplanes go through.
        normals: Their directions, H of them for each of L levels.
    """

    kind: ClassVar[str] = "hyperplanes"
    center: Float32[np.ndarray, " E"]
    normals: Float32[np.ndarray, "L H E"]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        num_levels, num_hyperplanes, _ = self.normals.shape
        return (2**num_hyperplanes,) * num_levels

    def encode_chunk(self, chunk: Float32[np.ndarray, "B E"]) -> Int[np.ndarray, "B L"]:
        weights = 2 ** np.arange(self.normals.shape[1])[::-1]
        sides = np.einsum(
            "ne,lhe->nlh", chunk - self.center, self.normals, optimize=True
        )
        return (sides > 0) @ weights


@config("hash_quantizers")
class Lsh:
    """Locality-sensitive hashing by random hyperplanes (the paper's section 4.3).

    Attributes:
        num_levels: Codewords per item.
        num_hyperplanes: Bits per codeword: a codebook has two to that power. None are
            8, or less in a small shop.
        center: Let the hyperplanes go through the embeddings' mean instead of the
            origin. Text embeddings share a large common part, and hyperplanes
            through the origin leave most items on one side.
    """

    num_levels: int = 4
    num_hyperplanes: int | None = None
    center: bool = True

    def resolved(self, embeddings: Iterable[Float[np.ndarray, " E"]]) -> "Lsh":
        bits = self.num_hyperplanes or usual_codebook_size(embeddings).bit_length() - 1
        return dataclasses.replace(self, num_hyperplanes=bits)

    def fit(
        self, embeddings: Float[np.ndarray, "N E"], *, seed: int = 0
    ) -> Hyperplanes:
        width = embeddings.shape[1]
        center = np.zeros(width, np.float32)
        if self.center:
            center = np.mean(embeddings, axis=0, dtype=np.float64).astype(np.float32)
        rng = np.random.default_rng(seed)
        bits = self.resolved(embeddings).num_hyperplanes
        shape = (self.num_levels, bits, width)
        return Hyperplanes(center, rng.standard_normal(shape).astype(np.float32))


@dataclasses.dataclass(frozen=True, eq=False)
class HashedCodes(ChunkedQuantizer):
    """Codewords from a hash of the embedding: random, yet always the same.

    The hash is multiply-add over the embedding's bits, then splitmix64's finish.
    Only equal embeddings share their codewords by more than chance.

    Attributes:
        multipliers: One odd 64-bit number per dimension.
    """

    kind: ClassVar[str] = "hashed_codes"
    multipliers: UInt64[np.ndarray, " E"]
    sizes: tuple[int, ...]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.sizes

    def encode_chunk(self, chunk: Float32[np.ndarray, "B E"]) -> Int[np.ndarray, "B L"]:
        # Adding zero makes -0.0 the same as 0.0.
        bits = np.ascontiguousarray(chunk + 0).view(np.uint32).astype(np.uint64)
        hashed = (bits * self.multipliers).sum(axis=1, dtype=np.uint64)
        levels = []
        for size in self.sizes:
            hashed = hashed + np.uint64(0x9E3779B97F4A7C15)
            # The high half, whose remainder is uniform to 1 part in 2^32 / K.
            levels.append((_finish_splitmix64(hashed) >> np.uint64(32)) % size)
        return np.column_stack(levels).astype(np.int32)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> "HashedCodes":
        return cls(arrays["multipliers"], tuple(settings["codebook_sizes"]))


@config("hash_quantizers")
class RandomCodes:
    """Codewords that say nothing about the item: the paper's random baseline."""

    codebook_sizes: tuple[int, ...] = ()  # 4 x 255, or less in a small shop

    def resolved(self, embeddings: Iterable[Float[np.ndarray, " E"]]) -> "RandomCodes":
        sizes = (
            self.codebook_sizes or (usual_codebook_size(embeddings, largest=255),) * 4
        )
        return dataclasses.replace(self, codebook_sizes=sizes)

    def fit(
        self, embeddings: Float[np.ndarray, "N E"], *, seed: int = 0
    ) -> HashedCodes:
        rng = np.random.default_rng(seed)
        draws = rng.integers(2**64, size=embeddings.shape[1], dtype=np.uint64)
        sizes = self.resolved(embeddings).codebook_sizes
        return HashedCodes(draws | np.uint64(1), sizes)


def _finish_splitmix64(x: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
