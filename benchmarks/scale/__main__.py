"""Measures how each stage grows with the catalogue: `make scale`.

    python -m benchmarks.scale --rows=scale.jsonl               all that is missing
    python -m benchmarks.scale --rows=scale.jsonl --parts=local --stages=trie
    python -m benchmarks.scale --rows=scale.jsonl --document=docs/scale.md

Every measurement is one JSON row, appended to the file as soon as it is made; a row
of this commit that is there already is not made again (--any_commit: of whichever).
Shops, embeddings and codes are generated: popularity falls by Zipf's law, users have
ten interactions. --document writes tables, fitted exponents, the plot and the plan
for a billion items between the document's marks.

Parts: `local`, the local stages, a process each, with --sizes in items; `shards`, the
pipelines' steps before training over shards of one size, in interactions; `end_to_end`,
generated embeddings -> Semantic IDs -> trie -> search, in items. The last two need
Apache Beam.
"""

import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import lib
from benchmarks.scale import local
from benchmarks.scale.rows import MeasuredRows
from tiger_jax.errors import InputError
from tiger_jax.progress import say

SIZES = {
    "local": (10_000, 100_000, 300_000, 1_000_000, 10_000_000),
    "shards": (1_000_000, 10_000_000, 100_000_000),
    "end_to_end": (1_000_000, 10_000_000),
}
# Beyond this the local stage doesn't fit beside others: shards are for that.
_MAX_SIZES = {"histories": 1_000_000}


def main() -> None:
    """Measures what is missing, or writes the document."""
    parser = lib.make_parser(__doc__, "document")
    add = parser.add_argument
    add("--rows", type=Path, default=Path("runs/scale/rows.jsonl"))
    add("--parts", type=lib.words, default=list(SIZES), help="some of these")
    add("--sizes", type=lib.numbers, help="other sizes, as 1e4,1e5")
    add(
        "--stages", type=lib.words, default=list(local.STAGES), help="of the local part"
    )
    add("--any_commit", action="store_true", help="keep older rows")
    options = parser.parse_args()
    for name, known in (("parts", SIZES), ("stages", local.STAGES)):
        if not set(getattr(options, name)) <= set(known):
            parser.error(f"--{name} are some of {', '.join(known)}")
    if options.document:
        from benchmarks.scale.document import write_document

        if not options.rows.is_file():
            raise InputError(f"no rows in {options.rows}: measure without --document")
        write_document(options.rows, options.document)
        return
    if options.parts != ["local"] and not importlib.util.find_spec("apache_beam"):
        raise InputError("shards and end_to_end need Apache Beam; or --parts=local")
    rows = MeasuredRows(options.rows, options.any_commit)
    for part in options.parts:
        for size in options.sizes or SIZES[part]:
            if part != "local":
                _measure_steps(rows, part, size)
                continue
            for stage in options.stages:
                is_known = rows.has("local", stage, size)
                if is_known or size > _MAX_SIZES.get(stage, size):
                    continue
                say(f"{stage} at {size:,} items")
                if _run_alone(local.measure, stage, size, rows.add):
                    say(f"{stage} at {size:,} failed: see the error above")


def _measure_steps(rows: MeasuredRows, part: str, size: int) -> None:
    """All steps of a part; its last row tells that it went to its end."""
    if rows.has(part, "end", size):
        return
    from benchmarks.scale import end_to_end, shards

    work = {
        "shards": shards.measure_shards,
        "end_to_end": end_to_end.measure_end_to_end,
    }[part]
    say(f"{part} at {size:,}")
    start = time.perf_counter()
    if _run_alone(work, size, rows.add):
        raise SystemExit(f"{part} at {size:,} failed: see the error above")
    seconds = time.perf_counter() - start
    rows.add({"part": part, "stage": "end", "rows": size, "seconds": seconds})


def _run_alone(work: Callable[..., None], *arguments: Any) -> int | None:
    """Runs in a process that nothing else has used: what it holds is measured too."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=work, args=arguments)
    process.start()
    process.join()
    return process.exitcode


if __name__ == "__main__":
    lib.run(main)
