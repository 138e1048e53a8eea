"""A trained RQ-VAE as a quantizer."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float32, Int

from tiger_jax.models.rqvae import RqVae, RqVaeConfig
from tiger_jax.quantizers.quantizer import ChunkedQuantizer, row_chunks


@dataclasses.dataclass(frozen=True, eq=False)
class RqVaeQuantizer(ChunkedQuantizer):
    """Frozen: encodes items of today and of later alike.

    Attributes:
        params: Without their axis names.
        mean: Subtracted from each embedding before the network sees it.
        scale: Divided by after that.
    """

    kind: ClassVar[str] = "rqvae"
    config: RqVaeConfig
    params: Mapping[str, Any]
    mean: Float32[np.ndarray, " E"]
    scale: Float32[np.ndarray, " E"]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.config.codebook_sizes

    @property
    def model(self) -> RqVae:
        return RqVae(self.config, len(self.mean))

    def encode_chunk(self, chunk: Float32[np.ndarray, "B E"]) -> Int[np.ndarray, "B L"]:
        padded = _pad((chunk - self.mean) / self.scale)
        found = np.asarray(apply(self.model, "quantize", self.params, padded)[0])
        return found[: len(chunk)]

    def reconstruct(self, codes: Int[np.ndarray, "N l"]) -> Float32[np.ndarray, "N E"]:
        found = [np.empty((0, len(self.mean)), np.float32)]
        for chunk in (codes[rows] for rows in row_chunks(len(codes))):
            guess = apply(self.model, "reconstruct", self.params, _pad(chunk))
            found.append(np.asarray(guess)[: len(chunk)] * self.scale + self.mean)
        return np.concatenate(found)

    def to_arrays(self) -> dict[str, np.ndarray]:
        flat = traverse_util.flatten_dict(self.params, sep=".")
        arrays = {name: np.asarray(array) for name, array in flat.items()}
        return {"mean": self.mean, "scale": self.scale, **arrays}

    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self.config)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
    ) -> "RqVaeQuantizer":
        flat = {name: array for name, array in arrays.items() if "." in name}
        params = traverse_util.unflatten_dict(flat, sep=".")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
        }
        return cls(RqVaeConfig(**values), params, arrays["mean"], arrays["scale"])


def _pad(rows: np.ndarray) -> np.ndarray:
    # To a power of two, so that few shapes are compiled however many rows come.
    size = max(1 << (len(rows) - 1).bit_length(), 8)
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(model: RqVae, method: str, params: Mapping[str, Any], rows: Any) -> Any:
    """Calls a method of the model on a batch of rows."""
    return model.apply({"params": params}, rows, method=method)
