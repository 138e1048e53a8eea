"""The pipeline from Python: what `run.py` does, and what came out as objects."""

import ast
import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tiger_jax import cli
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation.record import read_record
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.seeds import parse_seeds
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stage_table import MADE_BY
from tiger_jax.workdir import artifacts


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A work directory, and what its stages have made so far.

    Attributes:
        workdir: The folder that holds one folder per finished stage.
    """

    workdir: Path

    @cached_property
    def manifests(self) -> dict[str, artifacts.Manifest]:
        """What made each finished folder, by the folder's name."""
        return {
            name: artifacts.load_manifest(self.workdir / name, verify=False)
            for name in MADE_BY
            if (self.workdir / name / artifacts.MANIFEST).is_file()
        }

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What `evaluate` measured, as in ``evaluation/metrics.json``."""
        return read_record(self._folder("evaluation")) or {}

    @cached_property
    def data(self) -> PreparedData:
        """Catalogue, histories and splits, by number."""
        return PreparedData.load(self._folder("data"))

    @cached_property
    def semantic_ids(self) -> SemanticIdTable:
        """Each item's codewords."""
        return SemanticIdTable.load(self._folder("semantic_ids"))

    @property
    def report(self) -> Path:
        """The page to open in a browser."""
        return self._folder("report") / "index.html"

    @cached_property
    def recommender(self) -> Recommender:
        """The recommender as it was trained; `export` makes a bundle of it."""
        return Recommender.of_workdir(self.workdir)

    def _folder(self, name: str) -> Path:
        artifacts.load_manifest(self.workdir / name, verify=False)
        return self.workdir / name


def run(
    stages: str | Sequence[str] = (),
    *,
    workdir: str | os.PathLike[str] = "runs/demo",
    data_dir: str | os.PathLike[str] | None = None,
    embeddings: str | os.PathLike[str] | None = None,
    gin_files: str | Sequence[str] = (),
    bindings: Mapping[str, Any] | None = None,
    runs: Sequence[str | os.PathLike[str]] = (),
    seeds: Sequence[int] = (),
) -> RunResult:
    """Runs stages as the command line does: what is finished is skipped.

    Gin's bindings are one set for the whole process: these replace what was bound.

    Args:
        stages: Names of stages, in order; empty: the whole pipeline.
        workdir: Where the stages write.
        data_dir: A folder with a shop; a generated one if None.
        embeddings: Ready-made vectors (.npy), in items-file order.
        gin_files: Paths, or names under `gin_configs/`; empty: the command line's.
        bindings: Values by gin name, as in ``{"loop.LoopConfig.total_steps": 500}``.
            A text that begins with @ or % is gin's reference or macro.
        runs: Work directories for the stage `compare`.
        seeds: Run under each of these, in ``WORKDIR/seeds/N``.

    Raises:
        InputError: A stage, path, gin file or binding is not what it can be, or a stage
            refuses its input.
        LockedError: Another process works in the work directory.
    """
    chosen = cli.choose_stages([stages] if isinstance(stages, str) else stages)
    context = cli.make_context(workdir, data_dir, embeddings, runs)
    files = [gin_files] if isinstance(gin_files, str) else gin_files
    lines = [f"{name} = {_literal(name, v)}" for name, v in (bindings or {}).items()]
    cli.run_stages(
        chosen, context, [*files], lines, parse_seeds(",".join(map(str, seeds)))
    )
    return RunResult(context.workdir)


def _literal(name: str, value: Any) -> str:
    """A value as gin reads it."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and value[:1] in ("@", "%"):
        return value
    try:
        if ast.literal_eval(repr(value)) == value:
            return repr(value)
    except (ValueError, SyntaxError):
        pass
    raise InputError(
        f"bindings[{name!r}] is {value!r}, which gin has no writing for: give numbers, "
        "texts, lists, tuples and dicts of them, or a reference such as '@Name()'"
    )
