"""What a work directory holds for a report; any part of it may be missing."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from tiger_jax.data.prepared import PreparedData
from tiger_jax.evaluation.record import DETAILS, PREDICTIONS, read_record
from tiger_jax.reporting.result_pictures import Curve
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stage_table import MADE_BY, STAGES
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import load_arrays
from tiger_jax.workdir.reading import reading

# In the order of the pipeline.
FOLDERS = tuple(name for name in MADE_BY if name in STAGES["report"].reads)
NUM_SAMPLES_READ = 2000


@dataclasses.dataclass(frozen=True)
class WorkdirParts:
    """Everything a report can show; None or empty where a stage hasn't run.

    Attributes:
        manifests: Of the finished folders, by name, in the pipeline's order.
        reconstruction_errors: What the quantizer missed, by level, if it says so.
        predictions: Some lines of ``evaluation/predictions.jsonl``, at random.
        vectors: The items' embeddings.
    """

    manifests: dict[str, artifacts.Manifest]
    data: PreparedData | None = None
    table: SemanticIdTable | None = None
    reconstruction_errors: Sequence[float] = ()
    rqvae_curves: dict[str, Curve] = dataclasses.field(default_factory=dict)
    recommender_curves: dict[str, Curve] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Any] | None = None
    details: dict[str, Any] | None = None
    fusion: dict[str, Any] | None = None
    predictions: Sequence[dict[str, Any]] = ()
    vectors: Float32[np.ndarray, "N E"] | None = None


def finished_folders(workdir: Path) -> tuple[str, ...]:
    """Names of the folders that a stage has finished, in the pipeline's order."""
    return tuple(
        name for name in FOLDERS if (workdir / name / artifacts.MANIFEST).is_file()
    )


def read_parts(
    workdir: Path, manifests: dict[str, artifacts.Manifest], *, seed: int
) -> WorkdirParts:
    """Reads the folders that `manifests` names; InputError if a file is damaged."""
    folders = {name: workdir / name for name in manifests}
    ids = folders.get("semantic_ids")
    with reading(workdir, "delete the folder of that file and run its stage again"):
        return WorkdirParts(
            manifests=manifests,
            data=PreparedData.load(folders["data"]) if "data" in folders else None,
            table=SemanticIdTable.load(ids) if ids is not None else None,
            reconstruction_errors=_read_errors(folders.get("rqvae")),
            rqvae_curves=_read_curves(folders.get("rqvae")),
            recommender_curves=_read_curves(folders.get("recommender")),
            metrics=read_record(folders.get("evaluation")),
            details=read_record(folders.get("evaluation"), DETAILS),
            fusion=read_record(folders.get("fusion")),
            predictions=_read_predictions(folders.get("evaluation"), seed),
            vectors=_read_vectors(folders.get("embeddings")),
        )


def _read_vectors(folder: Path | None) -> Float32[np.ndarray, "N E"] | None:
    return None if folder is None else load_arrays(folder, ["embeddings"])["embeddings"]


def _read_errors(folder: Path | None) -> list[float]:
    levels = (read_record(folder, "quality.json") or {"levels": []})["levels"]
    errors = [level["reconstruction_error"] for level in levels]
    return [] if None in errors else errors


def _read_curves(folder: Path | None) -> dict[str, Curve]:
    if folder is None or not (folder / "metrics.jsonl").is_file():
        return {}
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return read_curves([json.loads(line) for line in text.splitlines() if line])


def read_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Gathers each metric's (steps, values) from lines that hold a few each.

    A line that repeats a step (written again after a resumed run) replaces the
    earlier one.
    """
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and is_number and "step" in row:
                values.setdefault(name, {})[int(row["step"])] = float(value)
    return {
        name: (sorted(by_step), [by_step[s] for s in sorted(by_step)])
        for name, by_step in values.items()
    }


def _read_predictions(folder: Path | None, seed: int) -> list[dict[str, Any]]:
    """Takes a random part of the lines: one per user may be too many."""
    if folder is None or not (folder / PREDICTIONS).is_file():
        return []
    with open(folder / PREDICTIONS, "rb") as file:
        starts = np.cumsum([0] + [len(line) for line in file])[:-1]
        chosen = np.random.default_rng(seed).permutation(len(starts))
        lines = []
        for number in chosen[:NUM_SAMPLES_READ]:
            file.seek(int(starts[number]))
            lines.append(json.loads(file.readline()))
    return lines
