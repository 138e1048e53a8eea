"""A plan for a billion items: each figure carried over from a row, or computed."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import lib
from benchmarks.lib import Row
from benchmarks.scale.rows import EMBED_STEPS, micros_a_row, peak_above_start
from tiger_jax.decoding.trie import expected_case, make_plan
from tiger_jax.semantic_ids.planning import plan_semantic_ids

# What, its value and its source.
Line = tuple[str, str, str]
BILLION = 1_000_000_000
# Of a device's memory, the other half is the model's.
_TRIE_BYTES_A_DEVICE = 40e9
# Item numbers, and whether an item is in the k-core.
_MAPPED_BYTES = 5


def plan_lines(rows: list[Row]) -> list[str]:
    """The plan as a Markdown table."""
    titles = ["what", "for 10^9 items", "from"]
    return lib.markdown_table(titles, _plan(rows), "|---|--:|---|")


def _plan(rows: list[Row]) -> Iterator[Line]:
    plan = plan_semantic_ids(BILLION, codebook_size=2048, num_levels=4)
    yield (
        "Semantic IDs",
        f"{plan.codebook_sizes}, {plan.collision_rate:.2%} collide",
        "`plan_semantic_ids`, uniform codes: a pilot's will collide more",
    )
    yield (
        "their table",
        f"{plan.table_bytes / 1e9:,.0f} GB",
        f"`plan_semantic_ids`, int32; {plan.packed_bytes / 1e9:,.1f} GB as bits",
    )
    yield from _of_shards([row for row in rows if row["part"] == "shards"])
    yield from _of_items([row for row in rows if row["part"] == "end_to_end"])
    local = [r for r in rows if (r["part"], r["stage"]) == ("local", "histories")]
    for row in _largest(local):
        what = "histories by the local stage, on one machine"
        yield _memory(what, row, row["peak_bytes"] / row["items"])
    yield from _of_trie(rows, plan)


def _largest(rows: list[Row]) -> list[Row]:
    most = max((row["rows"] for row in rows), default=0)
    return [row for row in rows if row["rows"] == most]


def _memory(what: str, row: Row, per_item: float, beside: str = "") -> Line:
    """Bytes an item, for a billion of them."""
    part = ", end to end" if row["part"] == "end_to_end" else ""
    return (
        what,
        f"{per_item * BILLION / 1e9:,.0f} GB",
        f"{row['stage']} at {row['items']:,} items{part}: {per_item:,.0f} bytes per "
        f"item{beside}",
    )


def _of_shards(rows: list[Row]) -> Iterator[Line]:
    """Interactions to histories and tokens, in shards."""
    steps = [row for row in rows if "leading" not in row["stage"]]
    texts = [row for row in steps if row["stage"].startswith(EMBED_STEPS)]
    # Texts may end at a smaller size than interactions.
    others = _largest([row for row in steps if row not in texts])
    if not others:
        return
    of_tokens = [row for row in others if row["stage"].startswith("tokens")]
    before = [row for row in others if row not in of_tokens]
    for what, kept, one, number in (
        ("k-core, numbers, histories of 10^10 interactions", before, "interaction", 10),
        ("token files of 10^10 interactions", of_tokens, "interaction", 10),
        ("item texts → embeddings by TF-IDF", _largest(texts), "item", 1),
    ):
        if not kept:
            continue
        micros = sum(map(micros_a_row, kept))
        yield (
            f"{what}: core-hours",
            f"{micros * 1e3 * number / 3600:,.{0 if number > 1 else 1}f}",
            f"{len(kept)} steps of shards at {kept[0]['rows']:,} {one}s: "
            f"{micros:.3g} µs an {one}",
        )
    worst = max(before + of_tokens, key=peak_above_start)
    yield (
        "a worker's memory, in 40,000 shards of 250,000 interactions",
        f"{worst['peak_bytes'] / 1e9:.2f} GB",
        f"{worst['stage']} at {worst['rows']:,} interactions, the most at any size",
    )
    yield (
        "mapped by each worker beside it",
        f"{_MAPPED_BYTES * BILLION / 1e9:,.0f} GB",
        f"{_MAPPED_BYTES} bytes per item: item numbers and the k-core's marks",
    )
    leaders = [row for row in rows if row["stage"] == "prepare, the leading process"]
    for leader in _largest(leaders):
        what = "the leading process, which numbers the items"
        each = peak_above_start(leader) / leader["items"]
        yield _memory(what, leader, each, " beside its libraries")


def _of_items(rows: list[Row]) -> Iterator[Line]:
    """Embeddings to Semantic IDs."""
    own = {row["stage"]: row for row in _largest(rows)}
    for steps, what in (
        (("encode",), "embeddings → learned codewords"),
        (("collision level", "write Semantic IDs"), "collision level"),
    ):
        if all(step in own for step in steps):
            micros = sum(1e6 * own[s]["cpu_seconds"] / own[s]["items"] for s in steps)
            yield (
                f"{what}: core-hours",
                f"{micros * 1e3 / 3600:,.1f}",
                f"{', '.join(steps)} at {own[steps[0]]['items']:,} items, end to end: "
                f"{micros:.3g} µs per item",
            )
    if row := own.get("table"):
        what = "the whole table in one process, checked: what breaks first"
        yield _memory(what, row, row["peak_bytes"] / row["items"])


def _of_trie(rows: list[Row], plan: Any) -> Iterator[Line]:
    levels = sum(
        make_plan(expected_case(plan.codebook_sizes, plan.num_prefixes)).level_bytes
    )
    # An item's number and its leaf, and a quarter of a byte for each inner depth.
    total = levels + BILLION * (4 + 4 + 0.25 * plan.num_levels)
    yield (
        "trie on devices",
        f"{total / 1e9:,.1f} GB",
        f"`expected_case`: {levels / BILLION:.1f} bytes per item, and "
        f"{(total - levels) / BILLION:.0f} for item numbers and exclusion",
    )
    tries = [row for row in rows if row["stage"] == "trie"]
    for row in _largest(tries)[:1]:
        where = " end to end" if row["part"] == "end_to_end" else ""
        yield (
            "the same measured, for codebooks of 256",
            f"{row['device_bytes'] / row['items']:.1f} bytes per item",
            f"trie at {row['items']:,} items{where}: as built; item numbers take 3 "
            "bytes below 2^24 items, 4 above",
        )
    yield (
        "devices of 80 GB for it",
        f"{int(np.ceil(total / _TRIE_BYTES_A_DEVICE))}",
        "half of each left to the model; beyond one, `ShardedTrie`",
    )
    searches = [r for r in rows if (r["part"], r["stage"]) == ("local", "decode")]
    if searches:
        slowest = max(searches, key=lambda row: row["cpu_seconds"])
        yield (
            "search, one request of 20 beams, without the model",
            f"{1e3 * slowest['cpu_seconds']:.1f} ms",
            f"decode at {slowest['items']:,} items: the most at any size: it does not "
            "grow with the catalogue",
        )
