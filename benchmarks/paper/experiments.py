"""Runs the paper's ablations in a reduced form, side by side, and writes their table.

    python -m benchmarks.paper.experiments --data_dir=beauty --embeddings=beauty.npy \
        --workdir=runs/experiments --other_data_dir=sports \
        --other_embeddings=sports.npy --rows=docs/paper_experiments.jsonl \
        --document=docs/experiments.md --plot=docs/paper_experiments.png

Every experiment is a file of `gin_configs/experiments/`, followed by
`base/reduced.gin`, and here and there by bindings that this size asks for. Each
trains in a work directory of its own; what it shares with the first one, `reduced`, is
taken from there. What is finished is kept: the same command goes on. All are measured
on the same validation users, nothing masked, so that each can be compared with its
counterpart user by user; the test split stays unread.
"""

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import lib
from benchmarks.lib import ROOT, Row
from benchmarks.paper.results_rows import command_of
from benchmarks.paper.study import Study, metric_cell, recall_facts
from tiger_jax.errors import InputError
from tiger_jax.evaluation import bootstrap
from tiger_jax.progress import say
from tiger_jax.stage_table import PIPELINE
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json

NUM_BEAMS = 21  # one more than the largest cutoff, to see ties
STAGES = PIPELINE[: PIPELINE.index("train_recommender") + 1]
FIRST = "reduced"
COMPARED = ("recall@10", "ndcg@10")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training; all are listed in `experiments.json`.

    Attributes:
        name: Of its work directory and rows.
        gin_file: Under `gin_configs/experiments/`.
        bindings: What comes after `base/reduced.gin`.
        shares: Folders taken over from the first experiment. A stage whose
            configuration differs after all replaces what it was given.
        against: The experiment that it is compared with.
        has_own_text: Embeds the items' text by TF-IDF instead of taking ready vectors.
        is_combined: Its quantizer is also fitted to another shop's items.
    """

    name: str
    title: str
    gin_file: str = "beauty_paper"
    bindings: tuple[str, ...] = ()
    shares: tuple[str, ...] = ("data", "embeddings", "rqvae", "semantic_ids")
    against: str = FIRST
    has_own_text: bool = False
    is_combined: bool = False


def _read_groups() -> dict[str, tuple[Experiment, ...]]:
    """The experiments of each group of the table; lists in the file are tuples here."""
    groups = read_json(Path(__file__).with_suffix(".json"))
    for group, members in groups.items():
        for fields in members:
            fields |= {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
        groups[group] = tuple(Experiment(**fields) for fields in members)
    return groups


GROUPS = _read_groups()
EXPERIMENTS = {e.name: e for group in GROUPS.values() for e in group}


@dataclasses.dataclass(frozen=True)
class Shop:
    """Where a shop lies."""

    data_dir: Path
    embeddings: Path


def command(
    experiment: Experiment, root: Path, shop: Shop, other: Shop | None
) -> list[str]:
    """The command line that makes an experiment's work directory."""
    words = [
        "run.py",
        f"--gin_file=experiments/{experiment.gin_file}.gin",
        "--gin_file=base/reduced.gin",
        f"--data_dir={shop.data_dir}",
        f"--workdir={root / experiment.name}",
        f"--stage={','.join(STAGES)}",
        *(f"--gin.{binding}" for binding in experiment.bindings),
    ]
    if not experiment.has_own_text:
        words.append(f"--embeddings={shop.embeddings}")
    if experiment.is_combined:
        if other is None:
            raise InputError(
                f"{experiment.name} needs --other_data_dir and --other_embeddings; "
                "--without combined_corpus leaves it out"
            )
        words.append(f"--gin.train_rqvae.also_fitted_to=('{root / 'other_shop'}',)")
    return words


def train(experiment: Experiment, root: Path, shop: Shop, other: Shop | None) -> None:
    """Makes an experiment's work directory, or goes on with it."""
    if experiment.is_combined and other is not None:
        run_stages(
            [
                "run.py",
                "--gin_file=experiments/own_data.gin",
                f"--data_dir={other.data_dir}",
                f"--embeddings={other.embeddings}",
                f"--workdir={root / 'other_shop'}",
                "--stage=prepare_data,embed_items",
            ]
        )
    workdir = root / experiment.name
    if experiment.name != FIRST:
        for folder in experiment.shares:
            target = workdir / folder
            if not target.exists():
                shutil.copytree(root / FIRST / folder, target)
    run_stages(command(experiment, root, shop, other))


def run_stages(words: Sequence[str]) -> None:
    """Runs one command line of run.py; ends where that fails, which has said why."""
    say(f"python {' '.join(words)}")
    done = subprocess.run([sys.executable, *words], cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def measure(experiment: Experiment, root: Path, max_users: int, seed: int) -> Row:
    """An experiment's row; its ranks are kept beside the work directories."""
    workdir = root / experiment.name
    study = Study(workdir, max_users=max_users, seed=seed)
    found = study.evaluate(
        study.load(NUM_BEAMS), NUM_BEAMS, f"{experiment.name}, validation"
    )
    users = study.users.user_numbers
    (root / "ranks").mkdir(exist_ok=True)
    np.savez(_ranks_file(root, experiment), users=users, ranks=found.ranks)
    made = study.trained
    codes = artifacts.load_manifest(workdir / "rqvae", verify=False).summary
    return {
        "benchmark": "paper_experiments",
        "experiment": experiment.name,
        "title": experiment.title,
        "group": next(g for g, members in GROUPS.items() if experiment in members),
        **recall_facts(found, seed),
        "against": experiment.against,
        "difference": _difference(root, experiment, seed),
        **study.about,
        "collision_rate": codes["collision_rate"],
        "first_code_purity": codes["category_purity"],
        "config_hash": made.fingerprint[:12],
        "commit": made.made["commit"],
        "device": made.made["devices"],
        "minutes": round(made.summary["seconds"] / 60, 1),
        "updates": made.summary["steps"],
        "parameters": made.summary["parameters"],
        "command": command_of(made.made),
    }


def _ranks_file(root: Path, experiment: Experiment) -> Path:
    return root / "ranks" / f"{experiment.name}.npz"


def _difference(root: Path, experiment: Experiment, seed: int) -> Row | None:
    """How much recall@10 and NDCG@10 are above the counterpart's, user by user."""
    if experiment.against == experiment.name:
        return None
    ours, theirs = (
        np.load(_ranks_file(root, one))
        for one in (experiment, EXPERIMENTS[experiment.against])
    )
    common, mine, other = np.intersect1d(
        ours["users"], theirs["users"], return_indices=True
    )
    found: Row = {"users": len(common)}
    for metric in COMPARED:
        found[metric] = bootstrap.paired_difference(
            ours["ranks"][mine], theirs["ranks"][other], metric, seed=seed
        )
    return found


def build_table(rows: Sequence[Row]) -> str:
    """A table, and what the rows have in common."""
    lines = [
        "| | recall@10 | NDCG@10 | recall@10 against its counterpart "
        "| collisions | parameters |",
        "|---|---|---|---|--:|--:|",
    ]
    by_name = {row["experiment"]: row for row in rows}
    for group, members in GROUPS.items():
        lines.append(f"| **{group}** | | | | | |")
        for experiment in members:
            row = by_name.get(experiment.name)
            if row is None:
                lines.append(f"| {experiment.title} | *not run* | | | | |")
                continue
            cells = (
                row["title"],
                *(metric_cell(row, metric) for metric in COMPARED),
                _signed(row["difference"]),
                f"{row['collision_rate']:.1%}",
                f"{row['parameters'] / 1e6:.2f}M",
            )
            lines.append(lib.table_line(cells))
    first = rows[0]
    commits = ", ".join(f"`{c}`" for c in dict.fromkeys(r["commit"] for r in rows))
    minutes = [row["minutes"] for row in rows]
    about = (
        f"{first['data']}, {first['users']:,} validation users, nothing masked, "
        f"{NUM_BEAMS} beams, seed {first['seed']}; {first['updates']} updates of 256 "
        "examples each, learned from by the recipe of `gin_configs/base/reduced.gin`; "
        "95 % bootstrap intervals over users, the differences' paired. *Counterpart*: "
        "the first row, for content the TF-IDF row with all fields. One seed: what "
        "another would give is not in the intervals. Between "
        f"{min(minutes):g} and {max(minutes):g} minutes of training each on "
        f"{first['device']}, beside other work; commit {commits}; by `python -m "
        "benchmarks.paper.experiments`, from its rows."
    )
    return "\n".join([*lines, "", about])


def _signed(difference: Row | None) -> str:
    if difference is None:
        return ""
    mean, low, high = (
        f"{value:+.4f}".replace("0.", ".").replace("-", "−")
        for value in difference["recall@10"]
    )
    return f"{mean} ({low} to {high})"


def draw(rows: Sequence[Row], file: Path) -> None:
    """The differences from the counterparts, as points with intervals."""
    shown = [row for row in rows if row["difference"]][::-1]
    groups = list(GROUPS)
    with lib.draw(file, figsize=(7.5, 1 + 0.28 * len(shown))) as (_, ((axes,),)):
        for at, row in enumerate(shown):
            mean, low, high = row["difference"]["recall@10"]
            colour = f"C{groups.index(row['group'])}"
            axes.plot([low, high], [at, at], color=colour, linewidth=2)
            axes.plot(mean, at, "o", color=colour)
        axes.set_yticks(range(len(shown)), [row["title"] for row in shown])
        axes.axvline(0, color="0.5", linewidth=1)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel("recall@10 above its counterpart's, validation")


def main() -> None:
    """Trains what is missing, measures it, and writes what was asked for."""
    parser = lib.make_parser(__doc__, "workdir", "seed", "rows", "plot", "document")
    add = parser.add_argument
    add("--data_dir", type=Path, required=True)
    add("--embeddings", type=Path, required=True)
    add("--other_data_dir", type=Path, help="of the combined corpus")
    add("--other_embeddings", type=Path)
    add("--only", nargs="+", choices=EXPERIMENTS, metavar="NAME", default=EXPERIMENTS)
    add("--without", nargs="+", choices=EXPERIMENTS, metavar="NAME", default=[])
    add("--max_users", type=int, default=5000)
    options = parser.parse_args()
    root = options.workdir.resolve()
    shop, other = (
        Shop(
            lib.find_data(data_dir, "data", "--data_dir").resolve(),
            lib.find_data(embeddings, "vectors", "--embeddings").resolve(),
        )
        if data_dir and embeddings
        else None
        for data_dir, embeddings in (
            (options.data_dir, options.embeddings),
            (options.other_data_dir, options.other_embeddings),
        )
    )
    assert shop is not None
    chosen = [
        e
        for name, e in EXPERIMENTS.items()
        if name in options.only and name not in options.without
    ]
    for experiment in chosen:  # says what is missing before it starts
        command(experiment, root, shop, other)
    rows_file = options.rows or root / "rows.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    for experiment in chosen:
        train(experiment, root, shop, other)
        manifest = artifacts.load_manifest(
            root / experiment.name / "recommender", verify=False
        )
        rows = {row["experiment"]: row for row in lib.read_rows(rows_file)}
        known = rows.get(experiment.name)
        if known is None or known["recommender"] != manifest.content_hash:
            row = measure(experiment, root, options.max_users, options.seed)
            lib.report(row)
            rows[experiment.name] = row
            lib.write_rows(rows_file, [rows[n] for n in EXPERIMENTS if n in rows])
    lib.publish(
        options, "paper_experiments", lib.read_rows(rows_file), build_table, draw
    )


if __name__ == "__main__":
    lib.run(main)
