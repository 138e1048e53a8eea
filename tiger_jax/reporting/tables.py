"""Result tables: ours, the baselines, the best possible, and what others publish."""

import dataclasses
import unicodedata
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from rich.cells import cell_len, set_cell_size

from tiger_jax.data.prepared import PreparedData
from tiger_jax.evaluation.metrics import REPORTED
from tiger_jax.evaluation.record import FUSED, OUR_TITLE, title_of
from tiger_jax.reporting.paper_rows import PublishedRow, recognise_data

COLUMNS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "recall@20", "mrr@20")


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """One line of a result table.

    Attributes:
        kind: "baseline", "ours", "fused", "ceiling", "share" or "published".
        values: By metric; what isn't known is absent.
        intervals: 95 % intervals by metric, where computed.
        note: Where the numbers come from, if not from this run.
    """

    name: str
    kind: str
    values: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    note: str = ""


def build_result_rows(
    metrics: Mapping[str, Any],
    split: str,
    *,
    baseline_intervals: Mapping[str, Any] | None = None,
    published: Sequence[PublishedRow] = (),
    fusion: Mapping[str, Any] | None = None,
) -> list[ResultRow]:
    """Puts one split's numbers in reading order: weakest idea first, then ours.

    Args:
        metrics: The content of ``evaluation/metrics.json``.
        split: "test", "test_masked" or "validation". The ceiling is known for the
            unmasked test only, and shown there only.
        baseline_intervals: By baseline and split, from ``evaluation/details.json``.
        fusion: The content of ``fusion/metrics.json``, if something was fused.
    """
    intervals = baseline_intervals or {}
    rows = [
        ResultRow(
            title_of(metrics, name),
            "baseline",
            splits[split],
            intervals.get(name, {}).get(split, {}),
        )
        for name, splits in metrics["baselines"].items()
        if split in splits
    ]
    ours = metrics[split]
    rows.append(ResultRow(OUR_TITLE, "ours", ours, metrics["intervals"].get(split, {})))
    ceiling = metrics.get("ceiling")
    if ceiling and split == "test":
        note = "known, since the shop is generated"
        rows.append(ResultRow("Best possible", "ceiling", ceiling, note=note))
        share = {m: ours[m] / ceiling[m] for m in ours if ceiling.get(m)}
        rows.append(ResultRow("Our share of it", "share", share))
    if fusion and split in fusion:
        rows += build_fusion_rows(fusion, split, besides=metrics["baselines"])
    rows += [
        ResultRow(
            row.method,
            "published",
            row.metrics,
            note=row.source + ", masked" * row.is_masked,
        )
        for row in published
    ]
    return rows


def build_fusion_rows(
    fusion: Mapping[str, Any], split: str, *, besides: Container[str] = ()
) -> list[ResultRow]:
    """One split's fused recommender, behind those of its parts that have no row yet.

    Args:
        besides: Baselines that stand in the table already, as the recommender does.
    """
    rows = [
        ResultRow(
            title_of(fusion, name),
            "baseline",
            splits[split],
            fusion["part_intervals"][name][split],
        )
        for name, splits in fusion["parts"].items()
        if name != "tiger" and name not in besides
    ]
    weights = fusion["settings"]["weights"]
    note = "weights from validation: " + ", ".join(
        f"{'TIGER' if name == 'tiger' else title_of(fusion, name)} {weight:.2f}"
        for name, weight in weights.items()
    )
    intervals = fusion["intervals"][split]
    return [*rows, ResultRow(FUSED, "fused", fusion[split], intervals, note)]


def format_value(row: ResultRow, metric: str) -> str:
    """A number as the literature prints it (.0648), or a share in percent.

    Examples:
        >>> format_value(ResultRow("TIGER", "ours", {"mrr@20": 0.06484}), "mrr@20")
        '.0648'
    """
    value = row.values.get(metric)
    if value is None:
        return "–"
    return f"{value:.1%}" if row.kind == "share" else short(value)


def short(value: float) -> str:
    """Four decimals, without the zero before the point."""
    return f"{value:.4f}".removeprefix("0")


def format_mean(values: Sequence[float]) -> str:
    """A mean over seeds, with the half width of its 95 % t interval from two on.

    Examples:
        >>> format_mean([0.0665]), format_mean([0.0660, 0.0670, 0.0665])
        ('.0665', '.0665 ± .0012')
    """
    mean = short(float(np.mean(values)))
    if len(values) < 2:
        return mean
    from scipy import stats

    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean} ± {short(stats.t.ppf(0.975, len(values) - 1) * error)}"


def format_interval(interval: Sequence[float]) -> str:
    """Both ends of an interval.

    Examples:
        >>> format_interval((0.0612, 0.0671))
        '.0612–.0671'
    """
    return "–".join(map(short, interval))


def format_evaluation(
    metrics: Mapping[str, Any], details: Mapping[str, Any], data: PreparedData
) -> str:
    """What `evaluate` found, for a terminal: the test splits, then the checks."""
    published = recognise_data(data)[1]
    lines = []
    for split, title in (
        ("test", "Test, whole catalogue (the headline)"),
        ("test_masked", "Test, items that the user already has masked"),
    ):
        rows = build_result_rows(metrics, split, published=published)
        lines.append(f"\n{format_result_table(title, rows)}")
    lines.append("")
    for check in details["guards"]:
        mark = "ok" if check["is_fine"] else "WARNING"
        lines.append(f"{mark}: {check['explanation']}")
    return "\n".join(lines)


def format_fusion(fusion: Mapping[str, Any]) -> str:
    """What `fuse` found, for a terminal."""
    lines = []
    for split, title in (
        ("test", "Test"),
        ("test_masked", "Test, items that the user already has masked"),
    ):
        ours = fusion["parts"].get("tiger", {}).get(split)
        rows = [ResultRow(OUR_TITLE, "baseline", ours)] if ours else []
        rows += build_fusion_rows(fusion, split)
        lines.append("\n" + format_result_table(title, rows))
    chosen = fusion["validation_masked"]
    without = [f"{n} alone left out {v:.4f}" for n, v in chosen["without"].items()]
    fused = f"masked validation {chosen['metric']} {chosen['fusion']:.4f}"
    return "\n".join([*lines, "", "; ".join([fused, *without])])


def format_result_table(
    title: str, rows: Sequence[ResultRow], columns: Sequence[str] | None = None
) -> str:
    """Lays the rows out for a terminal; intervals stand under our own numbers."""
    columns = columns or columns_of(rows)
    cells, notes = [["", *(metric_title(metric) for metric in columns)]], [""]
    for row in rows:
        cells.append([row.name, *(format_value(row, m) for m in columns)])
        notes.append(row.note)
        if row.kind == "ours" and row.intervals:
            ends = [
                format_interval(row.intervals[m]) if m in row.intervals else ""
                for m in columns
            ]
            cells.append(["  95 % interval", *ends])
            notes.append("")
    return f"{title}\n{format_columns(cells, notes)}"


def columns_of(rows: Sequence[ResultRow]) -> tuple[str, ...]:
    """The usual columns, and those of metrics that somebody added."""
    added = (m for row in rows for m in row.values if m not in REPORTED)
    return (*COLUMNS, *dict.fromkeys(added))


def metric_title(metric: str) -> str:
    """`recall@10` as a column's title.

    Examples:
        >>> metric_title("ndcg@10"), metric_title("recall@5")
        ('NDCG@10', 'Recall@5')
    """
    name, _, cutoff = metric.partition("@")
    return f"{name.upper() if len(name) <= 4 else name.capitalize()}@{cutoff}"


def format_columns(
    cells: Sequence[Sequence[str]], notes: Sequence[str] | None = None
) -> str:
    """Aligns columns: the first to the left, the others to the right; header ruled."""
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for number, row in enumerate(cells):
        padded = [set_cell_size(row[0], widths[0])]
        for width, cell in zip(widths[1:], row[1:], strict=True):
            padded.append(" " * (width - cell_len(cell)) + cell)
        note = f"   {notes[number]}" if notes and notes[number] else ""
        lines.append(("  " + "  ".join(padded) + note).rstrip())
        if number == 0:
            lines.append("  " + "─" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def shorten(text: str, width: int) -> str:
    """Cuts a text to so many terminal columns, with an ellipsis where it was cut.

    Control characters become spaces: a title must not move the cursor.
    """
    control = ("Cc", "Cf")
    text = "".join(" " if unicodedata.category(c) in control else c for c in text)
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…"
