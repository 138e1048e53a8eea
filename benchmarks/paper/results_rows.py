"""Collects the results of finished work directories as rows, one JSON object a line.

    python -m benchmarks.paper.results_rows --workdir=runs/beauty_best \
        --rows=docs/results.jsonl

A row is one method on one split of one data set: its metrics with 95 % intervals over
users, what trained it (experiment, seed, hash of the configuration, commit, hardware,
minutes, updates, examples, parameters) and the command. Nothing is typed in: all comes
from ``metrics.json``, ``details.json`` and the manifests. A row that is in the file
already, by data set, method, experiment, seed and split, is replaced.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import lib
from benchmarks.lib import Row
from benchmarks.training.work_done import measure_work
from tiger_jax.errors import InputError
from tiger_jax.evaluation.record import DETAILS, METRICS, title_of
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json

# Bindings that leave an experiment the same: its seed, and where a start lies.
_SAME_RECIPE = ("--gin.SEED=", "--gin.train_recommender.starts_from=")
_measure_work = functools.cache(measure_work)  # the same for every split
KEY = ("data", "method", "experiment", "seed", "split")
SPLITS = ("test", "test_masked")
# Which folder holds what was trained for a method; the others are only counted.
TRAINED = {"tiger": "recommender", "sasrec": "sasrec", "fusion": "fusion"}
# A row of a method that the evaluation measured too is taken from there.
ONLY_FUSED = ("dense_knn", "sasrec")


def collect_rows(workdir: Path) -> list[Row]:
    """The rows of one work directory.

    Raises:
        InputError: Nothing was evaluated there.
    """
    rows = [*_of_evaluation(workdir), *_of_fusion(workdir)]
    if not rows:
        raise InputError(f"nothing was evaluated in {workdir}: run its evaluate stage")
    # A fusion's part that the evaluation measured too is taken from there.
    return list({tuple(r[k] for k in KEY): r for r in reversed(rows)}.values())[::-1]


def _of_evaluation(workdir: Path) -> Iterator[Row]:
    folder = workdir / "evaluation"
    if not (folder / artifacts.MANIFEST).is_file():
        return
    metrics = read_json(folder / METRICS)
    details = read_json(folder / DETAILS)
    row = functools.partial(_row, workdir, folder, metrics)
    for name, by_split in metrics["baselines"].items():
        for split in SPLITS:
            yield row(name, split, by_split, details["baseline_intervals"][name])
    for split in SPLITS:
        yield row("tiger", split, metrics, metrics["intervals"])


def _of_fusion(workdir: Path) -> Iterator[Row]:
    folder = workdir / "fusion"
    if not (folder / artifacts.MANIFEST).is_file():
        return
    metrics = read_json(folder / METRICS)
    row = functools.partial(_row, workdir, folder, metrics)
    for name in ONLY_FUSED:
        if name in metrics["parts"]:
            parts, intervals = metrics["parts"][name], metrics["part_intervals"][name]
            for split in SPLITS:
                yield row(name, split, parts, intervals)
    settings = {
        name: metrics["settings"][name] for name in ("weights", "normalization")
    }
    for split in SPLITS:
        yield row("fusion", split, metrics, metrics["intervals"]) | settings


def _row(
    workdir: Path,
    folder: Path,
    metrics: Row,
    method: str,
    split: str,
    values: Row,
    intervals: Row,
) -> Row:
    """A method on a split; `values` and `intervals` are by split and metric."""
    measured = artifacts.load_manifest(folder, verify=False)
    data = read_json(workdir / "data" / "statistics.json")
    row = {
        "data": data["name"],
        "data_users": data["users"],
        "data_items": data["items"],
        "data_interactions": data["interactions"],
        "method": method,
        "name": title_of(metrics, method),
        "experiment": "",
        "seed": None,
        "split": split,
        "users": metrics["settings"]["users"],
        "metrics": {name: round(value, 6) for name, value in values[split].items()},
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
        row |= _measure_work(workdir)
    return row


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


def main() -> None:
    """Prints the rows, or merges them into a file."""
    parser = lib.make_parser(__doc__, "rows")
    parser.add_argument("--workdir", type=Path, required=True, action="append")
    options = parser.parse_args()
    rows = [row for workdir in options.workdir for row in collect_rows(workdir)]
    if options.rows:
        rows = lib.merge_rows(lib.read_rows(options.rows), rows, *KEY)
        lib.write_rows(options.rows, rows)
    else:
        for row in rows:
            lib.report(row)


if __name__ == "__main__":
    lib.run(main)
