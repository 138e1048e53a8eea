"""What the command line tells every stage."""

import dataclasses
from pathlib import Path

from tiger_jax.workdir.remote import RemoteWorkdir


@dataclasses.dataclass(frozen=True)
class RunContext:
    """Where to work and what was brought along; the rest of a stage is gin's.

    Attributes:
        workdir: The work directory; each stage writes one folder in it.
        data_dir: A folder with a shop's raw data; the synthetic shop if absent.
        embeddings: Ready-made item embeddings (.npy), in items-file order.
        runs: Work directories to compare.
        remote: The store that `workdir` mirrors, if any.
    """

    workdir: Path
    data_dir: Path | None = None
    embeddings: Path | None = None
    runs: tuple[Path, ...] = ()
    remote: RemoteWorkdir | None = None
