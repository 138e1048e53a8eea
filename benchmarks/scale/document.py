"""The rows of `benchmarks.scale` as tables and a plot."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import lib
from benchmarks.lib import Row
from benchmarks.scale.plan import plan_lines
from benchmarks.scale.rows import (
    ASSIGN_STEPS,
    FIT_FROM,
    by_stage,
    fit_exponent,
    micros_a_row,
    peak_above_start,
    read_rows,
    where,
)

COSTS = ("CPU seconds", "µs per item", "peak MB", "bytes per item")
# By what the names of their steps begin with.
_STAGES = {
    "join with items": ("joined",),
    "k-core": ("round", "survivors"),
    "items": ("items",),
    "histories": ("histories",),
    "tokens": ("tokens",),
    "embed (TF-IDF)": ("distinct", "embeddings"),
    "encode": ("encode",),
    "collisions": ("collision level", "write Semantic IDs"),
}


def write_document(rows_file: Path, document: Path) -> None:
    """Puts tables, exponents, plot and plan between the document's marks."""
    rows = read_rows(rows_file)
    picture = document.with_name(document.stem + ".png")
    local = [row for row in rows if row["part"] == "local"]
    end_to_end = [row for row in rows if row["part"] == "end_to_end"]
    sharded = [row for row in rows if row["part"] == "shards"]
    sharded += [row for row in end_to_end if row["stage"] in ASSIGN_STEPS.values()]
    draw(local, sharded, picture)
    for mark, lines in (
        ("scale", _local_table(local, picture.name)),
        ("shards", shards_table(sharded)),
        ("end_to_end", _end_to_end_table(end_to_end)),
        ("billion", plan_lines(rows)),
    ):
        lib.write_between(document, mark, "\n".join(lines))


def _local_table(rows: list[Row], picture: str) -> list[str]:
    cells, exponents = [], []
    for stage, own in by_stage(rows).items():
        cells += [(stage, f"{row['items']:,}", *_costs(row)) for row in own]
        fits = [fit_exponent(own, name) for name in ("cpu_seconds", "peak_bytes")]
        exponents.append(
            (stage, *("" if fit is None else f"{fit:.2f}" for fit in fits))
        )
    return [
        f"{where(rows)} Seconds are of one process's CPU (other work shared the "
        "machine), medians of 50 for `decode`, the fastest of two for `histories` and "
        "of three for `collisions`; memory is the process's peak, input and "
        "interpreter included.",
        "",
        *lib.markdown_table(["stage", "items", *COSTS], cells, "|---|--:|"),
        "",
        f"Fitted from {FIT_FROM:,} items on, quantity ~ items^exponent:",
        "",
        *lib.markdown_table(["stage", "time", "peak memory"], exponents, "|---|--:|"),
        "",
        f"![time and memory over the number of items]({picture})",
    ]


def _costs(row: Row) -> tuple[str, ...]:
    items, seconds, peak = row["items"], row["cpu_seconds"], row["peak_bytes"]
    each = (f"{1e6 * seconds / items:.3g}", f"{peak / 1e6:,.0f}")
    return (f"{seconds:.4g}", *each, f"{peak / items:,.0f}")


def shards_table(rows: list[Row]) -> list[str]:
    """Each step from the smallest to its largest size: what grew."""
    if not rows:
        return []
    sizes = sorted({row["rows"] for row in rows})
    cells = [
        (
            step,
            ", ".join(str(row["shards"]) for row in own),
            _megabytes([row["peak_bytes"] for row in own]),
            _megabytes([peak_above_start(row) for row in own]),
        )
        for step, own in by_stage(rows).items()
        if len(own) > 1
    ]
    titles = ["step", "shards", "peak MB", "larger by", "above the start", "larger by"]
    lines = [
        f"{where(rows)} {_listed(f'{size:,}' for size in sizes)} rows in all, in "
        "shards of 250,000: of interactions, with a tenth as many items, or, from "
        "`distinct` on, of items. One process a step works through all shards "
        "(`tokens`: through the number given).",
        "",
        *lib.markdown_table(titles, cells, "|---|--:|"),
        "",
    ]
    stages = []
    for stage, beginnings in _STAGES.items():
        own = [row for row in rows if row["stage"].startswith(beginnings)]
        by_size = {n: [row for row in own if row["rows"] == n] for n in sizes}
        micros = {n: sum(map(micros_a_row, found)) for n, found in by_size.items()}
        if not any(micros.values()):
            continue
        # The k-core takes more rounds of a larger shop.
        steps = len(next(found for found in reversed(by_size.values()) if found))
        shown = [f"{value:.3g}" if value else "–" for value in micros.values()]
        for before, size in itertools.pairwise(sizes):
            growth = "–"
            if micros[size] and micros[before]:
                slope = np.log(micros[size] / micros[before]) / np.log(size / before)
                growth = f"{1 + slope:.2f}"
            shown.append(growth)
        stages.append((stage, steps, *shown))
    titles = ["stage", "steps", *(f"µs per row of {size:,}" for size in sizes)]
    titles += [f"time exponent to {size:,}" for size in sizes[1:]]
    return lines + lib.markdown_table(titles, stages, "|---|--:|")


def _listed(names: Iterable[str]) -> str:
    """Names in a sentence.

    Example:
        >>> _listed(["1", "2", "3"])
        '1, 2 and 3'
    """
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _megabytes(values: list[int]) -> str:
    shown = ", ".join(f"{value / 1e6:.0f}" for value in values)
    return f"{shown} | {values[-1] / values[0] - 1:+.0%}"


def _end_to_end_table(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    most = max(row["rows"] for row in rows)
    own = [row for row in rows if row["rows"] == most]
    by_step = {row["stage"]: row for row in own}
    peak = max(row["peak_bytes"] for row in own)
    total = sum(row["cpu_seconds"] for row in own)
    seconds = own[0]["part_seconds"]
    cells = [(row["stage"], *_costs(row)) for row in own]
    lines = [
        f"{where(own)} {most:,} items, {total:,.0f} CPU seconds in all"
        + (f" ({seconds / 60:,.0f} minutes beside other work)" if seconds else "")
        + f", no process above {peak / 1e9:.1f} GB. Each step is a process of its own; "
        "embeddings have 32 dimensions in float16.",
        "",
        *lib.markdown_table(["step", *COSTS], cells, "|---|--:|"),
    ]
    train, table = by_step.get("train RQ-VAE", {}), by_step.get("table", {})
    if "sample" in train and "collision_rate" in table:
        lines += [
            "",
            f"Of {train['sample']:,} items' codes, `plan_semantic_ids` foretold "
            f"{train['planned_collision_rate']:.2%} collisions and a collision level "
            f"of {train['collision_level_size']:,}; {table['collision_rate']:.2%} "
            f"collide, and {table['largest_collision_codeword'] + 1:,} codewords of it "
            "are used.",
        ]
    if "device_bytes" in by_step.get("trie", {}):
        each = by_step["trie"]["device_bytes"] / most
        lines.append(f"The trie takes {each:.1f} bytes per item.")
    return lines + [
        f"A search of 20 beams takes {1e3 * row['search_cpu_seconds']:.3g} CPU "
        f"milliseconds ({row['stage']})."
        for row in own
        if "search_cpu_seconds" in row
    ]


def draw(local: list[Row], shards: list[Row], path: Path) -> None:
    """Time and memory of the local stages, and memory a shard, over the size."""
    with lib.draw(path, 1, 3, dpi=110, figsize=(14, 4.4)) as (_, (axes,)):
        for stage, own in by_stage(local).items():
            items = [row["items"] for row in own]
            seconds = [row["cpu_seconds"] for row in own]
            memory = [row["peak_bytes"] / 1e6 for row in own]
            axes[0].loglog(items, seconds, "o-", label=stage)
            axes[1].loglog(items, memory, "o-", label=stage)
        titles = ("time", "memory"), ("CPU seconds", "peak MB")
        for axis, what, up in zip(axes, *titles, strict=False):
            axis.set_title(f"local stages: {what}", fontsize=10)
            axis.set(xlabel="items", ylabel=up)
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
        _draw_steps(axes[2], shards)


def _draw_steps(axis: Any, shards: list[Row]) -> None:
    """Each step's memory a shard at every size, on one line."""
    steps = {step: own for step, own in by_stage(shards).items() if len(own) > 1}
    places = {step: place for place, step in enumerate(steps)}
    for number, size in enumerate(sorted({row["rows"] for row in shards})):
        rows = [row for own in steps.values() for row in own if row["rows"] == size]
        axis.scatter(
            [peak_above_start(row) / 1e6 for row in rows],
            [places[row["stage"]] for row in rows],
            marker="os^Dv"[number % 5],
            s=42 - 10 * min(number, 3),
            facecolors="none",
            edgecolors=f"C{number}",
            label=f"{size:,} rows in all",
        )
    axis.set_yticks(list(places.values()), list(places), fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_title("a shard of 250,000 rows: memory", fontsize=10)
    axis.set_xlabel("peak MB above the start")
    axis.grid(alpha=0.3)
    if steps:
        axis.legend(fontsize=8)
