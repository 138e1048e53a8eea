"""Fitting any quantizer to a corpus of embeddings, and measuring the result on it."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32

from tiger_jax.quantizers import quantizer as quantizers
from tiger_jax.quantizers.quantizer import Quantizer, QuantizerConfig
from tiger_jax.semantic_ids.quality import describe_codes

DrawFn = Callable[[int, int], Float32[np.ndarray, "B E"]]
"""(position, count) -> so many embeddings of an endless stream, from there on."""


@runtime_checkable
class ResumableConfig(Protocol):
    """A quantizer config whose fit goes on where it was killed."""

    def fit_in(
        self,
        folder: Path,
        embeddings: Float[np.ndarray, "N E"],
        *,
        seed: int,
        draw: DrawFn | None,
        checkpoint_seconds: float | None,
    ) -> Quantizer:
        """As `QuantizerConfig.fit`, with checkpoints in `folder`."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a quantizer is fitted to, and the items that it is measured on.

    Attributes:
        embeddings: What is fitted to: whole, or a sample of a stream.
        items: Iterates over the embeddings of all items that get codes, in blocks.
        draw: The stream that the sample is of, if there is one.
    """

    embeddings: Float[np.ndarray, "N E"]
    items: Callable[[], Iterator[Float[np.ndarray, "_ E"]]]
    categories: Sequence[str] | None = None
    draw: DrawFn | None = None

    def fit(
        self,
        config: QuantizerConfig,
        folder: Path,
        seed: int,
        checkpoint_seconds: float | None = None,
    ) -> Quantizer:
        """Fits a quantizer; one that can goes on from what a kill left in `folder`."""
        if isinstance(config, ResumableConfig):
            return config.fit_in(
                folder,
                self.embeddings,
                seed=seed,
                draw=self.draw,
                checkpoint_seconds=checkpoint_seconds,
            )
        return config.fit(self.embeddings, seed=seed)

    def measure(self, quantizer: Quantizer) -> dict[str, Any]:
        """The quality report: of the codes of all items.

        What codewords miss is measured on the items too, or on a stream's sample.
        """
        codes = np.concatenate([quantizer.encode(block) for block in self.items()])
        measured = next(self.items()), codes
        if self.draw is not None:
            measured = self.embeddings, quantizer.encode(self.embeddings)
        errors = quantizers.reconstruction_errors(quantizer, *measured)
        return describe_codes(
            codes,
            quantizer.codebook_sizes,
            categories=self.categories,
            reconstruction_errors=errors,
        )
