"""The rows of `benchmarks.scale`: how they are kept, and what is asked of them."""

import dataclasses
import os
import platform
from pathlib import Path

import numpy as np

from benchmarks import lib
from benchmarks.lib import Row
from tiger_jax.workdir.provenance import code_version

# Below, a stage's fixed cost hides how it grows.
FIT_FROM = 100_000
# What the rows call the steps of `assign`.
ASSIGN_STEPS = {
    "semantic_ids, encode": "encode",
    "semantic_ids, collision level": "collision level",
    "semantic_ids, write": "write Semantic IDs",
}
# How the steps that work on a catalogue's texts begin: their rows are items.
EMBED_STEPS = ("distinct", "embeddings", "embed, ")


@dataclasses.dataclass(frozen=True)
class MeasuredRows:
    """The file of rows; those of other commits count as measured if `any_commit`."""

    path: Path
    any_commit: bool

    def has(self, part: str, stage: str, size: int) -> bool:
        return any(
            (row["part"], row["stage"], row["rows"]) == (part, stage, size)
            and (self.any_commit or row["commit"] == code_version())
            for row in lib.read_rows(self.path)
        )

    def add(self, row: Row) -> None:
        machine = {"cores": os.cpu_count(), "machine": platform.machine()}
        lib.report(row | machine | {"commit": code_version()}, self.path)


def read_rows(rows_file: Path) -> list[Row]:
    """The rows by part and size; of several for one measurement, the last.

    Rows of steps get their part's `part_seconds`, start to end.
    """
    found = {}
    for row in lib.read_rows(rows_file):
        found[row["part"], row["stage"], row["rows"]] = row
    kept = [row for row in found.values() if row["stage"] != "end"]
    for row in kept:
        end = found.get((row["part"], "end", row["rows"]))
        row["part_seconds"] = end["seconds"] if end else None
    return sorted(kept, key=lambda row: (row["part"], row["rows"]))


def fit_exponent(rows: list[Row], quantity: str) -> float | None:
    """The slope of log quantity over log rows, from 10^5 rows on.

    Example:
        >>> rows = [{"rows": 10**5, "s": 1.0}, {"rows": 10**6, "s": 10.0}]
        >>> round(fit_exponent(rows, "s"), 6)
        1.0
    """
    fitted = [row for row in rows if row["rows"] >= FIT_FROM]
    if len(fitted) < 2:
        return None
    sizes = np.log([row["rows"] for row in fitted])
    values = np.log([row[quantity] for row in fitted])
    return float(np.polyfit(sizes, values, 1)[0])


def micros_a_row(row: Row) -> float:
    """CPU microseconds for each row of the shards that were measured.

    Example:
        >>> row = {"rows": 1000, "shards": 1, "shards_in_all": 2, "cpu_seconds": 0.001}
        >>> micros_a_row(row)
        2.0
    """
    share = min(row["shards"] / row.get("shards_in_all", row["shards"]), 1)
    return 1e6 * row["cpu_seconds"] / (row["rows"] * share)


def peak_above_start(row: Row) -> int:
    """What the work took beside the process's libraries."""
    return row["peak_bytes"] - row["start_bytes"]


def by_stage(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each stage, small to large."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["stage"], []).append(row)
    return found


def where(rows: list[Row]) -> str:
    """Machines and commits of some rows, as a sentence."""
    machines = sorted({f"{row['cores']} cores, {row['machine']}" for row in rows})
    commits = sorted({row["commit"] for row in rows})
    return f"On {'; '.join(machines)}; commits {', '.join(commits)}."
