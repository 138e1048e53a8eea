"""Collects the results of finished work directories as rows, one JSON object a line.

    python -m benchmarks.paper.results_rows --workdir=runs/beauty_best \
        --rows=docs/results.jsonl

A row is one method on one split of one data set: its metrics with 95 % intervals over
users, what trained it (experiment, seed, hash of the configuration, commit, hardware,
minutes, updates, examples, parameters) and the command. Nothing is typed in: all comes
from ``metrics.json``, ``details.json`` and the manifests. A row that is in the file
already, by data set, method, experiment, seed and split, is replaced.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import lib
from benchmarks.lib import Row
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation.record import DETAILS, METRICS, title_of
from tiger_jax.input_pipeline.resident import ResidentConfig, ResidentInput
from tiger_jax.models.generator import init_params, make_loss_fn
from tiger_jax.models.tiger import Tiger
from tiger_jax.recommending.trained_model import load_card_and_table
from tiger_jax.training.flops import count_microbatch_flops
from tiger_jax.training.partitioning import Partitioner
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json

# Bindings that leave what an experiment trains the same.
_SAME_RECIPE = (
    "--gin.SEED=",
    "--gin.train_recommender.starts_from=",
    "--gin.evaluate.",
)
KEY = ("data", "method", "experiment", "seed", "split")
SPLITS = ("test", "test_masked")
UPDATES_LOOKED_AT = 200
# Which folder holds what was trained for a method; the others are only counted.
TRAINED = {
    "tiger": "recommender",
    "codes_alone": "recommender",
    "sasrec": "sasrec",
    "fusion": "fusion",
}
# A row of a method that the evaluation measured too is taken from there.
ONLY_FUSED = ("dense_knn", "sasrec")


def collect_rows(workdir: Path) -> list[Row]:
    """The rows of one work directory; InputError if nothing was evaluated there."""
    rows = []
    for folder in (workdir / "evaluation", workdir / "fusion"):
        if (folder / artifacts.MANIFEST).is_file():
            rows += _of_folder(workdir, folder)
    if not rows:
        raise InputError(f"nothing was evaluated in {workdir}: run its evaluate stage")
    # A fusion's part that the evaluation measured too is taken from there.
    return list({tuple(r[k] for k in KEY): r for r in reversed(rows)}.values())[::-1]


def _of_folder(workdir: Path, folder: Path) -> list[Row]:
    """A row of each method and split; values and intervals are by split and metric."""
    metrics = read_json(folder / METRICS)
    intervals = metrics["intervals"]
    if folder.name == "fusion":
        parts, ends, last = metrics["parts"], metrics["part_intervals"], "fusion"
        found = {n: (parts[n], ends[n]) for n in ONLY_FUSED if n in parts}
    else:
        ends, last = read_json(folder / DETAILS)["baseline_intervals"], "tiger"
        found = {n: (own, ends[n]) for n, own in metrics["baselines"].items()}
    found[last] = metrics, intervals
    return [
        _row(workdir, folder, metrics, method, split, values[split], ends[split])
        for method, (values, ends) in found.items()
        for split in SPLITS
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
    }
    if method in TRAINED:
        made = artifacts.load_manifest(workdir / TRAINED[method], verify=False)
        row |= _training(workdir, made)
    if method == "tiger":
        row |= measure_work(workdir)
    if method == "fusion":
        settings = metrics["settings"]
        row |= {name: settings[name] for name in ("weights", "normalization")}
    return row


@functools.cache  # the same for every split
def measure_work(workdir: Path) -> dict[str, float]:
    """Floating-point operations of an example, and in a second, of a recommender.

    The compiler counts the gradient of a microbatch of every length before it
    optimizes anything, padding included; how often each length comes is seen in the
    input's first updates, drawn as that training drew them. The rate is over the time
    that the training logged as spent on updates, without validation. Of the seqio
    input, whose stream isn't opened again, there is nothing.
    """
    folder = workdir / "recommender"
    manifest = artifacts.load_manifest(folder, verify=False)
    config = manifest.config.get("input", [{}])[0]
    if config.get("class") != ResidentConfig.__name__:
        return {}
    data = PreparedData.load(workdir / "data")
    card, table = load_card_and_table(workdir, data)
    names = {field.name for field in dataclasses.fields(ResidentConfig)}
    values: dict[str, Any] = {k: v for k, v in config.items() if k in names}
    values["bucket_items"] = tuple(values["bucket_items"])
    examples = ResidentInput(
        data.train,
        table.codes,
        card.layout,
        ResidentConfig(**values),
        user_hashes=data.user_hashes,
        seed=manifest.config["seed"],
        only_last=manifest.config.get("training_pairs") == "last",
    )
    updates = [next(examples) for _ in range(UPDATES_LOOKED_AT)]
    model = Tiger(card.config, card.layout)
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    flops = count_microbatch_flops(
        make_loss_fn(model), examples, params, updates[0], Partitioner()
    )
    total = sum(flops[bucket] for update in updates for bucket in update.buckets)
    per_example = total / sum(update.num_examples for update in updates) / 1e9
    logged = lib.read_rows(folder / "metrics.jsonl")
    rows = [row for row in logged if "train/seconds" in row]
    seconds = [row["train/seconds"] for row in rows]
    rate = np.average([row["train/examples_per_s"] for row in rows], weights=seconds)
    return {
        "gflop_per_example": float(f"{per_example:.3g}"),
        "gflops_per_s": float(f"{per_example * rate:.3g}"),
    }


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
