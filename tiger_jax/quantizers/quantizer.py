"""What every quantizer is: a config whose `fit` gives a frozen map to codewords.

A config such as `ResidualKMeans` holds what can be chosen; its `fit` looks at the
embeddings and returns a `Quantizer`, which encodes today's items and those that
join later alike.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

ENCODE_CHUNK = 16_384


@runtime_checkable
class Quantizer(Protocol):
    """A fitted map from embeddings to L codewords, coarse to fine."""

    kind: ClassVar[str]
    """Names the class in ``quantizer.json``."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codewords per level, L of them."""

    def encode(self, embeddings: Float[np.ndarray, "N E"]) -> Int32[np.ndarray, "N L"]:
        """The codewords of each embedding; works in chunks, whatever N is."""

    def reconstruct(
        self, codes: Int[np.ndarray, "N l"]
    ) -> Float32[np.ndarray, "N E"] | None:
        """What the first l codewords say about the embeddings; None if nothing."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything fitted, by names that are fit for files."""

    def settings(self) -> dict[str, Any]:
        """What `from_arrays` needs beside the arrays, as JSON."""

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> "Quantizer":
        """Builds the quantizer whose `to_arrays` and `settings` these are."""


class ChunkedQuantizer:
    """What most quantizers share; they say how a chunk is encoded."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        raise NotImplementedError

    def encode(self, embeddings: Float[np.ndarray, "N E"]) -> Int32[np.ndarray, "N L"]:
        codes = [np.empty((0, len(self.codebook_sizes)), np.int32)]
        codes += [self.encode_chunk(c).astype(np.int32) for c in chunks(embeddings)]
        return np.concatenate(codes)

    def encode_chunk(self, chunk: Float32[np.ndarray, "B E"]) -> Int[np.ndarray, "B L"]:
        raise NotImplementedError

    def reconstruct(
        self, codes: Int[np.ndarray, "N l"]
    ) -> Float32[np.ndarray, "N E"] | None:
        return None

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}

    def settings(self) -> dict[str, Any]:
        return {"codebook_sizes": list(self.codebook_sizes)}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> Any:
        return cls(**arrays)


@runtime_checkable
class SizedConfig(Protocol):
    """A quantizer config whose codebooks are as large as the shop allows."""

    def resolved(self, embeddings: Iterable[Float[np.ndarray, " E"]]) -> Any:
        """The same config with the sizes that were left open."""


@runtime_checkable
class QuantizerConfig(Protocol):
    """What can be chosen about a quantizer."""

    def fit(self, embeddings: Float[np.ndarray, "N E"], *, seed: int) -> Quantizer:
        """Fits the quantizer; the same embeddings and seed give the same one."""


def usual_codebook_size(
    embeddings: Iterable[Float[np.ndarray, " E"]], *, largest: int = 256
) -> int:
    """The largest power of two with eight distinct items a codeword, or `largest`.

    With fewer, codewords stay unused. Reads no more rows than it needs.

    Examples:
        >>> usual_codebook_size(np.eye(300)), usual_codebook_size(np.ones((300, 2)))
        (32, 2)
    """
    distinct = count_distinct_rows(embeddings, stop_at=8 * largest)
    return codebook_size_for(distinct, largest=largest)


def codebook_size_for(distinct_items: int, *, largest: int) -> int:
    """The same, where the number of distinct items is known."""
    if distinct_items >= 8 * largest:
        return largest
    return 1 << max(distinct_items // 8, 2).bit_length() - 1


def count_distinct_rows(
    embeddings: Iterable[Float[np.ndarray, " E"]], *, stop_at: int
) -> int:
    """Number of distinct rows, or `stop_at` as soon as there are so many."""
    distinct: set[int] = set()
    for row in embeddings:
        distinct.add(hash(np.asarray(row).tobytes()))
        if len(distinct) >= stop_at:
            break
    return len(distinct)


def row_chunks(num_rows: int) -> Iterator[slice]:
    """Cuts rows into chunks."""
    return (slice(s, s + ENCODE_CHUNK) for s in range(0, num_rows, ENCODE_CHUNK))


def chunks(
    embeddings: Float[np.ndarray, "N E"],
) -> Iterator[Float32[np.ndarray, "B E"]]:
    """Cuts embeddings (perhaps mapped from a file) into float32 chunks."""
    for rows in row_chunks(len(embeddings)):
        yield np.asarray(embeddings[rows], np.float32)


def reconstruction_errors(
    quantizer: Quantizer,
    embeddings: Float[np.ndarray, "N E"],
    codes: Int[np.ndarray, "N L"],
) -> list[float] | None:
    """The fraction of the embeddings' variance that l codewords miss, l = 1 … L.

    Returns:
        sum |x - x_l|^2 / sum |x - mean|^2 for each l; None if the quantizer's
        codewords say nothing about the embedding.
    """
    mean = np.mean(embeddings, axis=0, dtype=np.float64).astype(np.float32)
    num_levels = codes.shape[1]
    missed, variance = np.zeros(num_levels), 0.0
    for rows in row_chunks(len(codes)):
        chunk = np.asarray(embeddings[rows], np.float32)
        variance += float(((chunk - mean) ** 2).sum(dtype=np.float64))
        for level in range(num_levels):
            guess = quantizer.reconstruct(codes[rows, : level + 1])
            if guess is None:
                return None
            missed[level] += ((chunk - guess) ** 2).sum(dtype=np.float64)
    return [float(m / variance) if variance else 0.0 for m in missed]
