"""Residual k-means, and flat VQ, which is its first level alone."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Float32, Int

from tiger_jax.config import config
from tiger_jax.models.residual_quantizer import nearest_codewords
from tiger_jax.progress import say
from tiger_jax.quantizers.kmeans import fit_kmeans
from tiger_jax.quantizers.quantizer import (
    ChunkedQuantizer,
    codebook_size_for,
    count_distinct_rows,
    row_chunks,
    usual_codebook_size,
)

MAX_CODEWORDS = 2048
MAX_MEMBERS = 64  # items to a codeword, on average, that a collision level tells apart


@dataclasses.dataclass(frozen=True, eq=False)
class ResidualCodebooks(ChunkedQuantizer):
    """Quantizes to a sum of codewords, each the nearest to what is left over.

    There is one codebook per level, coarse to fine; one level is flat VQ.
    """

    kind: ClassVar[str] = "residual_codebooks"
    codebooks: tuple[Float32[np.ndarray, "_ E"], ...]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return tuple(len(codebook) for codebook in self.codebooks)

    def encode_chunk(self, chunk: Float32[np.ndarray, "B E"]) -> Int[np.ndarray, "B L"]:
        residual, levels = chunk, []
        for codebook in self.codebooks:
            codewords = nearest_codewords(residual, codebook)
            residual = residual - codebook[codewords]
            levels.append(codewords)
        return np.column_stack(levels)

    def reconstruct(self, codes: Int[np.ndarray, "N l"]) -> Float32[np.ndarray, "N E"]:
        parts = [self.codebooks[l][codes[:, l]] for l in range(codes.shape[1])]
        return np.sum(parts, axis=0, dtype=np.float32)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {f"codebook_{l}": book for l, book in enumerate(self.codebooks)}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> "ResidualCodebooks":
        levels = range(len(settings["codebook_sizes"]))
        return cls(tuple(arrays[f"codebook_{l}"] for l in levels))


def usual_codebook_sizes(
    embeddings: Iterable[Float[np.ndarray, " E"]],
) -> tuple[int, ...]:
    """What `ResidualKMeans` takes for a shop. Reads no more rows than it needs.

    Examples:
        >>> usual_codebook_sizes(np.eye(300)), usual_codebook_sizes(np.zeros((300, 2)))
        ((32,), (2,))
    """
    most = MAX_MEMBERS * MAX_CODEWORDS
    distinct = count_distinct_rows(embeddings, stop_at=most + 1)
    if distinct > most:
        return MAX_CODEWORDS, MAX_CODEWORDS
    return (codebook_size_for(distinct, largest=MAX_CODEWORDS),)


@config("quantizers")
class ResidualKMeans:
    """k-means (Lloyd) on the embeddings, then on what it leaves over, and so on.

    Attributes:
        codebook_sizes: Empty is as few levels as there can be, since each is one more
            choice that the generator can get wrong: one of up to 2,048 codewords, with
            eight distinct items to a codeword or more; two of 2,048 where one would
            leave more than 64 to a codeword.
    """

    codebook_sizes: tuple[int, ...] = ()
    max_iterations: int = 25

    def resolved(
        self, embeddings: Iterable[Float[np.ndarray, " E"]]
    ) -> "ResidualKMeans":
        sizes = self.codebook_sizes or usual_codebook_sizes(embeddings)
        return dataclasses.replace(self, codebook_sizes=sizes)

    def fit(
        self, embeddings: Float[np.ndarray, "N E"], *, seed: int = 0
    ) -> ResidualCodebooks:
        residual = np.array(embeddings, np.float32)
        codebooks = []
        sizes = self.resolved(embeddings).codebook_sizes
        for level, size in enumerate(sizes):
            say(f"k-means: level {level}, {size} codewords, {len(residual):,} items")
            codebook = fit_kmeans(
                residual, size, seed=seed + level, max_iterations=self.max_iterations
            )
            codebooks.append(codebook)
            for rows in row_chunks(len(residual)):
                residual[rows] -= codebook[nearest_codewords(residual[rows], codebook)]
        return ResidualCodebooks(tuple(codebooks))


@config("quantizers")
class FlatVq:
    """One codebook: k-means, and the collision level tells its members apart.

    Attributes:
        codebook_size: None is 2,048, or less in a small shop.
    """

    codebook_size: int | None = None
    max_iterations: int = 25

    def resolved(self, embeddings: Iterable[Float[np.ndarray, " E"]]) -> "FlatVq":
        size = self.codebook_size or usual_codebook_size(
            embeddings, largest=MAX_CODEWORDS
        )
        return dataclasses.replace(self, codebook_size=size)

    def fit(
        self, embeddings: Float[np.ndarray, "N E"], *, seed: int = 0
    ) -> ResidualCodebooks:
        size = self.resolved(embeddings).codebook_size
        assert size is not None
        return ResidualKMeans((size,), self.max_iterations).fit(embeddings, seed=seed)
