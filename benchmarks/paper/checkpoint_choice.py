"""What choosing a checkpoint on a sample of validation users costs.

    python -m benchmarks.paper.checkpoint_choice --workdir=runs/beauty_best_seed_1 \
        --rows=docs/checkpoint_choice.jsonl --document=docs/experiments.md

Training keeps the checkpoint with the best recall@10 of a sample of users
(`validation.ValidationConfig.num_users`), and the newest ones. Here each checkpoint
that was kept is measured on all validation users, by the same search: where the chosen
one isn't the best of them, the sample was too small. The test split stays unread.

One row of JSON per checkpoint; rows of the same recommender are replaced in the file.
--document writes the table of all rows between <!-- checkpoint_choice --> marks.
"""

import operator
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import lib
from benchmarks.lib import Row
from benchmarks.paper.study import Study, metric_cell, recall_facts
from tiger_jax.recommending.trained_model import CHECKPOINTS, ModelCard
from tiger_jax.training.checkpoints import STEP_PREFIX

NUM_BEAMS = 20  # as training validates
ALL_USERS = sys.maxsize
SHOWN = ("recall@10", "ndcg@10")


def kept_steps(recommender: Path) -> list[int]:
    """Steps whose checkpoints a finished training has kept, ascending."""
    names = (path.name for path in (recommender / CHECKPOINTS).iterdir())
    found = (re.fullmatch(rf"{STEP_PREFIX}_(\d+)", name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def measure(study: Study) -> Iterator[Row]:
    """A row for each kept checkpoint."""
    recommender = study.workdir / "recommender"
    chosen = ModelCard.load(recommender).best_step
    sampled = {
        row["step"]: {name: row[f"validation/{name}"] for name in (*SHOWN, "loss")}
        for row in lib.read_rows(recommender / "metrics.jsonl")
        if "validation/loss" in row
    }
    for step in kept_steps(recommender):
        started = time.perf_counter()
        ours = study.load(NUM_BEAMS, step)
        found = study.evaluate(ours, NUM_BEAMS, f"step {step:,}")
        yield {
            "benchmark": "checkpoint_choice",
            "workdir": study.workdir.name,
            "step": step,
            "is_chosen": step == chosen,
            "sampled_users": study.trained.config["validation"]["num_users"],
            "sampled": sampled[step],
            **recall_facts(found, study.seed),
            "minutes": round((time.perf_counter() - started) / 60, 2),
            **study.about,
            "seed": study.trained.config["seed"],
        }


def build_table(rows: Sequence[Row]) -> str:
    """A line per checkpoint, the sample's word beside everybody's."""
    cells = []
    for row in rows:
        step, sampled = f"{row['step']:,}", row["sampled"]
        cells.append(
            [
                row["seed"],
                f"**{step}**" if row["is_chosen"] else step,
                f"{sampled['loss']:.3f}",
                " / ".join(lib.format_short(sampled[name]) for name in SHOWN),
                *(metric_cell(row, name) for name in SHOWN),
            ]
        )
    titles = ["seed", "step", "loss", "recall@10, ndcg@10 of the sample"]
    titles += [f"{name} of all" for name in SHOWN]
    first = rows[0]
    about = (
        f"{first['data']}, validation, nothing masked, {NUM_BEAMS} beams; the sample "
        f"are {first['sampled_users']:,} users, all are {first['users']:,}. Bold: the "
        "checkpoint that training chose. 95 % bootstrap intervals over users; on "
        f"{first['device']}, commit `{first['commit']}`; by "
        "`python -m benchmarks.paper.checkpoint_choice --workdir=…`."
    )
    table = lib.markdown_table(titles, cells, "|--:|--:|--:|---|")
    return "\n".join([*table, "", about])


def main() -> None:
    """Prints the rows as JSON, and writes what was asked for."""
    parser = lib.make_parser(__doc__, "workdir", "rows", "document")
    help = "of all validation users"
    parser.add_argument("--max_users", type=int, default=ALL_USERS, help=help)
    options = parser.parse_args()
    rows = []
    for row in measure(Study(options.workdir, max_users=options.max_users, seed=0)):
        lib.report(row)
        rows.append(row)
    if options.rows:
        known = lib.read_rows(options.rows)
        rows = lib.merge_rows(known, rows, "recommender")
        rows.sort(key=operator.itemgetter("seed", "step"))
        lib.write_rows(options.rows, rows)
    lib.publish(options, "checkpoint_choice", rows, build_table)


if __name__ == "__main__":
    lib.run(main)
