"""Collects the results of finished work directories as rows, one JSON object a line.

    python -m benchmarks.paper.results_rows --workdir=runs/beauty_best \
        --rows=docs/results.jsonl

A row is one method on one split of one data set: its metrics with 95 % intervals over
users, what trained it (experiment, seed, hash of the configuration, commit, hardware,
minutes, updates, examples, parameters) and the command. Nothing is typed in: all comes
from ``metrics.json``, ``details.json`` and the manifests. A row that is in the file
already, by data set, method, experiment, seed and split, is replaced.
"""

import argparse
import functools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.training.work_done import measure_work
from tiger_jax.reporting.tables import BASELINE_NAMES
from tiger_jax.workdir import artifacts

Row = dict[str, Any]
# Bindings that leave an experiment the same: its seed, and where a start lies.
_SAME_RECIPE = ("--gin.SEED=", "--gin.train_recommender.starts_from=")
KEY = ("data", "method", "experiment", "seed", "split")
SPLITS = ("test", "test_masked")
# Which folder holds what was trained for a method; the others are only counted.
TRAINED = {"tiger": "recommender", "sasrec": "sasrec", "fusion": "fusion"}
# A row of a method that the evaluation measured too is taken from there.
ONLY_FUSED = ("dense_knn", "sasrec")


def collect_rows(workdir: Path) -> list[Row]:
    """The rows of one work directory."""
    rows = [*_of_evaluation(workdir), *_of_fusion(workdir)]
    return list({_key(row): row for row in reversed(rows)}.values())[::-1]


def merge_rows(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Puts new rows in place of those with the same key, others at the end."""
    merged = {_key(row): row for row in old}
    merged.update({_key(row): row for row in new})
    return list(merged.values())


def read_rows(path: Path) -> list[Row]:
    """Reads a file of rows; no file is no rows."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Writes a file of rows."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def _of_evaluation(workdir: Path) -> Iterator[Row]:
    folder = workdir / "evaluation"
    if not (folder / artifacts.MANIFEST).is_file():
        return
    metrics = artifacts.read_json(folder / "metrics.json")
    details = artifacts.read_json(folder / "details.json")
    manifest = artifacts.load_manifest(folder, verify=False)
    for name, by_split in metrics["baselines"].items():
        intervals = details["baseline_intervals"][name]
        for split in SPLITS:
            yield _row(
                workdir, manifest, metrics, name, split, by_split[split], intervals
            )
    for split in SPLITS:
        yield _row(
            workdir,
            manifest,
            metrics,
            "tiger",
            split,
            metrics[split],
            metrics["intervals"],
        )


def _of_fusion(workdir: Path) -> Iterator[Row]:
    folder = workdir / "fusion"
    if not (folder / artifacts.MANIFEST).is_file():
        return
    metrics = artifacts.read_json(folder / "metrics.json")
    manifest = artifacts.load_manifest(folder, verify=False)
    for name in ONLY_FUSED:
        for split in SPLITS if name in metrics["parts"] else ():
            yield _row(
                workdir,
                manifest,
                metrics,
                name,
                split,
                metrics["parts"][name][split],
                metrics["part_intervals"][name],
            )
    weights = {"weights": metrics["settings"]["weights"]}
    weights["normalization"] = metrics["settings"]["normalization"]
    for split in SPLITS:
        row = _row(
            workdir,
            manifest,
            metrics,
            "fusion",
            split,
            metrics[split],
            metrics["intervals"],
        )
        yield {**row, **weights}


def _row(
    workdir: Path,
    measured: artifacts.Manifest,
    metrics: dict[str, Any],
    method: str,
    split: str,
    values: dict[str, float],
    intervals: dict[str, Any],
) -> Row:
    data = artifacts.read_json(workdir / "data" / "statistics.json")
    row = {
        "data": data["name"],
        "data_users": data["users"],
        "data_items": data["items"],
        "data_interactions": data["interactions"],
        "method": method,
        "name": BASELINE_NAMES.get(method, method),
        "experiment": "",
        "seed": None,
        "split": split,
        "users": metrics["settings"]["users"],
        "metrics": {name: round(value, 6) for name, value in values.items()},
        "intervals": {
            name: [round(end, 6) for end in ends]
            for name, ends in intervals[split].items()
        },
        "evaluated_by": command_of(measured.made),
    }
    if method in TRAINED:
        made = artifacts.load_manifest(workdir / TRAINED[method], verify=False)
        row |= _training(workdir, made)
    if method == "tiger":
        row |= _work_of(workdir)
    return row


@functools.cache  # the same for every split
def _work_of(workdir: Path) -> Row:
    return measure_work(workdir)


def _training(workdir: Path, manifest: artifacts.Manifest) -> Row:
    """What made a trained method; seconds are those of all its starts."""
    summary, config = manifest.summary, manifest.config
    facts: Row = {
        "experiment": _experiment(workdir),
        "seed": config.get("seed"),
        "config_hash": manifest.fingerprint[:12],
        "commit": manifest.made["commit"],
        "hardware": manifest.made["devices"],
        "minutes": round(summary.get("seconds", manifest.made["seconds"]) / 60, 1),
        "command": command_of(manifest.made),
    }
    if "steps" in summary:
        drawn = config["input"][0] if "input" in config else config["sequences"]
        facts |= {
            "updates": summary["steps"],
            "examples": summary["steps"] * drawn["batch_size"],
            "parameters": summary["parameters"],
        }
    return facts


def _experiment(workdir: Path) -> str:
    """The experiment that trained the recommender, and what was bound over it."""
    made = artifacts.load_manifest(workdir / "recommender", verify=False).made
    files = [w.partition("=")[2] for w in made["command"] if "--gin_file=" in w]
    bound = [
        word.partition("=")[0].rpartition(".")[2] + "=" + word.partition("=")[2]
        for word in made["command"]
        if word.startswith("--gin.") and not word.startswith(_SAME_RECIPE)
    ]
    return ", ".join([Path(files[-1]).stem if files else "run.py", *sorted(bound)])


def command_of(made: dict[str, Any]) -> str:
    """The command line of a manifest, without paths of the machine it ran on."""
    words = [
        re.sub(r"""(=[("']*)/[^"']*/([^/"']+)""", r"\1…/\2", word)
        for word in made["command"][1:]
    ]
    return " ".join(["python run.py", *words])


def main() -> int:
    """Prints the rows, or merges them into a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, action="append")
    parser.add_argument("--rows", type=Path, help="merge the rows into this file")
    options = parser.parse_args()
    rows = [row for workdir in options.workdir for row in collect_rows(workdir)]
    if options.rows is None:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return 0
    write_rows(options.rows, merge_rows(read_rows(options.rows), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
