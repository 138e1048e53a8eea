"""Collects the results of a finished work directory as rows.

A row is one method on one split of one data set: its metrics with 95 % intervals over
users, what trained it (experiment, seed, hash of the configuration, commit, hardware,
minutes, updates, examples, parameters), how often its test split was read, and the
command. Nothing is typed in: all comes from ``metrics.json``, ``details.json`` and the
manifests.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib import Row
from tiger_jax.errors import InputError
from tiger_jax.evaluation.record import DETAILS, METRICS, title_of
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json

KEY = ("data", "method", "experiment", "seed", "split")
SPLITS = ("test", "test_masked")
# Which folder holds what was trained for a method; the others are only counted.
TRAINED = {
    "tiger": "recommender",
    "codes_alone": "recommender",
    "sasrec": "sasrec",
    "fusion": "fusion",
}
_READ_TEST = ("evaluation", "fusion")
# A row of a method that the evaluation measured too is taken from there.
ONLY_FUSED = ("dense_knn", "sasrec")


def collect_rows(
    workdir: Path, experiment: str, methods: Sequence[str] = ()
) -> list[Row]:
    """The rows of one work directory; InputError if nothing was evaluated there.

    Args:
        experiment: What trained methods are rows of.
        methods: Which to take, in place of what an evaluation measured, and of a
            fusion what was not measured before.
    """
    rows = []
    for folder in (workdir / "evaluation", workdir / "fusion"):
        if (folder / artifacts.MANIFEST).is_file():
            rows += _of_folder(workdir, folder, methods)
    if not rows:
        raise InputError(f"nothing was evaluated in {workdir}: run its evaluate stage")
    for row in rows:
        if row["method"] in TRAINED:
            row["experiment"] = experiment
    # A fusion's part that the evaluation measured too is taken from there.
    return list({tuple(r[k] for k in KEY): r for r in reversed(rows)}.values())[::-1]


def _of_folder(workdir: Path, folder: Path, methods: Sequence[str]) -> list[Row]:
    """A row of each method and split; values and intervals are by split and metric."""
    metrics = read_json(folder / METRICS)
    intervals = metrics["intervals"]
    if folder.name == "fusion":
        parts, ends, last = metrics["parts"], metrics["part_intervals"], "fusion"
        found = {n: (parts[n], ends[n]) for n in methods or ONLY_FUSED if n in parts}
    else:
        ends, last = read_json(folder / DETAILS)["baseline_intervals"], "tiger"
        found = {n: (own, ends[n]) for n, own in metrics["baselines"].items()}
    found[last] = metrics, intervals
    return [
        _row(workdir, folder, metrics, method, split, values[split], ends[split])
        for method, (values, ends) in found.items()
        for split in SPLITS
        if not methods or method in methods
    ]


def _row(
    workdir: Path,
    folder: Path,
    metrics: Row,
    method: str,
    split: str,
    values: Row,
    intervals: Row,
) -> Row:
    """A method on a split; `values` and `intervals` are by metric."""
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
        "metrics": {name: round(value, 6) for name, value in values.items()},
        "intervals": {
            k: [round(end, 6) for end in own] for k, own in intervals.items()
        },
        "evaluated_by": command_of(measured.made),
        "test_reads": sum(
            artifacts.count_test_reads(workdir / name) for name in _READ_TEST
        ),
    }
    if method in TRAINED:
        made = artifacts.load_manifest(workdir / TRAINED[method], verify=False)
        row |= _training(workdir, made)
    if method == "fusion":
        settings = metrics["settings"]
        row |= {name: settings[name] for name in ("weights", "normalization")}
        own = [d for d in metrics["differences"] if d["split"] == split]
        row["ahead"] = {
            d["part"]: [round(d[k], 6) for k in ("difference", "low", "high")]
            for d in own
            if d["metric"] == "ndcg@10"
        }
        row["gains"] = metrics["validation_masked"].get("gains", {})
    return row


def _training(workdir: Path, manifest: artifacts.Manifest) -> Row:
    """What made a trained method; seconds are those of all its starts."""
    summary, config = manifest.summary, manifest.config
    facts: Row = {
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


def command_of(made: dict[str, Any]) -> str:
    """The command line of a manifest, without paths of the machine it ran on."""
    words = [
        re.sub(r"""(=[("']*)/[^"']*/([^/"']+)""", r"\1…/\2", word)
        for word in made["command"][1:]
    ]
    return " ".join(["python run.py", *words])
