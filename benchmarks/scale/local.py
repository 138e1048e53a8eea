"""The local stages of `benchmarks.scale`: what one of them takes at one size.

`encode` is by frozen residual codebooks; `collisions` has ten cells per item; `decode`
is one request of 20 beams to a model that only reads a table: what the catalogue's size
adds to it.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.lib import Row
from benchmarks.scale.worker import peak_bytes

DIMS, LEVELS, CODEWORDS = 64, 3, 256
SIZES = (*[CODEWORDS] * LEVELS, 256)  # with the collision level's
_CELLS_PER_ITEM = 10


def _histories(num_items: int, rng: np.random.Generator) -> Callable[[], Any]:
    from benchmarks.scale.shop import HISTORY, draw_zipf, make_interactions, make_items
    from tiger_jax.data.interactions import InteractionsConfig, build_histories
    from tiger_jax.data.raw_shop import RawShop

    # There are as many users as items.
    items = draw_zipf(num_items, num_items * HISTORY, rng)
    users = np.repeat(np.arange(num_items), HISTORY)
    order = rng.permutation(len(users))
    table = make_items(0, num_items)
    bought = table["item_id"].take(items[order])
    events = make_interactions(users[order], bought, rng.random(len(users)))
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


def _draw_ids(num_items: int, rng: np.random.Generator) -> np.ndarray:
    from tiger_jax.semantic_ids.collisions import group_rows, number_within_groups

    codes = rng.integers(0, CODEWORDS, (num_items, LEVELS), dtype=np.int32)
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
    from tiger_jax.decoding.trie import Trie

    codes = _draw_ids(num_items, rng)
    return lambda: sum(Trie.build(codes, SIZES).nbytes.values())


def _decode(num_items: int, rng: np.random.Generator) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp

    from benchmarks.decoding.cases import TrivialModel, around
    from tiger_jax.decoding.search import beam_search
    from tiger_jax.decoding.trie import Trie

    trie = Trie.build(_draw_ids(num_items, rng), SIZES)
    request = jnp.zeros((1,), jnp.int32)
    search = around(TrivialModel(SIZES), beam_search, request, trie, num_beams=20)
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


def measure(stage: str, num_items: int, add: Callable[[Row], None]) -> None:
    """Adds a row: the fastest repeat's seconds, and this process's peak so far."""
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
    row = {"part": "local", "stage": stage, "rows": num_items, "items": num_items}
    row |= {"seconds": float(typical(seconds)), "cpu_seconds": float(typical(cpu))}
    row |= {"peak_bytes": peak_bytes(), "start_bytes": before}
    add(row | {"device_bytes": made if stage == "trie" else None})
