"""What the training loop takes: updates, and the inputs that draw them."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Update:
    """The host's part of one update: what the compiled step is given.

    Attributes:
        arrays: With the leading axes [M B]: M microbatches of B examples.
        num_examples: Padding excluded, as in `num_tokens`.
        is_global: Every process holds the whole update, not only its own share.
    """

    arrays: dict[str, np.ndarray]
    buckets: Int32[np.ndarray, " M"]
    num_examples: int
    num_tokens: int
    is_global: bool


@runtime_checkable
class TrainingInput(Protocol):
    """What the loop needs of an input.

    `make_batch` turns one microbatch's arrays into the loss's batch, inside the
    compiled step; `constants` live on the devices.
    """

    @property
    def constants(self) -> PyTree: ...

    @property
    def buckets(self) -> tuple[int, ...]: ...

    def __next__(self) -> Update: ...

    def make_batch(self, constants: PyTree, arrays: PyTree, bucket: int) -> PyTree: ...

    def save(self, path: Any) -> None: ...

    def restore(self, path: Any) -> None: ...
