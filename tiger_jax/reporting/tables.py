"""Result tables: ours, the baselines, the best possible, and what others publish."""

import dataclasses
import unicodedata
from collections.abc import Container, Mapping, Sequence
from typing import Any

from tiger_jax.evaluation.names import BASELINE_NAMES, FUSED, OURS
from tiger_jax.reporting.paper_rows import PublishedRow

COLUMNS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "recall@20", "mrr@20")


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """One line of a result table.

    Attributes:
        name: The method.
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
      published: Rows for this data, if it was recognised.
      fusion: The content of ``fusion/metrics.json``, if something was fused.
    """
    intervals = baseline_intervals or {}
    rows = [
        ResultRow(
            BASELINE_NAMES.get(name, name),
            "baseline",
            splits[split],
            intervals.get(name, {}).get(split, {}),
        )
        for name, splits in metrics["baselines"].items()
        if split in splits
    ]
    ours = metrics[split]
    rows.append(ResultRow(OURS, "ours", ours, metrics["intervals"].get(split, {})))
    ceiling = metrics.get("ceiling")
    if ceiling and split == "test":
        note = "known, since the shop is generated"
        rows.append(ResultRow("Best possible", "ceiling", ceiling, note=note))
        share = {m: ours[m] / ceiling[m] for m in ours if ceiling.get(m)}
        rows.append(ResultRow("Our share of it", "share", share))
    if fusion and split in fusion:
        rows += build_fusion_rows(fusion, split, besides=metrics["baselines"])
    rows += [
        ResultRow(row.method, "published", row.metrics, note=row.source)
        for row in published
    ]
    return rows


def build_fusion_rows(
    fusion: Mapping[str, Any], split: str, *, besides: Container[str] = ()
) -> list[ResultRow]:
    """One split's fused recommender, behind those of its parts that have no row yet.

    Args:
      fusion: The content of ``fusion/metrics.json``.
      split: "test" or "test_masked".
      besides: Baselines that stand in the table already, as the recommender does.
    """
    rows = [
        ResultRow(
            BASELINE_NAMES[name],
            "baseline",
            splits[split],
            fusion["part_intervals"][name][split],
        )
        for name, splits in fusion["parts"].items()
        if name in BASELINE_NAMES and name not in besides
    ]
    weights = fusion["settings"]["weights"]
    note = "weights from validation: " + ", ".join(
        f"{BASELINE_NAMES.get(name, 'TIGER')} {weight:.2f}"
        for name, weight in weights.items()
    )
    intervals = fusion["intervals"][split]
    return [*rows, ResultRow(FUSED, "fused", fusion[split], intervals, note)]


def format_value(row: ResultRow, metric: str) -> str:
    """A number as the literature prints it (.0648), or a share in percent.

    Example:
      >>> format_value(ResultRow("TIGER", "ours", {"recall@10": 0.06484}), "recall@10")
      '.0648'
    """
    value = row.values.get(metric)
    if value is None:
        return "–"
    if row.kind == "share":
        return f"{value:.1%}"
    return f"{value:.4f}".removeprefix("0")


def format_interval(interval: Sequence[float]) -> str:
    """Both ends of an interval.

    Example:
      >>> format_interval((0.0612, 0.0671))
      '.0612–.0671'
    """
    return "–".join(f"{end:.4f}".removeprefix("0") for end in interval)


def format_result_table(
    title: str, rows: Sequence[ResultRow], columns: Sequence[str] = COLUMNS
) -> str:
    """Lays the rows out for a terminal; intervals stand under our own numbers."""
    cells = [["", *(metric_title(metric) for metric in columns)]]
    for row in rows:
        cells.append([row.name, *(format_value(row, m) for m in columns)])
        if row.kind == "ours" and row.intervals:
            ends = [
                format_interval(row.intervals[m]) if m in row.intervals else ""
                for m in columns
            ]
            cells.append(["  95 % interval", *ends])
    notes = [""] + [
        note
        for row in rows
        for note in (
            [row.note, ""] if row.kind == "ours" and row.intervals else [row.note]
        )
    ]
    return f"{title}\n{format_columns(cells, notes)}"


def metric_title(metric: str) -> str:
    """`recall@10` as a column's title.

    Example:
      >>> metric_title("ndcg@10"), metric_title("recall@5")
      ('NDCG@10', 'Recall@5')
    """
    name, _, cutoff = metric.partition("@")
    return f"{name.capitalize() if name == 'recall' else name.upper()}@{cutoff}"


def format_columns(
    cells: Sequence[Sequence[str]], notes: Sequence[str] | None = None
) -> str:
    """Aligns columns: the first to the left, the others to the right; header ruled."""
    widths = [max(map(display_width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for number, row in enumerate(cells):
        padded = [
            row[0] + " " * (widths[0] - display_width(row[0])),
            *(
                " " * (width - display_width(cell)) + cell
                for width, cell in zip(widths[1:], row[1:], strict=True)
            ),
        ]
        note = f"   {notes[number]}" if notes and notes[number] else ""
        lines.append(("  " + "  ".join(padded) + note).rstrip())
        if number == 0:
            lines.append("  " + "─" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def display_width(text: str) -> int:
    """Columns that a text takes on a terminal; East Asian wide letters take two."""
    return sum(
        0
        if unicodedata.combining(letter)
        else 2
        if unicodedata.east_asian_width(letter) in "WF"
        else 1
        for letter in text
    )


def shorten(text: str, width: int) -> str:
    """Cuts a text to so many terminal columns, with an ellipsis where it was cut.

    Control characters become spaces: a title must not move the cursor.
    """
    text = "".join(
        " " if unicodedata.category(letter) in ("Cc", "Cf") else letter
        for letter in text
    )
    if display_width(text) <= width:
        return text
    while text and display_width(text) > width - 1:
        text = text[:-1]
    return text.rstrip() + "…"
