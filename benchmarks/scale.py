"""Measures how each stage grows with the catalogue: `make scale`.

    python -m benchmarks.scale --rows=scale.jsonl               all that is missing
    python -m benchmarks.scale --rows=scale.jsonl --parts=local --stages=trie
    python -m benchmarks.scale --rows=scale.jsonl --document=docs/scale.md

Every measurement is one JSON row, appended to the file as soon as it is made; a row
of this commit that is there already is not made again (--any_commit: of whichever).
Shops, embeddings and codes are generated: popularity falls by Zipf's law, users have
ten interactions. --document writes tables, fitted exponents, the plot and the plan
for a billion items between the document's marks.

Parts:
    local       The local stages, a process each, --sizes in items: `histories`
                (5-core, numbering, order), `encode` (frozen residual codebooks,
                256 × 256 × 256 over 64 dimensions), `collisions` (three levels with
                ten cells an item), `trie`, `decode` (one request, 20 beams, a model
                that only reads a table: what the catalogue's size adds to it).
    shards      The steps of the pipelines before training over shards of one size,
                --sizes in interactions (`scale_shards`). Needs Apache Beam.
    end_to_end  Generated embeddings -> Semantic IDs -> trie -> search, --sizes in
                items (`scale_end_to_end`). Needs Apache Beam.
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale_worker import peak_bytes
from tiger_jax.progress import say
from tiger_jax.workdir import artifacts

SIZES = {
    "local": (10_000, 100_000, 300_000, 1_000_000, 10_000_000),
    "shards": (1_000_000, 10_000_000, 100_000_000),
    "end_to_end": (1_000_000, 10_000_000),
}
# Beyond this the local stage doesn't fit beside others: shards are for that.
_LARGEST = {"histories": 1_000_000}
DIMS, LEVELS, CODEWORDS = 64, 3, 256
COLLISIONS = 256
HISTORY = 10
_CELLS_AN_ITEM = 10


def main() -> None:
    """Measures what is missing, or writes the document."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=Path, default=Path("runs/scale/rows.jsonl"))
    parser.add_argument("--parts", default=",".join(SIZES), help="some of these")
    parser.add_argument("--sizes", help="other sizes, as 1e4,1e5")
    parser.add_argument("--stages", help=f"local: of {','.join(STAGES)}")
    parser.add_argument("--any_commit", action="store_true", help="keep older rows")
    parser.add_argument("--document", type=Path, help="write these rows into it")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        stage, size = options.one.split(":")
        print(json.dumps(measure(stage, int(size))))
        return
    if options.document:
        from benchmarks.scale_document import write_document

        write_document(options.rows, options.document)
        return
    rows = _Rows(options.rows, options.any_commit)
    stages = options.stages.split(",") if options.stages else list(STAGES)
    for part in options.parts.split(","):
        sizes = SIZES[part]
        if options.sizes:
            sizes = tuple(int(float(size)) for size in options.sizes.split(","))
        for size in sizes:
            if part == "local":
                for stage in stages:
                    if size <= _LARGEST.get(stage, size):
                        _measure_alone(rows, stage, size)
            else:
                _measure_steps(rows, part, size)


class _Rows:
    """The file of rows."""

    def __init__(self, path: Path, any_commit: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._any_commit = path, any_commit

    def has(self, part: str, stage: str, size: int) -> bool:
        """Whether a measurement is there."""
        known = self._path.read_text().splitlines() if self._path.exists() else []
        commit = artifacts.code_version()
        return any(
            (row["part"], row["stage"], row["rows"]) == (part, stage, size)
            and (self._any_commit or row["commit"] == commit)
            for row in map(json.loads, known)
        )

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a measurement, and says it."""
        row = row | {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "commit": artifacts.code_version(),
        }
        with open(self._path, "a") as file:
            file.write(json.dumps(row) + "\n")
        say(json.dumps(row))


def _measure_alone(rows: _Rows, stage: str, size: int) -> None:
    """One local stage, in a process of its own."""
    if rows.has("local", stage, size):
        return
    say(f"{stage} at {size:,} items")
    command = [sys.executable, "-m", "benchmarks.scale", "--one", f"{stage}:{size}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        say(f"{stage} at {size:,}: failed\n{result.stderr[-2000:]}")
        return
    rows.add(json.loads(result.stdout.splitlines()[-1]))


def _measure_steps(rows: _Rows, part: str, size: int) -> None:
    """All steps of a part; its last row tells that it went to its end."""
    if rows.has(part, "end", size):
        return
    say(f"{part} at {size:,}")
    start = time.perf_counter()
    # In a process that no smaller size has used: what it holds is measured too.
    process = multiprocessing.get_context("spawn").Process(
        target=_run_steps, args=(rows, part, size)
    )
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{part} at {size:,} failed: see the error above")
    seconds = time.perf_counter() - start
    rows.add({"part": part, "stage": "end", "rows": size, "seconds": seconds})


def _run_steps(rows: _Rows, part: str, size: int) -> None:
    if part == "shards":
        from benchmarks.scale_shards import measure_shards

        measure_shards(size, rows.add)
    else:
        from benchmarks.scale_end_to_end import measure_end_to_end

        measure_end_to_end(size, rows.add)


# --- The stages -------------------------------------------------------------------


def _histories(num_items: int, rng: np.random.Generator) -> Callable[[], Any]:
    import pyarrow as pa

    from tiger_jax.data.interactions import InteractionsConfig, build_histories
    from tiger_jax.data.raw_shop import CATEGORY_PATHS, RawShop

    # Everybody has ten interactions, and there are as many users as items.
    rank = np.arange(1, num_items + 1)
    upto = np.cumsum(1 / rank)
    draws = rng.random(num_items * HISTORY) * upto[-1]
    items = np.searchsorted(upto, draws)
    users = np.repeat(np.arange(num_items), HISTORY)
    order = rng.permutation(len(users))
    names = pa.array(np.char.add("i", rank.astype(str)))
    texts = pa.array([""] * num_items, pa.string())
    table = pa.table(
        {
            "item_id": names,
            "title": texts,
            "brand": texts,
            "price": pa.nulls(num_items, pa.float64()),
            "categories": pa.nulls(num_items, CATEGORY_PATHS),
        }
    )
    events = pa.table(
        {
            "user_id": pa.array(users[order]).cast(pa.string()),
            "item_id": names.take(pa.array(items[order])),
            "timestamp": rng.random(len(users)),
        }
    )
    shop = RawShop("scale", table, events)
    return lambda: build_histories(shop, InteractionsConfig(), seed=0)


def _encode(num_items: int, rng: np.random.Generator) -> Callable[[], Any]:
    from tiger_jax.quantizers.quantizer import ENCODE_CHUNK
    from tiger_jax.quantizers.residual_kmeans import ResidualCodebooks

    books = tuple(
        rng.normal(size=(CODEWORDS, DIMS)).astype(np.float32) / 2**level
        for level in range(LEVELS)
    )
    quantizer = ResidualCodebooks(books)

    def encode() -> None:
        # Chunk by chunk as a shard's worker does: vectors are drawn, not held.
        for start in range(0, num_items, ENCODE_CHUNK):
            count = min(ENCODE_CHUNK, num_items - start)
            vectors = rng.standard_normal((count, DIMS), np.float32)
            quantizer.encode(vectors)

    return encode


def _draw_codes(num_items: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, CODEWORDS, (num_items, LEVELS), dtype=np.int32)


def _draw_ids(num_items: int, rng: np.random.Generator) -> np.ndarray:
    from tiger_jax.semantic_ids.collisions import (
        group_rows,
        number_within_groups,
    )

    codes = _draw_codes(num_items, rng)
    numbers = number_within_groups(group_rows(codes), np.arange(num_items))
    return np.column_stack([codes, numbers]).astype(np.int32)


def _collisions(num_items: int, rng: np.random.Generator) -> Callable[[], Any]:
    from tiger_jax.semantic_ids.collisions import add_collision_level

    # Codebooks grow as a plan's do, so that a twentieth collides at any size.
    codewords = round((_CELLS_AN_ITEM * num_items) ** (1 / LEVELS))
    codes = rng.integers(0, codewords, (num_items, LEVELS), dtype=np.int32)
    ids = np.char.add("i", np.arange(num_items).astype(str)).tolist()
    return lambda: add_collision_level(codes, ids)


def _trie(num_items: int, rng: np.random.Generator) -> Callable[[], Any]:
    from tiger_jax.decoding.trie.trie import Trie

    codes = _draw_ids(num_items, rng)
    sizes = (*[CODEWORDS] * LEVELS, COLLISIONS)
    return lambda: sum(Trie.build(codes, sizes).nbytes.values())


def _decode(num_items: int, rng: np.random.Generator) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    from tiger_jax.decoding.search.beam_search import beam_search
    from tiger_jax.decoding.trie.trie import Trie

    sizes = (*[CODEWORDS] * LEVELS, COLLISIONS)
    trie = Trie.build(_draw_ids(num_items, rng), sizes)
    tables = rng.normal(size=(len(sizes), CODEWORDS, CODEWORDS)).astype(np.float32)

    def decode_step(
        params: jax.Array, cache: Any, codewords: jax.Array, parents: Any, level: int
    ) -> tuple[jax.Array, Any]:
        del parents
        return params[level][codewords], cache

    @jax.jit
    def search(params: jax.Array, request: jax.Array, trie: Trie) -> Any:
        return beam_search(
            params,
            request,
            trie,
            init_decode=lambda params, inputs: (),
            decode_step=decode_step,
            num_beams=20,
        )

    params, request = jnp.asarray(tables), jnp.zeros((1,), jnp.int32)
    jax.block_until_ready(search(params, request, trie))
    return lambda: jax.block_until_ready(search(params, request, trie))


STAGES: dict[str, Callable[[int, np.random.Generator], Callable[[], Any]]] = {
    "histories": _histories,
    "encode": _encode,
    "collisions": _collisions,
    "trie": _trie,
    "decode": _decode,
}
# What is over in milliseconds is done so often that one has to be typical.
_REPEATS = {"decode": 50, "histories": 2, "collisions": 3}


def measure(stage: str, num_items: int) -> dict[str, Any]:
    """One row: the fastest repeat's seconds, and this process's peak memory so far."""
    rng = np.random.default_rng([num_items, 0])
    work = STAGES[stage](num_items, rng)
    before = peak_bytes()
    seconds, cpu, made = [], [], None
    for _ in range(_REPEATS.get(stage, 1)):
        start, cpu_start = time.perf_counter(), time.process_time()
        made = work()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    typical = np.median if stage == "decode" else np.min
    return {
        "part": "local",
        "stage": stage,
        "rows": num_items,
        "items": num_items,
        "seconds": float(typical(seconds)),
        "cpu_seconds": float(typical(cpu)),
        "peak_bytes": peak_bytes(),
        "start_bytes": before,
        "device_bytes": made if stage == "trie" else None,
    }


if __name__ == "__main__":
    main()
