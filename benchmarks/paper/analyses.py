"""What the paper asks of a trained model besides recall: one command per question.

    python -m benchmarks.paper.analyses invalid_ids --workdir=runs/beauty
    python -m benchmarks.paper.analyses diversity --workdir=runs/beauty

*   `invalid_ids`: the share of Semantic IDs that no item has among the K best of a
    search that knows no catalogue (Rajput et al. 2023, 4.5 and figure 6), and what
    the catalogue's constraint does for recall.
*   `diversity`: Entropy@K of categories, recall and coverage, when lists are drawn at
    a temperature instead of searched (4.3 and table 4). The paper samples with
    replacement level by level; here the items of a list differ.

On validation users, so that the test split stays unread. One JSON row per setting is
printed and, with --rows, appended to a file; --plot draws them, --document writes
their table into a Markdown file between <!-- invalid_ids --> (or diversity) marks.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import lib
from benchmarks.lib import Row
from benchmarks.paper.study import Study, interval, metric_cell, recall_facts
from tiger_jax.evaluation import diversity

BEAMS = (10, 20, 50, 100)
TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)  # 0 stands for beam search
CUTOFFS = (10, 20, 50)


def _row(study: Study, analysis: str, case: Row, found: Row, started: float) -> Row:
    minutes = round((time.perf_counter() - started) / 60, 2)
    row = {"benchmark": "paper_analyses", "analysis": analysis, "case": case}
    return {**row, **found, "minutes": minutes, **study.about}


def measure_invalid_ids(study: Study, beams: Sequence[int] = BEAMS) -> Iterator[Row]:
    """With and without the catalogue's constraint, for each number of beams."""
    for num_beams in beams:
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
            yield _row(study, "invalid_ids", case, facts, started)


def measure_diversity(
    study: Study, temperatures: Sequence[float] = TEMPERATURES
) -> Iterator[Row]:
    """Lists at each temperature."""
    longest = max(CUTOFFS) + 1
    ours = study.load(longest)
    categories = study.data.category_of_items()
    for temperature in temperatures:
        started = time.perf_counter()
        recommend: Any = ours
        if temperature:
            recommend = functools.partial(
                ours.sample,
                temperature=temperature,
                rng=np.random.default_rng(study.seed),
            )
        found = study.evaluate(recommend, longest, f"temperature {temperature:g}")
        facts = recall_facts(found, study.seed)
        for k in CUTOFFS:
            values = diversity.category_entropy(found.item_numbers, categories, k)
            facts["metrics"][f"entropy@{k}"] = float(values.mean())
            facts["intervals"][f"entropy@{k}"] = interval(values, study.seed)
            facts["metrics"][f"coverage@{k}"] = diversity.catalogue_coverage(
                found.item_numbers, study.data.num_items, k
            )
        yield _row(study, "diversity", {"temperature": temperature}, facts, started)


ANALYSES: dict[str, Callable[..., Iterator[Row]]] = {
    "invalid_ids": measure_invalid_ids,
    "diversity": measure_diversity,
}


def draw(analysis: str, rows: Sequence[Row], file: Path) -> None:
    """One picture of an analysis' rows."""
    with lib.draw(file, 1, 2, figsize=(9, 3.4)) as (_, ((left, right),)):
        if analysis == "invalid_ids":
            free = [row for row in rows if row["case"]["constraint"] == "none"]
            beams = [row["case"]["beams"] for row in free]
            left.plot(beams, [100 * row["invalid_share"] for row in free], marker="o")
            left.set(xlabel="beams", ylabel="invalid Semantic IDs, %", ylim=(0, None))
            for constraint, name in (("none", "unconstrained"), ("catalogue", "trie")):
                own = [row for row in rows if row["case"]["constraint"] == constraint]
                _line(right, "beams", own, "recall@10", name)
            right.set(xlabel="beams", ylabel="recall@10, validation")
        else:
            for k in CUTOFFS:
                _line(left, "temperature", rows, f"entropy@{k}", f"Entropy@{k}")
            left.set(xlabel="temperature (0: beam search)", ylabel="nats")
            _line(right, "temperature", rows, "recall@10", "recall@10")
            right.set(xlabel="temperature (0: beam search)", ylabel="validation")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False)


def _line(axes: Any, x: str, rows: Sequence[Row], metric: str, name: str) -> None:
    at = [row["case"][x] for row in rows]
    low, high = zip(*(row["intervals"][metric] for row in rows), strict=True)
    axes.plot(at, [row["metrics"][metric] for row in rows], marker="o", label=name)
    axes.fill_between(at, low, high, alpha=0.2)


def build_table(analysis: str, rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, and what they were measured on."""
    first = rows[0]
    if analysis == "invalid_ids":
        setting = "beams"
        by_case = {(r["case"]["beams"], r["case"]["constraint"]): r for r in rows}
        cells = []
        for beams in dict.fromkeys(row["case"]["beams"] for row in rows):
            free, bound = by_case[beams, "none"], by_case[beams, "catalogue"]
            recalls = (metric_cell(side, "recall@10") for side in (free, bound))
            cells.append([beams, f"{free['invalid_share']:.2%}", *recalls])
        titles = ["beams", "invalid IDs among them"]
        titles += ["recall@10, unconstrained", "recall@10, trie"]
        lines = lib.markdown_table(titles, cells, "|--:|--:|---|")
    else:
        setting = "temperature"
        shown = [*(f"entropy@{k}" for k in CUTOFFS), "recall@10", "coverage@10"]
        cells = [
            [
                row["case"]["temperature"] or "beam search",
                *(metric_cell(row, metric) for metric in shown),
            ]
            for row in rows
        ]
        lines = lib.markdown_table(["temperature", *shown], cells, "|--:|---|")
    minutes = sum(row["minutes"] for row in rows)
    settings = dict.fromkeys(row["case"][setting] for row in rows)
    about = (
        f"{first['data']}, {first['users']:,} validation users, 95 % bootstrap "
        f"intervals over them; {minutes:.0f} minutes on {first['device']}, seed "
        f"{first['seed']}, commit `{first['commit']}`, recommender "
        f"`{first['recommender'][:12]}`, by `python -m benchmarks.paper.analyses "
        f"{analysis} --workdir=… --max_users={first['users']} "
        f"--{setting.removesuffix('s')}s {' '.join(f'{s:g}' for s in settings)}`."
    )
    return "\n".join([*lines, "", about])


def main() -> None:
    """Prints the rows as JSON."""
    parser = lib.make_parser(__doc__, "workdir", "seed", "rows", "plot", "document")
    add = parser.add_argument
    add("analysis", choices=list(ANALYSES))
    add("--max_users", type=int, default=2000)
    add("--beams", type=int, nargs="+", default=BEAMS, help="of invalid_ids")
    add("--temperatures", type=float, nargs="+", default=TEMPERATURES)
    options = parser.parse_args()
    analysis = options.analysis
    settings = options.beams if analysis == "invalid_ids" else options.temperatures
    study = Study(options.workdir, max_users=options.max_users, seed=options.seed)
    rows = []
    for row in ANALYSES[analysis](study, settings):
        lib.report(row, options.rows)
        rows.append(row)
    table, plot = (functools.partial(f, analysis) for f in (build_table, draw))
    lib.publish(options, analysis, rows, table, plot)


if __name__ == "__main__":
    lib.run(main)
