"""The results in the documents, from rows that `results_rows` collected.

All of them go into docs/results.md, those of `HEADLINE` into the README too. Nothing is
typed in: our cells come from the rows, published ones from
`tiger_jax.reporting.paper_rows`, and why a recipe has no cell from the header of its
gin file. Runs that differ in their seed alone become one row, with their mean and the
95 % interval of that mean.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from benchmarks import lib
from benchmarks.lib import ROOT, Row
from benchmarks.paper.plan import REDUCED, RUNS
from benchmarks.paper.results_rows import SPLITS
from tiger_jax.errors import InputError
from tiger_jax.evaluation.baselines.known import TITLES
from tiger_jax.reporting import paper_rows
from tiger_jax.reporting.tables import format_mean

METRICS = paper_rows.METRICS
ORDER = (*TITLES, "", "tiger", "codes_alone", "fusion")  # "": baselines of one's own

# The README's rows, before a published one: a method, experiments of which the first
# with rows is taken, and what it is called.
HEADLINE_DATA, HEADLINE_PAPER = "amazon2014_beauty", "TIGER, mean"
HEADLINE = (
    ("item_cooccurrence", ("",), "Item co-occurrence"),
    ("sasrec", ("sasrec", "beauty_longer"), "SASRec, full softmax"),
    ("sasrec", ("bsarec",), "BSARec"),
    (
        "codes_alone",
        ("two_level",),
        "**Two-level generator**, by its codes alone",
    ),
    (
        "tiger",
        ("two_level",),
        "**Two-level generator** with its dense head",
    ),
)
MAY_LACK = ("BSARec",)
_HEADLINE_METRICS = ("recall@10", "ndcg@10")


def build_results(rows: Sequence[Row]) -> str:
    """The section of every data set that there are rows of, or published numbers."""
    by_data: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_data[row["data"]].append(row)
    parts = [_section(own) for own in by_data.values()]
    seen = {known.name for own in by_data.values() if (known := _known(own))}
    for known in paper_rows.KNOWN_DATA:
        if known.name not in seen:
            parts.append(f"**{known.title}**: *not run: {_why_not(known.name)}*.")
    parts.append("Made by `make reproduce` from [results.jsonl](results.jsonl).")
    return "\n\n".join(parts)


def build_headline(rows: Sequence[Row]) -> str:
    """The README's table: the rows of `HEADLINE`, then the paper's.

    Raises:
        InputError: There is no row of one of them.
    """
    titles = ["", "seeds", *_HEADLINE_METRICS]
    titles += [f"{metric}, masked" for metric in _HEADLINE_METRICS]
    cells = []
    for method, experiments, name in HEADLINE:
        found = (
            [
                row
                for row in rows
                if (row["data"], row["method"]) == (HEADLINE_DATA, method)
                and row["experiment"] == experiment
            ]
            for experiment in experiments
        )
        own = next(filter(None, found), [])
        if not own and name in MAY_LACK:
            continue
        if not own:
            raise InputError(f"there is no row of {method} {experiments} for {name}")
        name += "†" * any("stale" in row for row in own)
        seeds = {row["seed"] for row in own}
        values = [
            _mean([row["metrics"][metric] for row in own if row["split"] == split])
            for split in SPLITS
            for metric in _HEADLINE_METRICS
        ]
        cells.append([name, "–" if seeds == {None} else len(seeds), *values])
    known = _known([row for row in rows if row["data"] == HEADLINE_DATA])
    assert known is not None
    for row in paper_rows.PUBLISHED[known.name]:
        if row.method == HEADLINE_PAPER:
            shown = (lib.format_short(row.metrics[m]) for m in _HEADLINE_METRICS)
            cells.append([f"*{row.method}* ({row.source})", "", *shown, "–", "–"])
    return "\n".join(lib.markdown_table(titles, cells, "|---|--:|"))


def _section(rows: Sequence[Row]) -> str:
    """One data set: its table, and what made the rows."""
    known, first = _known(rows), rows[0]
    title = f"{known.title if known else first['data']}, test"
    titles = [title, "seeds", *METRICS, *(f"{metric}, masked" for metric in METRICS)]
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["method"], row["experiment"]].append(row)
    named = Counter(own[0]["name"] for own in groups.values())
    notes, cells, stale = [], [], dict[str, list[str]]()
    for (method, experiment), own in sorted(
        groups.items(),
        key=lambda item: ORDER.index(item[0][0] if item[0][0] in ORDER else ""),
    ):
        name = _name(method, experiment, own[0])
        if experiment not in RUNS and method == "sasrec" and named[own[0]["name"]] > 1:
            name += f" (`{experiment}`)"
        if reason := next((row["stale"] for row in own if "stale" in row), ""):
            name += "†"
            stale.setdefault(reason, []).append(f"`{experiment}`")
        seeds = {row["seed"] for row in own}
        means = (
            _mean([r["metrics"][metric] for r in own if r["split"] == split])
            for split in SPLITS
            for metric in METRICS
        )
        cells.append([name, "–" if seeds == {None} else len(seeds), *means])
        notes += _notes(name, own)
    lines = lib.markdown_table(titles, cells, "|---|--:|")
    if known:
        lines += _published(known.name)
    whom = f"{first['users']:,} test users drawn by seed"
    if first["users"] >= first["data_users"]:
        whom = "all of them"
    about = (
        f"{first['data_users']:,} users, {first['data_items']:,} items; measured on "
        f"{whom}. *Masked*: items that the user already has are left out. A tie "
        "counts against the target. Every model was chosen on validation; how often "
        "its test split was read stands beside its run. Mean ± 95 % interval of the "
        "mean over seeds, where there are several. Of published rows, those under "
        "*masked* say that they mask; the others say nothing."
    )
    for reason, names in stale.items():
        about += f" †{', '.join(dict.fromkeys(names))}: {reason}."
    for caveat in dict.fromkeys(map(_caveat, (row["experiment"] for row in rows))):
        about += caveat
    if notes:
        title = "What each run took, how sure it is, and the command that made it"
        notes = [f"<details><summary>{title}</summary>", "", *notes, "", "</details>"]
    return "\n".join([*lines, "", about, "", *notes]).rstrip()


def _header(experiment: str) -> str:
    """The text of an experiment's gin file; without one, nothing."""
    path = ROOT / "gin_configs" / "experiments" / f"{experiment}.gin"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _caveat(experiment: str) -> str:
    """What the header of an experiment's gin file says of its data, if anything."""
    name = experiment.partition(",")[0]
    found = re.search(r"# Data: +(.*?)\n# \w+:", _header(name), re.DOTALL)
    if found is None:
        return ""
    return f" *`{name}`*: " + " ".join(found[1].replace("\n#", " ").split())


def _known(rows: Sequence[Row]) -> paper_rows.KnownData | None:
    sizes = (rows[0][f"data_{what}"] for what in ("users", "items", "interactions"))
    return paper_rows.recognise(*sizes)


def _name(method: str, experiment: str, row: Row) -> str:
    alone = ", codes alone" * (method == "codes_alone")
    run = RUNS.get(experiment.removesuffix(f", {REDUCED}"))
    if run and method in ("tiger", "codes_alone", "sasrec"):
        return f"**{run.title}{alone}** (`{experiment}`)"
    if method in ("tiger", "codes_alone"):
        return f"**TIGER, `{experiment}`{alone}**"
    if method == "fusion":
        parts = [
            "TIGER" if part == "tiger" else TITLES.get(part, part)
            for part, weight in row["weights"].items()
            if weight
        ]
        return f"**Fusion** of {', '.join(parts)} (`{experiment}`)"
    return row["name"]


def _mean(values: Sequence[float]) -> str:
    return format_mean(values) if values else "*not run*"


def _published(name: str) -> list[str]:
    """The published rows, and that the paper's recipe has not been run here."""
    lines = []
    for row in paper_rows.PUBLISHED[name]:
        cells = [
            lib.format_short(row.metrics[m]) if m in row.metrics else ""
            for m in METRICS
        ]
        blank = [""] * len(METRICS)
        cells = blank + cells if row.is_masked else cells + blank
        lines.append(f"| *{row.method}* ({row.source}) | | {' | '.join(cells)} |")
    nothing = " |" * (2 * len(METRICS) - 1)
    lines.append(f"| `{name}_paper` here | 0 | *not run: {_why_not(name)}* |{nothing}")
    return lines


def _why_not(name: str) -> str:
    """What the paper's recipe needs, as the header of its gin file says."""
    header = _header(f"{name}_paper").replace("\n#", " ")
    found = re.search(r"Not run here: ([^.]+)\.", header)
    if found is None:
        raise InputError(f"experiments/{name}_paper.gin doesn't say why it was not run")
    return " ".join(found[1].split())


def _notes(name: str, rows: Sequence[Row]) -> list[str]:
    """Per run: intervals over users, cost, and the command."""
    notes = []
    runs: dict[int, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["seed"] is not None:
            runs[row["seed"]][row["split"]] = row
    for seed, by_split in sorted(runs.items()):
        row = next(iter(by_split.values()))
        ends = [
            f"{'masked ' if split == 'test_masked' else ''}{metric} "
            + "–".join(lib.format_short(e) for e in own["intervals"][metric])
            for split, own in by_split.items()
            for metric in ("recall@10", "ndcg@10")
        ]
        facts = [", ".join(ends) + " over users"]
        if "updates" in row:
            facts.append(
                f"{row['parameters'] / 1e6:.2f}M parameters, {row['updates']:,} "
                f"updates, {row['examples']:,} examples"
            )
        if "gflops_per_s" in row:
            facts.append(
                f"{row['gflop_per_example']:.2f} GFLOP an example, "
                f"{row['gflops_per_s']:.0f} GFLOP/s"
            )
        if reads := row.get("test_reads"):
            facts.append(f"test split read {reads} time{'s' * (reads > 1)}")
        facts += [
            f"ahead of {part} by {gain[0]:.4f} ({gain[1]:.4f} to {gain[2]:.4f}) in "
            f"{'masked ' * (split == 'test_masked')}ndcg@10"
            for split, own in by_split.items()
            for part, gain in own.get("ahead", {}).items()
        ]
        facts += [
            f"{part}'s part in it: {gain[0]:.4f} ({gain[1]:.4f} to {gain[2]:.4f}) of "
            "masked validation ndcg@10"
            for part, gain in row.get("gains", {}).items()
        ]
        if "weights" in row:
            weights = ", ".join(f"{part} {w:g}" for part, w in row["weights"].items())
            facts.append(f"weights over {row['normalization']}: {weights}")
        facts.append(
            f"{row['minutes']:.0f} minutes of wall time on {row['hardware']}, seed "
            f"{seed}, commit `{row['commit']}`, configuration `{row['config_hash']}`, "
            f"by `{row['command']}`"
        )
        notes.append(f"- {name}: {'; '.join(facts)}.")
    return notes
