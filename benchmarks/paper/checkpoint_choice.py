"""What choosing a checkpoint on a sample of validation users costs.

    python -m benchmarks.paper.checkpoint_choice --workdir=runs/beauty_best_seed_1 \
        --rows=docs/checkpoint_choice.jsonl --document=docs/experiments.md

Training keeps the checkpoint with the best recall@10 of a sample of users
(`validation.ValidationConfig.num_users`), and the newest ones. Here each checkpoint
that was kept is measured on all validation users, by the same search: where the chosen
one isn't the best of them, the sample was too small. The test split stays unread.

One row of JSON a checkpoint; rows of the same recommender are replaced in the file.
--document writes the table of all rows between <!-- checkpoint_choice --> marks.
"""

import argparse
import json
import operator
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib import write_between
from benchmarks.paper.analyses import Row, Study, format_short, recall_facts
from benchmarks.paper.results_rows import read_rows, write_rows
from tiger_jax.recommending.trained_model import CHECKPOINTS, ModelCard
from tiger_jax.training.checkpoints import STEP_PREFIX
from tiger_jax.workdir import artifacts

NUM_BEAMS = 20  # as training validates
ALL_USERS = sys.maxsize
SHOWN = ("recall@10", "ndcg@10")


def kept_steps(recommender: Path) -> list[int]:
    """Steps whose checkpoints a finished training has kept, ascending."""
    names = (path.name for path in (recommender / CHECKPOINTS).iterdir())
    found = (re.fullmatch(rf"{STEP_PREFIX}_(\d+)", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def sampled_metrics(recommender: Path) -> dict[int, dict[str, float]]:
    """By step, what training saw of its sample."""
    lines = (recommender / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return {
        row["step"]: {name: row[f"validation/{name}"] for name in (*SHOWN, "loss")}
        for row in rows
        if "validation/loss" in row
    }


def measure(study: Study) -> Iterator[Row]:
    """A row for each kept checkpoint."""
    recommender = study.workdir / "recommender"
    trained = artifacts.load_manifest(recommender, verify=False)
    chosen = ModelCard.load(recommender).best_step
    sampled = sampled_metrics(recommender)
    for step in kept_steps(recommender):
        started = time.perf_counter()
        ours = study.load(NUM_BEAMS, step)
        found = study.evaluate(ours, NUM_BEAMS, f"step {step:,}")
        yield {
            "benchmark": "checkpoint_choice",
            "workdir": study.workdir.name,
            "step": step,
            "is_chosen": step == chosen,
            "sampled_users": trained.config["validation"]["num_users"],
            "sampled": sampled[step],
            **recall_facts(found, study.seed),
            "minutes": round((time.perf_counter() - started) / 60, 2),
            **study.about,
            "seed": trained.config["seed"],
        }


def build_table(rows: Sequence[Row]) -> str:
    """A line a checkpoint, the sample's word beside everybody's."""
    lines = [
        "| seed | step | loss | recall@10, ndcg@10 of the sample "
        "| recall@10 of all | ndcg@10 of all |",
        "|--:|--:|--:|---|---|---|",
    ]
    for row in rows:
        step = f"{row['step']:,}"
        sampled = " / ".join(format_short(row["sampled"][name]) for name in SHOWN)
        cells = [
            f"{format_short(row['metrics'][name])} "
            f"({'–'.join(format_short(end) for end in row['intervals'][name])})"
            for name in SHOWN
        ]
        lines.append(
            f"| {row['seed']} | {f'**{step}**' if row['is_chosen'] else step} "
            f"| {row['sampled']['loss']:.3f} | {sampled} | {' | '.join(cells)} |"
        )
    first = rows[0]
    about = (
        f"{first['data']}, validation, nothing masked, {NUM_BEAMS} beams; the sample "
        f"are {first['sampled_users']:,} users, all are {first['users']:,}. Bold: the "
        "checkpoint that training chose. 95 % bootstrap intervals over users; on "
        f"{first['device']}, commit `{first['commit']}`; by "
        "`python -m benchmarks.paper.checkpoint_choice --workdir=…`."
    )
    return "\n".join([*lines, "", about])


def main() -> int:
    """Prints the rows as JSON, and writes what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=Path, required=True)
    add("--max_users", type=int, default=ALL_USERS, help="of all validation users")
    add("--rows", type=Path, help="merge the rows into this file")
    add("--document", type=Path, help="a Markdown file with marks for the table")
    options = parser.parse_args()
    study = Study(options.workdir, max_users=options.max_users, seed=0)
    rows = []
    for row in measure(study):
        print(json.dumps(row), flush=True)
        rows.append(row)
    if options.rows:
        others = [
            row
            for row in read_rows(options.rows)
            if row["recommender"] != rows[0]["recommender"]
        ]
        rows = sorted([*others, *rows], key=operator.itemgetter("seed", "step"))
        write_rows(options.rows, rows)
    if options.document:
        write_between(options.document, "checkpoint_choice", build_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
