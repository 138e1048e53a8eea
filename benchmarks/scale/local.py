"""The local stages of `benchmarks.scale`: what one of them takes at one size.

*   `histories`: 5-core, numbering, order.
*   `encode`: frozen residual codebooks, 256 × 256 × 256 over 64 dimensions.
*   `collisions`: three levels with ten cells per item.
*   `trie`: built from Semantic IDs.
*   `decode`: one request, 20 beams, a model that only reads a table: what the
    catalogue's size adds to it.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.lib import Row
from benchmarks.scale.worker import peak_bytes

DIMS, LEVELS, CODEWORDS = 64, 3, 256
COLLISIONS = 256
HISTORY = 10
_CELLS_PER_ITEM = 10


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
    codewords = round((_CELLS_PER_ITEM * num_items) ** (1 / LEVELS))
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

    from benchmarks.decoding.cases import TrivialModel, around
    from tiger_jax.decoding.search.beam_search import beam_search
    from tiger_jax.decoding.trie.trie import Trie

    sizes = (*[CODEWORDS] * LEVELS, COLLISIONS)
    trie = Trie.build(_draw_ids(num_items, rng), sizes)
    request = jnp.zeros((1,), jnp.int32)
    search = around(TrivialModel(sizes), beam_search, request, trie, num_beams=20)
    jax.block_until_ready(search())
    return lambda: jax.block_until_ready(search())


STAGES: dict[str, Callable[[int, np.random.Generator], Callable[[], Any]]] = {
    "histories": _histories,
    "encode": _encode,
    "collisions": _collisions,
    "trie": _trie,
    "decode": _decode,
}
# What is over in milliseconds is done so often that one has to be typical.
_REPEATS = {"decode": 50, "histories": 2, "collisions": 3}


def measure(stage: str, num_items: int) -> Row:
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
