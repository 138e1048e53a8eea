"""The rows of `benchmarks.scale` as a table, a plot, and a plan for a billion items."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.marked_sections import write_between
from tiger_jax.decoding.planner import expected_case, make_plan
from tiger_jax.semantic_ids.planning import plan_semantic_ids

BILLION = 1_000_000_000
# Below, a stage's fixed cost hides how it grows.
_FIT_FROM = 100_000
_SHARD_ITEMS = 1_000_000
Row = dict[str, Any]


def write_document(rows_file: Path, document: Path) -> None:
    """Puts table, exponents, plot and plan between the document's marks."""
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    rows.sort(key=lambda row: (row["stage"], row["items"]))
    picture = document.with_name(document.stem + ".png")
    _draw(rows, picture)
    write_between(document, "scale", "\n".join(_table(rows, picture.name)))
    write_between(document, "billion", "\n".join(_plan(rows)))


def fit_exponent(rows: list[Row], quantity: str) -> float | None:
    """The slope of log quantity over log items, from 10^5 items on.

    Example:
        >>> rows = [{"items": 10**5, "s": 1.0}, {"items": 10**6, "s": 10.0}]
        >>> round(fit_exponent(rows, "s"), 6)
        1.0
    """
    fitted = [row for row in rows if row["items"] >= _FIT_FROM]
    if len(fitted) < 2:
        return None
    items = np.log([row["items"] for row in fitted])
    values = np.log([row[quantity] for row in fitted])
    return float(np.polyfit(items, values, 1)[0])


def _by_stage(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["stage"], []).append(row)
    return found


def _table(rows: list[Row], picture: str) -> list[str]:
    machines = sorted({f"{r['cores']} cores, {r['machine']}" for r in rows})
    commits = sorted({r["commit"] for r in rows})
    lines = [
        f"On {'; '.join(machines)}; commits {', '.join(commits)}. Seconds are of one "
        "process's CPU (other work shared the machine), medians of 50 for `decode`; "
        "memory is the process's peak, input and interpreter included.",
        "",
        "| stage | items | CPU seconds | µs an item | peak MB | bytes an item |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        items, seconds, peak = row["items"], row["cpu_seconds"], row["peak_bytes"]
        lines.append(
            f"| {row['stage']} | {items:,} | {seconds:.4g} | "
            f"{1e6 * seconds / items:.3g} | {peak / 1e6:,.0f} | {peak / items:,.0f} |"
        )
    lines += [
        "",
        f"Fitted from {_FIT_FROM:,} items on, quantity ~ items^exponent:",
        "",
        "| stage | time | peak memory |",
        "|---|--:|--:|",
    ]
    for stage, own in _by_stage(rows).items():
        shown = []
        for quantity in ("cpu_seconds", "peak_bytes"):
            exponent = fit_exponent(own, quantity)
            shown.append("" if exponent is None else f"{exponent:.2f}")
        lines.append(f"| {stage} | {shown[0]} | {shown[1]} |")
    return [*lines, "", f"![time and memory over the number of items]({picture})"]


def _plan(rows: list[Row]) -> list[str]:
    """Each figure, and the row that it is carried over from."""
    last = {stage: own[-1] for stage, own in _by_stage(rows).items()}
    plan = plan_semantic_ids(BILLION, codebook_size=2048, num_levels=4)
    lines = [
        "| what | for 10^9 items | from |",
        "|---|--:|---|",
    ]

    def add(what: str, value: str, row: Row | None, how: str) -> None:
        source = f"{row['stage']} at {row['items']:,} items: " if row else ""
        lines.append(f"| {what} | {value} | {source}{how} |")

    add(
        "Semantic IDs",
        f"{plan.codebook_sizes}, {plan.collision_rate:.2%} collide",
        None,
        "`plan_semantic_ids`, uniform codes: a pilot's will collide more",
    )
    add(
        "their table",
        f"{plan.table_bytes / 1e9:,.0f} GB",
        None,
        f"`plan_semantic_ids`, int32; {plan.packed_bytes / 1e9:,.1f} GB as bits",
    )
    for stage, what in (
        ("histories", "k-core, numbers, histories of 10^10 interactions"),
        ("encode", "embeddings → learned codewords"),
        ("collisions", "collision level"),
    ):
        if stage in last:
            row = last[stage]
            hours = row["cpu_seconds"] / row["items"] * BILLION / 3600
            per_item = row["cpu_seconds"] / row["items"] * 1e6
            add(
                f"{what}: core-hours",
                f"{hours:,.1f}",
                row,
                f"{per_item:.3g} µs an item, shards alike",
            )
    if "histories" in last:
        row = last["histories"]
        per_item = row["peak_bytes"] / row["items"]
        add(
            f"a worker's memory, in {BILLION // _SHARD_ITEMS:,} shards",
            f"{per_item * _SHARD_ITEMS / 1e9:.1f} GB",
            row,
            f"{per_item:,.0f} bytes an item × {_SHARD_ITEMS:,}",
        )
        add(
            "the same on one machine",
            f"{per_item * BILLION / 1e9:,.0f} GB",
            row,
            "what breaks first: the local stage",
        )
    levels = sum(
        make_plan(expected_case(plan.codebook_sizes, plan.num_prefixes)).level_bytes
    )
    # An item's number and its leaf, and a quarter of a byte for each inner depth.
    total = levels + BILLION * (4 + 4 + 0.25 * plan.num_levels)
    add(
        "trie on devices",
        f"{total / 1e9:,.1f} GB",
        None,
        f"`expected_case`: {levels / BILLION:.1f} bytes an item, and "
        f"{(total - levels) / BILLION:.0f} for item numbers and exclusion",
    )
    if "trie" in last:
        row = last["trie"]
        add(
            "the same measured, for 256 × 256 × 256",
            f"{row['device_bytes'] / row['items']:.1f} bytes an item",
            row,
            "as built; item numbers take 3 bytes below 2^24 items, 4 above",
        )
    add(
        "devices of 80 GB for it",
        f"{int(np.ceil(total / 40e9))}",
        None,
        "half of each left to the model; beyond one, `ShardedTrie`",
    )
    if "decode" in last:
        slowest = max(_by_stage(rows)["decode"], key=lambda row: row["cpu_seconds"])
        add(
            "search, one request of 20 beams, without the model",
            f"{1e3 * slowest['cpu_seconds']:.1f} ms",
            slowest,
            "the most at any size: it does not grow with the catalogue",
        )
    return lines


def _draw(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for stage, own in _by_stage(rows).items():
        items = [row["items"] for row in own]
        axes[0].loglog(items, [r["cpu_seconds"] for r in own], "o-", label=stage)
        axes[1].loglog(items, [r["peak_bytes"] / 1e6 for r in own], "o-", label=stage)
    for axis, label in zip(axes, ("CPU seconds", "peak MB"), strict=True):
        axis.set_xlabel("items")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
