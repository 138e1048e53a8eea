"""The decoding benchmark's rows as Markdown."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import lib
from benchmarks.lib import Row

_HEADERS = {
    "build": "Building the index",
    "step": "One candidate step",
    "loop_trivial": "The whole loop around a model that only reads a table",
    "loop_real": "The whole loop with TIGER, random weights",
}


def _case(row: Row) -> Row:
    return {k: v for k, v in row["case"].items() if not k.endswith("_ms")}


def write_table(rows_file: Path, table_file: Path) -> None:
    """Puts the newest row of every comparison between the file's marks."""
    rows = lib.newest_rows(rows_file, lambda row: [_case(row), row["against"]])
    found = [row["environment"] for row in rows]
    machines = {f"{e['device']} ({e['platform']}, {e['cores']} cores)" for e in found}
    commits = {e["commit"] for e in found}
    lines = [
        f"On {', '.join(sorted(machines))}; commits {', '.join(sorted(commits))}.",
        "Milliseconds are medians of runs in turns; a ratio above 1 is ours faster.",
        "",
    ]
    by_part: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_part[row["case"]["part"]].append(row)
    for part, header in _HEADERS.items():
        if by_part[part]:
            lines += [f"### {header}", "", *_table(by_part[part]), ""]
    lib.write_between(table_file, "decode", "\n".join(lines))


def _table(rows: Sequence[Row]) -> list[str]:
    cases: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        cases[json.dumps(_case(row))].append(row)
    names = list(dict.fromkeys(name for row in rows for name in _case(row)))
    names.remove("part")
    sides = list(dict.fromkeys(row["against"] for row in rows if row["against"]))
    has_peak = any("ours_peak_gb" in row for row in rows)
    cells = []
    for own in cases.values():
        last, by_side = own[-1], {row["against"]: row for row in own}
        line = [_cell(last["case"].get(name, "")) for name in names]
        line.append(f"{last['ours_ms']:.2f}")
        if has_peak:
            line.append(_cell(last.get("ours_peak_gb", "")))
        line += [_against(by_side[side]) if side in by_side else "" for side in sides]
        cells.append(line)
    titles = [*names, "ours ms", *(["peak GB"] if has_peak else [])]
    return lib.markdown_table([*titles, *(f"{side} (ratio)" for side in sides)], cells)


def _against(row: Row) -> str:
    """The other side's milliseconds and the ratio, to two places that say something."""
    ratio = f"{row['ratio']:.2f}" if row["ratio"] >= 0.095 else f"{row['ratio']:.3f}"
    return f"{row['theirs_ms']:.1f} ({ratio}x)"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
