"""Writes the README's results table from a finished work directory.

    python -m benchmarks.results_table --workdir=runs/beauty_quick --write

Every cell is read from ``evaluation/metrics.json`` and the manifests; nothing is
typed in. Without --write the table is printed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.marked_sections import write_between
from tiger_jax import artifacts
from tiger_jax.reporting.tables import BASELINE_NAMES

README = Path(__file__).resolve().parent.parent / "README.md"
METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


def build_table(workdir: Path) -> str:
    """The table of one run, with what made it."""
    metrics = artifacts.read_json(workdir / "evaluation" / "metrics.json")
    data = artifacts.read_json(workdir / "data" / "statistics.json")
    training = artifacts.load_manifest(workdir / "recommender", verify=False)
    rows = [
        (BASELINE_NAMES[name], scores["test"], scores["test_masked"])
        for name, scores in metrics["baselines"].items()
    ]
    rows.append(("**TIGER, this run**", metrics["test"], metrics["test_masked"]))
    titles = ["test", *(m for m in METRICS), *(f"{m}, masked" for m in METRICS)]
    lines = [
        f"| {' | '.join(titles)} |",
        f"|---|{'--:|' * (2 * len(METRICS))}",
    ]
    for name, plain, masked in rows:
        cells = [f"{side[m]:.4f}"[1:] for side in (plain, masked) for m in METRICS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    low, high = metrics["intervals"]["test"]["recall@10"]
    summary, made = training.summary, training.made
    lines += [
        "",
        f"{data['name']}: {data['users']:,} users, {data['items']:,} items; measured "
        f"on {_whom(metrics['settings']['users'], data['users'])}; seed "
        f"{metrics['settings']['seed']} alone. Recall@10 of this run "
        f"{metrics['test']['recall@10']:.4f}, 95 % bootstrap interval over users "
        f"{low:.4f}–{high:.4f}. Masked: items that the user already has are left out. "
        "The model was chosen on validation, the test split read once. "
        f"{summary['parameters'] / 1e6:.2f}M parameters, {summary['steps']:,} updates, "
        f"{summary['seconds'] / 60:.0f} minutes of training on {made['devices']}, "
        f"commit `{made['commit']}`.",
        "",
        f"Made by `{_command(made)}`, then `python -m benchmarks.results_table`.",
    ]
    return "\n".join(lines)


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
    parser.add_argument("--workdir", type=Path, required=True)
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
