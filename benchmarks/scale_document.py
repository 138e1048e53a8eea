"""The rows of `benchmarks.scale` as tables and a plot."""

from pathlib import Path

import numpy as np

from benchmarks.marked_sections import write_between
from benchmarks.scale_plan import plan_lines
from benchmarks.scale_rows import (
    FIT_FROM,
    Row,
    by_stage,
    fit_exponent,
    micros_a_row,
    peak_above_start,
    read_rows,
    where,
)


def write_document(rows_file: Path, document: Path) -> None:
    """Puts tables, exponents, plot and plan between the document's marks."""
    rows = read_rows(rows_file)
    picture = document.with_name(document.stem + ".png")
    local = [row for row in rows if row["part"] == "local"]
    shards = [row for row in rows if row["part"] == "shards"]
    end_to_end = [row for row in rows if row["part"] == "end_to_end"]
    draw(local, shards, picture)
    for mark, lines in (
        ("scale", _local_table(local, picture.name)),
        ("shards", shards_table(shards)),
        ("end_to_end", _end_to_end_table(end_to_end)),
        ("billion", plan_lines(rows)),
    ):
        write_between(document, mark, "\n".join(lines))


def _local_table(rows: list[Row], picture: str) -> list[str]:
    lines = [
        f"{where(rows)} Seconds are of one process's CPU (other work shared the "
        "machine), medians of 50 for `decode`, the fastest of two for `histories` and "
        "of three for `collisions`; memory is the process's peak, input and "
        "interpreter included.",
        "",
        "| stage | items | CPU seconds | µs an item | peak MB | bytes an item |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for own in by_stage(rows).values():
        for row in own:
            items, seconds, peak = row["items"], row["cpu_seconds"], row["peak_bytes"]
            lines.append(
                f"| {row['stage']} | {items:,} | {seconds:.4g} | "
                f"{1e6 * seconds / items:.3g} | {peak / 1e6:,.0f} | "
                f"{peak / items:,.0f} |"
            )
    lines += [
        "",
        f"Fitted from {FIT_FROM:,} items on, quantity ~ items^exponent:",
        "",
        "| stage | time | peak memory |",
        "|---|--:|--:|",
    ]
    for stage, own in by_stage(rows).items():
        shown = []
        for quantity in ("cpu_seconds", "peak_bytes"):
            exponent = fit_exponent(own, quantity)
            shown.append("" if exponent is None else f"{exponent:.2f}")
        lines.append(f"| {stage} | {shown[0]} | {shown[1]} |")
    return [*lines, "", f"![time and memory over the number of items]({picture})"]


def shards_table(rows: list[Row]) -> list[str]:
    """Each step at the smallest and the largest size: what grew."""
    if not rows:
        return []
    few, many = min(r["rows"] for r in rows), max(r["rows"] for r in rows)
    lines = [
        f"{where(rows)} {few:,} and {many:,} interactions in all, a tenth as many "
        "items, in shards of 250,000 interactions. One process a step works through "
        "all shards (`tokens`: through the number given). Memory is above what the "
        "process held before its first shard.",
        "",
        "| step | shards | µs an interaction | time exponent | peak MB a shard | "
        "larger by |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for step, own in by_stage(rows).items():
        first, last = own[0], own[-1]
        if (first["rows"], last["rows"]) != (few, many):
            continue
        micros, peaks = (
            [measure(row) for row in (first, last)]
            for measure in (micros_a_row, peak_above_start)
        )
        exponent = 1 + np.log(micros[1] / micros[0]) / np.log(many / few)
        lines.append(
            f"| {step} | {first['shards']}, {last['shards']} | "
            f"{micros[0]:.3g}, {micros[1]:.3g} | {exponent:.2f} | "
            f"{peaks[0] / 1e6:.0f}, {peaks[1] / 1e6:.0f} | "
            f"{peaks[1] / peaks[0] - 1:+.0%} |"
        )
    return lines


def _end_to_end_table(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    most = max(row["rows"] for row in rows)
    own = [row for row in rows if row["rows"] == most]
    by_step = {row["stage"]: row for row in own}
    peak = max(row["peak_bytes"] for row in own)
    total = sum(row["cpu_seconds"] for row in own)
    lines = [
        f"{where(own)} {most:,} items, {total:,.0f} CPU seconds in all, no process "
        f"above {peak / 1e9:.1f} GB. Each step is a process of its own; embeddings "
        "have 32 dimensions in float16.",
        "",
        "| step | CPU seconds | µs an item | peak MB | bytes an item |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in own:
        seconds, memory = row["cpu_seconds"], row["peak_bytes"]
        lines.append(
            f"| {row['stage']} | {seconds:.3g} | {1e6 * seconds / most:.3g} | "
            f"{memory / 1e6:,.0f} | {memory / most:,.0f} |"
        )
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
        lines.append(f"The trie takes {each:.1f} bytes an item.")
    for row in own:
        if "search_cpu_seconds" in row:
            milliseconds = 1e3 * row["search_cpu_seconds"]
            lines.append(
                f"A search of 20 beams takes {milliseconds:.3g} CPU milliseconds "
                f"({row['stage']})."
            )
    return lines


def draw(local: list[Row], shards: list[Row], path: Path) -> None:
    """Time and memory of the local stages, and memory a shard, over the size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for stage, own in by_stage(local).items():
        items = [row["items"] for row in own]
        axes[0].loglog(items, [r["cpu_seconds"] for r in own], "o-", label=stage)
        axes[1].loglog(items, [r["peak_bytes"] / 1e6 for r in own], "o-", label=stage)
    for step, own in by_stage(shards).items():
        peaks = [peak_above_start(row) / 1e6 for row in own]
        is_read = "take apart" in step or "tokens" in step or "by item" in step
        axes[2].semilogx(
            [row["rows"] for row in own],
            peaks,
            "o-" if is_read else "s--",
            label=step,
        )
    for axis, across, up in zip(
        axes,
        ("items", "items", "interactions in all"),
        ("CPU seconds", "peak MB", "MB above the start, a shard"),
        strict=True,
    ):
        axis.set_xlabel(across)
        axis.set_ylabel(up)
        axis.grid(alpha=0.3)
    axes[0].set_title("local stages: time", fontsize=10)
    axes[1].set_title("local stages: memory", fontsize=10)
    axes[2].set_title("pipelines' steps: memory", fontsize=10)
    axes[0].legend(fontsize=8)
    if shards:
        axes[2].set_ylim(bottom=0)
        axes[2].legend(fontsize=5, ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)
