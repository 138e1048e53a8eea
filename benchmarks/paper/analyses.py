"""What the paper asks of a trained model besides recall: one command a question.

    python -m benchmarks.paper.analyses invalid_ids --workdir=runs/beauty
    python -m benchmarks.paper.analyses diversity --workdir=runs/beauty

*   `invalid_ids`: the share of Semantic IDs that no item has among the K best of a
    search that knows no catalogue (Rajput et al. 2023, 4.5 and figure 6), and what
    the catalogue's constraint does for recall.
*   `diversity`: Entropy@K of categories, recall and coverage, when lists are drawn at
    a temperature instead of searched (4.3 and table 4). The paper samples with
    replacement level by level; here the items of a list differ.

On validation users, so that the test split stays unread. One JSON row a setting is
printed and, with --rows, appended to a file; --plot draws them, --document writes
their table into a Markdown file between <!-- invalid_ids --> (or diversity) marks.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.lib import write_between
from tiger_jax.data.prepared import PreparedData
from tiger_jax.evaluation import bootstrap, diversity, evaluator
from tiger_jax.histories import HeldOut
from tiger_jax.recommending.searcher import (
    Recommendation,
    SearchConfig,
    load_recommendation,
)
from tiger_jax.workdir import artifacts

BEAMS = (10, 20, 50, 100)
TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)  # 0 stands for beam search
CUTOFFS = (10, 20, 50)
METRICS = ("recall@5", "recall@10", "ndcg@10")
Row = dict[str, Any]


class Study:
    """A trained work directory, its validation users, and how rows are made."""

    def __init__(
        self,
        workdir: Path,
        *,
        max_users: int,
        seed: int,
        settings: Sequence[Any] = (),
    ) -> None:
        """Loads the data and draws the users.

        Args:
            settings: Numbers of beams, or temperatures; empty takes the usual ones.
        """
        self.workdir, self.seed, self.settings = workdir, seed, settings
        self.data = PreparedData.load(workdir / "data")
        self.users: HeldOut
        self.users, _ = evaluator.sample_users(
            self.data.validation, max_users, seed=seed
        )
        manifest = artifacts.load_manifest(workdir / "recommender", verify=False)
        self.about = {
            "data": self.data.name,
            "split": "validation",
            "users": len(self.users.targets),
            "seed": seed,
            "recommender": manifest.content_hash,
            "commit": artifacts.code_version(),
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        }

    def load(self, num_beams: int, step: int | None = None) -> Recommendation:
        """The recommender with a search of its own, or another step's."""
        search = SearchConfig(num_beams=num_beams)
        return load_recommendation(self.workdir, self.data, search, step=step)

    def evaluate(self, recommend: Any, k: int, what: str) -> evaluator.Evaluation:
        """Lists of k - 1 items a user: one more is asked for, to see ties."""
        return evaluator.evaluate(
            recommend,
            self.users,
            num_items=self.data.num_items,
            exclude_seen=False,
            k=k - 1,
            count_invalid=True,
            batch_size=128,
            description=what,
        )

    def row(self, analysis: str, case: Row, found: Row, started: float) -> Row:
        """One row."""
        minutes = round((time.perf_counter() - started) / 60, 2)
        row = {"benchmark": "paper_analyses", "analysis": analysis, "case": case}
        return {**row, **found, "minutes": minutes, **self.about}


def interval(values: np.ndarray, seed: int) -> list[float]:
    """95 % bootstrap interval of a mean over users."""
    means = bootstrap.resampled_means(
        values[:, None].astype(np.float64),
        num_resamples=bootstrap.NUM_RESAMPLES,
        seed=seed,
    )
    tail = 50 * (1 - bootstrap.CONFIDENCE)
    return [float(x) for x in np.percentile(means, [tail, 100 - tail])]


def recall_facts(found: evaluator.Evaluation, seed: int) -> Row:
    """Means and intervals of the metrics."""
    means, intervals = found.compute_metrics(), found.compute_intervals(seed)
    return {
        "metrics": {name: means[name] for name in METRICS},
        "intervals": {name: intervals[name] for name in METRICS},
    }


def measure_invalid_ids(study: Study) -> Iterator[Row]:
    """With and without the catalogue's constraint, for each number of beams."""
    for num_beams in study.settings or BEAMS:
        ours = study.load(num_beams)
        sides = {"none": ours.recommend_unconstrained, "catalogue": ours}
        for constraint, recommend in sides.items():
            started = time.perf_counter()
            found = study.evaluate(recommend, num_beams, f"{num_beams} beams")
            facts = {
                "invalid_share": found.num_invalid / max(1, found.num_listed),
                **recall_facts(found, study.seed),
            }
            case = {"beams": num_beams, "constraint": constraint}
            yield study.row("invalid_ids", case, facts, started)


def measure_diversity(study: Study) -> Iterator[Row]:
    """Lists at each temperature."""
    longest = max(CUTOFFS) + 1
    ours = study.load(longest)
    categories = study.data.category_of_items()
    for temperature in study.settings or TEMPERATURES:
        started = time.perf_counter()
        recommend: Any = ours
        if temperature:
            keys = iter(jax.random.split(jax.random.key(study.seed), 100_000))
            recommend = _drawn(ours, temperature, keys)
        found = study.evaluate(recommend, longest, f"temperature {temperature:g}")
        entropy, entropy_interval, coverage = {}, {}, {}
        for k in CUTOFFS:
            values = diversity.category_entropy(found.item_numbers, categories, k)
            entropy[f"entropy@{k}"] = float(values.mean())
            entropy_interval[f"entropy@{k}"] = interval(values, study.seed)
            coverage[f"coverage@{k}"] = diversity.catalogue_coverage(
                found.item_numbers, study.data.num_items, k
            )
        facts = recall_facts(found, study.seed)
        facts["metrics"] |= entropy | coverage
        facts["intervals"] |= entropy_interval
        yield study.row("diversity", {"temperature": temperature}, facts, started)


def _drawn(
    ours: Recommendation, temperature: float, keys: Iterator[jax.Array]
) -> Callable[..., Any]:
    """A recommender that draws; a new key for every batch."""

    def recommend(*arguments: Any) -> Any:
        return ours.sample(*arguments, temperature=temperature, key=next(keys))

    return recommend


ANALYSES = {"invalid_ids": measure_invalid_ids, "diversity": measure_diversity}


def draw(analysis: str, rows: list[Row], file: Path) -> None:
    """One picture of an analysis' rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    if analysis == "invalid_ids":
        free = [row for row in rows if row["case"]["constraint"] == "none"]
        beams = [row["case"]["beams"] for row in free]
        left.plot(beams, [100 * row["invalid_share"] for row in free], marker="o")
        left.set(xlabel="beams", ylabel="invalid Semantic IDs, %", ylim=(0, None))
        for constraint, name in (("none", "unconstrained"), ("catalogue", "trie")):
            own = [row for row in rows if row["case"]["constraint"] == constraint]
            _line(right, [row["case"]["beams"] for row in own], own, "recall@10", name)
        right.set(xlabel="beams", ylabel="recall@10, validation")
    else:
        at = [row["case"]["temperature"] for row in rows]
        for k in CUTOFFS:
            _line(left, at, rows, f"entropy@{k}", f"Entropy@{k}")
        left.set(xlabel="temperature (0: beam search)", ylabel="nats")
        _line(right, at, rows, "recall@10", "recall@10")
        right.set(xlabel="temperature (0: beam search)", ylabel="validation")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.savefig(file, dpi=144)
    plt.close(figure)


def build_table(analysis: str, rows: list[Row]) -> str:
    """The rows as a Markdown table, and what they were measured on."""
    first = rows[0]
    if analysis == "invalid_ids":
        lines = [
            "| beams | invalid IDs among them | recall@10, unconstrained "
            "| recall@10, trie |",
            "|--:|--:|---|---|",
        ]
        by_case = {(r["case"]["beams"], r["case"]["constraint"]): r for r in rows}
        for beams in dict.fromkeys(row["case"]["beams"] for row in rows):
            free, bound = by_case[beams, "none"], by_case[beams, "catalogue"]
            lines.append(
                f"| {beams} | {free['invalid_share']:.2%} "
                f"| {_cell(free, 'recall@10')} | {_cell(bound, 'recall@10')} |"
            )
    else:
        entropies = [f"entropy@{k}" for k in CUTOFFS]
        shown = [*entropies, "recall@10", "coverage@10"]
        lines = [
            f"| temperature | {' | '.join(shown)} |",
            "|--:|" + "---|" * len(shown),
        ]
        for row in rows:
            temperature = row["case"]["temperature"] or "beam search"
            cells = " | ".join(_cell(row, metric) for metric in shown)
            lines.append(f"| {temperature} | {cells} |")
    minutes = sum(row["minutes"] for row in rows)
    name = "beams" if analysis == "invalid_ids" else "temperature"
    settings = dict.fromkeys(row["case"][name] for row in rows)
    option = f"--{name.removesuffix('s')}s {' '.join(f'{s:g}' for s in settings)}"
    about = (
        f"{first['data']}, {first['users']:,} validation users, 95 % bootstrap "
        f"intervals over them; {minutes:.0f} minutes on {first['device']}, seed "
        f"{first['seed']}, commit `{first['commit']}`, recommender "
        f"`{first['recommender'][:12]}`, by `python -m benchmarks.paper.analyses "
        f"{analysis} --workdir=… --max_users={first['users']} {option}`."
    )
    return "\n".join([*lines, "", about])


def _cell(row: Row, metric: str) -> str:
    value = format_short(row["metrics"][metric])
    if metric not in row["intervals"]:
        return value
    low, high = (format_short(end) for end in row["intervals"][metric])
    return f"{value} ({low}–{high})"


def format_short(value: float) -> str:
    """Three places above one, four below it."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}".removeprefix("0")


def _line(axes: Any, x: list, rows: list[Row], metric: str, name: str) -> None:
    low, high = zip(*(row["intervals"][metric] for row in rows), strict=True)
    axes.plot(x, [row["metrics"][metric] for row in rows], marker="o", label=name)
    axes.fill_between(x, low, high, alpha=0.2)


def main() -> int:
    """Prints the rows as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("analysis", choices=list(ANALYSES))
    add("--workdir", type=Path, required=True)
    add("--max_users", type=int, default=2000)
    add("--seed", type=int, default=0)
    add("--beams", type=int, nargs="+", help=f"of invalid_ids, instead of {BEAMS}")
    add("--temperatures", type=float, nargs="+", help=f"instead of {TEMPERATURES}")
    add("--rows", type=Path, help="append the rows to this file")
    add("--plot", type=Path, help="a PNG file")
    add("--document", type=Path, help="a Markdown file with marks for the table")
    options = parser.parse_args()
    is_beams = options.analysis == "invalid_ids"
    settings = options.beams if is_beams else options.temperatures
    study = Study(
        options.workdir,
        max_users=options.max_users,
        seed=options.seed,
        settings=settings or (),
    )
    rows = []
    for row in ANALYSES[options.analysis](study):
        rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if options.rows:
            with open(options.rows, "a", encoding="utf-8") as file:
                file.write(line + "\n")
    if options.plot:
        draw(options.analysis, rows, options.plot)
    if options.document:
        table = build_table(options.analysis, rows)
        write_between(options.document, options.analysis, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
