"""The rows that `benchmarks.scale` printed: what is asked of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

# Below, a stage's fixed cost hides how it grows.
FIT_FROM = 100_000
# How the steps that work on a catalogue's texts begin: their rows are items.
EMBED_STEPS = ("texts", "embeddings", "embed, ")
Row = dict[str, Any]


def read_rows(rows_file: Path) -> list[Row]:
    """The rows by part and size; of several for one measurement, the last.

    Rows of steps get their part's `part_seconds`, start to end.
    """
    found = {}
    for line in rows_file.read_text().splitlines():
        row = json.loads(line)
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
