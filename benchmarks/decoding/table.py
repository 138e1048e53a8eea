"""The decoding benchmark's rows as Markdown."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.lib import write_between

_HEADERS = {
    "build": "Building the index",
    "step": "One candidate step",
    "loop_trivial": "The whole loop around a model that only reads a table",
    "loop_real": "The whole loop with TIGER, random weights",
}


def write_table(rows_file: Path, table_file: Path) -> None:
    """Puts the newest row of every comparison between the file's marks."""
    newest: dict[str, dict[str, Any]] = {}
    for line in rows_file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        case = {k: v for k, v in row["case"].items() if not k.endswith("_ms")}
        newest[json.dumps([case, row["against"]], sort_keys=True)] = row
    rows = list(newest.values())
    lines: list[str] = []
    machines = {
        f"{row['environment']['device']} ({row['environment']['platform']}, "
        f"{row['environment']['cores']} cores)"
        for row in rows
    }
    commits = {row["environment"]["commit"] for row in rows}
    lines += [
        f"On {', '.join(sorted(machines))}; commits {', '.join(sorted(commits))}."
    ]
    lines += [
        "Milliseconds are medians of runs in turns; a ratio above 1 is ours faster.",
        "",
    ]
    by_part: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_part[row["case"]["part"]].append(row)
    for part, header in _HEADERS.items():
        if by_part[part]:
            lines += [f"### {header}", "", *_table(by_part[part]), ""]
    write_between(table_file, "decode", "\n".join(lines))


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cases: dict[str, dict[str, Any]] = {}
    sides: list[str] = []
    for row in rows:
        case = {k: v for k, v in row["case"].items() if k != "their_sort_ms"}
        found = cases.setdefault(json.dumps(case), {"case": case})
        found["ours"] = row["ours_ms"]
        found["peak"] = row.get("ours_peak_gb")
        if row["against"]:
            found[row["against"]] = row
            if row["against"] not in sides:
                sides.append(row["against"])
    names = list(dict.fromkeys(k for c in cases.values() for k in c["case"]))
    names.remove("part")
    has_peak = any(found["peak"] for found in cases.values())
    titles = [*names, "ours ms", *(["peak GB"] if has_peak else [])]
    titles += [f"{side} (ratio)" for side in sides]
    lines = [f"| {' | '.join(titles)} |", "|" + "--|" * len(titles)]
    for found in cases.values():
        cells = [_cell(found["case"].get(name, "")) for name in names]
        cells.append(f"{found['ours']:.2f}")
        if has_peak:
            cells.append(_cell(found["peak"] or ""))
        for side in sides:
            cells.append(_against(found[side]) if side in found else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _against(row: dict[str, Any]) -> str:
    """The other side's milliseconds and the ratio, to two places that say something."""
    ratio = f"{row['ratio']:.2f}" if row["ratio"] >= 0.095 else f"{row['ratio']:.3f}"
    return f"{row['theirs_ms']:.1f} ({ratio}x)"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
