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
        arrays: Arrays with the leading axes [M B]: M microbatches of B examples.
        buckets: The bucket of each microbatch.
        num_examples: Examples in it, padding excluded.
        num_tokens: Tokens in them, padding excluded.
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

    ``next`` gives an update: `arrays` with the leading axes [M B], ``buckets`` [M],
    and what is counted in it. `make_batch` turns one microbatch's arrays into the
    loss's batch, inside the compiled step; `constants` live on the devices.
    """

    @property
    def constants(self) -> PyTree: ...

    @property
    def buckets(self) -> tuple[int, ...]: ...

    def __next__(self) -> Update: ...

    def make_batch(self, constants: PyTree, arrays: PyTree, bucket: int) -> PyTree: ...

    def save(self, path: Any) -> None: ...

    def restore(self, path: Any) -> None: ...
