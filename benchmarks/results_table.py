"""Writes the README's results table from finished work directories.

    python -m benchmarks.results_table --workdir=runs/beauty_quick \
        --workdir=runs/beauty_best --write

Every cell is read from ``evaluation/metrics.json`` and the manifests; nothing is
typed in. Without --write the table is printed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.marked_sections import write_between
from tiger_jax import artifacts
from tiger_jax.reporting.tables import BASELINE_NAMES

README = Path(__file__).resolve().parent.parent / "README.md"
METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


def build_table(workdirs: Sequence[Path]) -> str:
    """The table of some runs on one data set, with what made them."""
    first = artifacts.read_json(workdirs[0] / "evaluation" / "metrics.json")
    data = artifacts.read_json(workdirs[0] / "data" / "statistics.json")
    lines = [
        f"| test | {' | '.join(METRICS)} | {', masked | '.join(METRICS)}, masked |",
        f"|---|{'--:|' * (2 * len(METRICS))}",
    ]
    for name, scores in first["baselines"].items():
        lines.append(_row(BASELINE_NAMES[name], scores))
    notes = []
    for workdir in workdirs:
        metrics = artifacts.read_json(workdir / "evaluation" / "metrics.json")
        training = artifacts.load_manifest(workdir / "recommender", verify=False)
        name = f"**TIGER, `{_experiment(training.made)}`**"
        lines.append(_row(name, metrics))
        notes += ["", f"{name}: {_describe(metrics, training)}"]
    return "\n".join(
        [
            *lines,
            "",
            f"{data['name']}: {data['users']:,} users, {data['items']:,} items; "
            f"measured on {_whom(first['settings']['users'], data['users'])}, with "
            "95 % bootstrap intervals over users; masked: items that the user already "
            "has are left out. One seed each. Every model was chosen on validation, "
            "the test split read once.",
            *notes,
            "",
            "The table is made by `python -m benchmarks.results_table`.",
        ]
    )


def _row(name: str, scores: dict[str, Any]) -> str:
    sides = (scores["test"], scores["test_masked"])
    cells = [f"{side[metric]:.4f}"[1:] for side in sides for metric in METRICS]
    return f"| {name} | {' | '.join(cells)} |"


def _describe(metrics: dict[str, Any], training: artifacts.Manifest) -> str:
    """A run's intervals, size, time and command."""
    summary, made = training.summary, training.made
    intervals = [
        f"{'masked ' if 'masked' in split else ''}recall@10 {{:.4f}}–{{:.4f}}".format(
            *metrics["intervals"][split]["recall@10"]
        )
        for split in ("test", "test_masked")
    ]
    return (
        f"{', '.join(intervals)}; {summary['parameters'] / 1e6:.2f}M parameters, "
        f"{summary['steps']:,} updates in {summary['seconds'] / 60:.0f} minutes of "
        f"wall time on {made['devices']}, seed {metrics['settings']['seed']}, commit "
        f"`{made['commit']}`, by `{_command(made)}`."
    )


def _experiment(made: dict[str, Any]) -> str:
    """The experiment file's name; the last one's, if there were several."""
    files = [w.partition("=")[2] for w in made["command"] if "--gin_file=" in w]
    return Path(files[-1]).stem if files else "run.py"


def _whom(measured: int, users: int) -> str:
    if measured >= users:
        return "all of them"
    return f"{measured:,} test users drawn by seed"


def _command(made: dict[str, Any]) -> str:
    """The command line, without paths of the machine it ran on."""
    words = ["python run.py"]
    for word in made["command"][1:]:
        flag, equals, value = word.partition("=")
        is_path = equals and value.startswith("/")
        words.append(f"{flag}=…/{Path(value).name}" if is_path else word)
    return " ".join(words)


def main() -> int:
    """Prints the table, or puts it between the README's marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, action="append")
    parser.add_argument("--write", action="store_true", help="into README.md")
    options = parser.parse_args()
    table = build_table(options.workdir)
    if not options.write:
        print(table)
        return 0
    write_between(README, "results", f"## Results\n\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
