"""Measures decoding: building the trie, one candidate step, and whole loops.

    PYTHONPATH=/path/to/static-constraint-decoding \
        python -m benchmarks.decoding --against static,hf,exact,faiss,unconstrained \
        --rows rows.jsonl --table benchmarks/README.md

The two sides of a comparison run in turns in one process, on the same arrays, and
medians are compared. Where both are exact, their results are checked to be the same.
A side whose package isn't installed is left out, and standard error says so. On CPU,
set GLIBC_TUNABLES as the Makefile does: it spares both sides page faults.

One JSON row a comparison:

    {"benchmark": "decode", "case": {"part": "build|step|loop_trivial|loop_real",
     "items": ..., ...}, "against": "static_d1|static_d2|static_tiled|hf_generate|
     hf_constrained|exact|unconstrained|faiss_flat|faiss_hnsw", "ours_ms": ...,
     "theirs_ms": ..., "ratio": theirs / ours, "ours_cpu_ms": ..., "theirs_cpu_ms":
     ..., "environment": {...}}

`*_cpu_ms` is processor time, summed over cores, which other programs on the machine
disturb less.
"""

import argparse
import functools
import gc
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.decoding import static as decode_static
from benchmarks.decoding.cases import (
    Case,
    RealModel,
    TrivialModel,
    draw_codes,
    sort_codes,
)
from benchmarks.decoding.others import FaissIndex, HfGenerate, is_installed
from benchmarks.decoding.static import StaticIndex
from benchmarks.decoding.table import write_table
from tiger_jax.decoding.search.beam_search import beam_search
from tiger_jax.decoding.search.candidates import Beams, best_children
from tiger_jax.decoding.search.exact_scoring import CatalogueWalk, exact_search
from tiger_jax.decoding.search.restrictions import Restriction
from tiger_jax.decoding.search.unconstrained import unconstrained_search
from tiger_jax.decoding.trie.trie import Trie
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.workdir.artifacts import code_version, package_versions

Side = Callable[[], Any]
TURN_SECONDS = 0.3
SIDES = ("static", "hf", "exact", "faiss", "unconstrained")


def race(
    sides: dict[str, Side], rounds: int, turn_seconds: float
) -> dict[str, tuple[float, float]]:
    """Runs the sides in turns; median wall and processor milliseconds of each.

    A turn is one call, which isn't timed, and calls for `turn_seconds` after it: what a
    side finds in the caches, and in memory that the system hasn't taken back, is then
    its own, as it is for a decoder at work. With 0 seconds it is one call, timed: a
    build, done once, finds nothing ready.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for side in sides.values():
        jax.block_until_ready(side())
    gc.collect()
    for _ in range(rounds):
        for name, side in sides.items():
            if turn_seconds:
                jax.block_until_ready(side())
            calls, wall, cpu = 0, 0.0, 0.0
            while not calls or wall < turn_seconds:
                cpu_before, before = time.process_time(), time.perf_counter()
                jax.block_until_ready(side())
                wall += time.perf_counter() - before
                cpu += time.process_time() - cpu_before
                calls += 1
            found[name].append((1e3 * wall / calls, 1e3 * cpu / calls))
    return {name: tuple(np.median(times, axis=0)) for name, times in found.items()}


@functools.cache
def environment() -> dict[str, Any]:
    """The machine, the versions and the allocator's settings."""
    devices = jax.devices()
    return {
        "commit": code_version(),
        "packages": package_versions(),
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "platform": devices[0].platform,
        "cores": os.cpu_count(),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }


def compare(
    case: Case,
    ours: Side,
    others: dict[str, Side],
    rounds: int,
    *,
    turn_seconds: float = TURN_SECONDS,
    **facts: Any,
) -> Iterator[dict[str, Any]]:
    """One row for each other side."""
    if not others:
        return
    times = race({"ours": ours, **others}, rounds, turn_seconds)
    for name in others:
        yield {
            "benchmark": "decode",
            "case": {**case.describe(), **facts},
            "against": name,
            "ours_ms": round(times["ours"][0], 3),
            "theirs_ms": round(times[name][0], 3),
            "ratio": round(times[name][0] / times["ours"][0], 3),
            "ours_cpu_ms": round(times["ours"][1], 3),
            "theirs_cpu_ms": round(times[name][1], 3),
            "environment": environment(),
        }


# --- The four parts -------------------------------------------------------------


def measure_build(case: Case, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """From a table in any order; STATIC asks its user to sort first."""
    codes = draw_codes(case.items, case.codebook_size, case.length, case.distribution)
    sizes = (case.codebook_size,) * case.length
    trie = Trie.build(codes, sizes, exclusion=False)
    others, facts = {}, {"bytes_per_item": round(trie_bytes(trie) / case.items, 2)}
    facts["levels_bytes_per_item"] = round(trie.nbytes["levels"] / case.items, 2)
    if "static" in options.against:
        from static_decoding.csr_utils import build_static_index

        def build(d_dense: int) -> Any:
            return build_static_index(sort_codes(codes), case.codebook_size, d_dense)

        started = time.perf_counter()
        by_id = sort_codes(codes)
        facts["their_sort_ms"] = round(1e3 * (time.perf_counter() - started))
        for d_dense in (1, 2):
            index = StaticIndex(by_id, case.codebook_size, d_dense)
            name = f"static_d{d_dense}_bytes_per_item"
            facts[name] = round(index.nbytes / case.items, 2)
            del index
            others[f"static_d{d_dense}"] = functools.partial(build, d_dense)
    del trie
    ours = functools.partial(Trie.build, codes, sizes, exclusion=False)
    rounds = max(2, options.rounds // 4)
    yield from compare(case, ours, others, rounds, turn_seconds=0.0, **facts)


def trie_bytes(trie: Trie) -> int:
    """Bytes of all that a search reads."""
    return sum(trie.nbytes.values())


def measure_step(case: Case, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One level, from logits and beams at random items' ancestors to their children."""
    codes = draw_codes(case.items, case.codebook_size, case.length, case.distribution)
    size, level = case.codebook_size, case.level
    trie = cached_trie(case)
    rng = np.random.default_rng(0)
    leaves = rng.integers(0, case.items, (case.batch, 4 * case.beams))
    nodes = trie.exclusion.ancestors_of(jnp.asarray(leaves, jnp.int32), level)
    nodes = pick_distinct(np.asarray(nodes), case.beams)
    shape = (case.batch, nodes.shape[1])
    logits = jnp.asarray(rng.normal(size=(*shape, size)), jnp.float32)
    scores = jnp.asarray(rng.normal(size=shape), jnp.float32)
    beams = Beams(jnp.asarray(nodes), scores, jnp.asarray(nodes), jnp.asarray(nodes))

    @jax.jit
    def step(trie: Trie, logits: jax.Array, beams: Beams) -> Beams:
        children = Restriction.build(trie, case.batch).children(level, beams.nodes)
        return best_children(
            trie.levels[level],
            children,
            logits,
            beams,
            width=trie.width(level + 1, case.beams),
            normalize="level",
        )

    ours = functools.partial(step, trie, logits, beams)
    others, expected = {}, np.sort(np.asarray(ours().scores), axis=1)
    for d_dense in (1, 2) if "static" in options.against else ():
        index = cached_static(case, d_dense)
        states = jnp.asarray(nodes) + index.first_state[level]
        side = functools.partial(index.step(level, case.beams), logits, scores, states)
        np.testing.assert_allclose(
            np.sort(np.asarray(side()[0]), axis=1), expected, atol=1e-5
        )
        others[f"static_d{d_dense}"] = side
    plan = trie.plan.levels[level]
    facts = {"kind": plan.kind, "max_fan_out": plan.max_fan_out}
    yield from compare(case, ours, others, options.rounds, **facts)
    del codes


def pick_distinct(nodes: np.ndarray, beams: int) -> np.ndarray:
    """Distinct nodes of each request, in order, as many as every request has."""
    rows = [np.unique(row) for row in nodes]
    width = min(beams, min(len(row) for row in rows))
    rng = np.random.default_rng(0)
    return np.stack([np.sort(rng.choice(row, width, replace=False)) for row in rows])


@functools.lru_cache(maxsize=1)
def _trie(items: int, size: int, length: int, distribution: str) -> Trie:
    codes = draw_codes(items, size, length, distribution)
    return Trie.build(codes, (size,) * length)


def cached_trie(case: Case) -> Trie:
    """The case's trie; the last one is kept."""
    return _trie(case.items, case.codebook_size, case.length, case.distribution)


@functools.lru_cache(maxsize=2)
def _static(
    items: int, size: int, length: int, distribution: str, d_dense: int
) -> StaticIndex:
    by_id = sort_codes(draw_codes(items, size, length, distribution))
    return StaticIndex(by_id, size, d_dense)


def cached_static(case: Case, d_dense: int) -> StaticIndex:
    """The case's index in STATIC's form; the last two are kept."""
    return _static(
        case.items, case.codebook_size, case.length, case.distribution, d_dense
    )


def jitted_search(model: Any, trie: Trie, inputs: jax.Array, beams: int) -> Side:
    """Our whole loop."""
    run = functools.partial(
        beam_search,
        init_decode=model.init_decode,
        decode_step=model.decode_step,
        num_beams=beams,
    )
    return functools.partial(jax.jit(run), model.params, inputs, trie)


def check_same(codes: np.ndarray, ours: Any, theirs: np.ndarray) -> None:
    """Checks that both sides decoded the same items with few near-ties swapped."""
    items = np.asarray(ours.item_numbers)
    mine = [{tuple(code) for code in codes[row[row >= 0]]} for row in items]
    other = [{tuple(code) for code in row} for row in theirs]
    shared = sum(len(a & b) for a, b in zip(mine, other, strict=True))
    total = sum(map(len, mine))
    if shared < 0.999 * total:
        raise AssertionError(f"only {shared} of {total} items are the same")


def measure_loop_trivial(
    case: Case, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The whole loop around a model that only reads a table."""
    codes = draw_codes(case.items, case.codebook_size, case.length, case.distribution)
    model, trie = TrivialModel(case.codebook_size), cached_trie(case)
    inputs = model.inputs(case.batch)
    ours = jitted_search(model, trie, inputs, case.beams)
    others = {}
    for d_dense in (1, 2) if "static" in options.against else ():
        if case.beams > case.codebook_size:
            continue  # STATIC takes no more beams than codewords
        index = cached_static(case, d_dense)
        side = index.search(model, model.params, case.batch, case.beams, case.length)
        check_same(codes, ours(), np.asarray(side()))
        others[f"static_d{d_dense}"] = side
    if "exact" in options.against and case.items <= 100_000:
        others["exact"] = exact_side(model, trie, inputs, case.beams)
    yield from compare(case, ours, others, options.rounds)


def exact_side(model: Any, trie: Trie, inputs: jax.Array, results: int) -> Side:
    """Our exact scorer of the whole catalogue."""
    run = functools.partial(
        exact_search,
        init_decode=model.init_decode,
        decode_step=model.decode_step,
        num_results=results,
    )
    walk = CatalogueWalk.build(trie)
    return functools.partial(jax.jit(run), model.params, inputs, walk)


def measure_loop_real(
    case: Case, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The whole loop with TIGER and random weights.

    Other searches around the same model start, as ours, from encoded histories; the
    other ways from history to items are compared with ours, encoder included.
    """
    codes = draw_codes(case.items, case.codebook_size, case.length, case.distribution)
    trie = cached_trie(case)
    config = TigerConfig(dtype=options.dtype)
    model = RealModel(case.codebook_size, case.length, config)
    inputs = model.inputs(case.batch, codes)
    rounds = max(3, options.rounds // 3)
    encoded = model.encoded()
    memory = jax.jit(model.init_decode)(model.params, inputs)
    ours = jitted_search(encoded, trie, memory, case.beams)
    others: dict[str, Side] = {}
    if "static" in options.against and case.beams <= case.codebook_size:
        for d_dense, is_tiled in ((1, False), (2, False), (2, True)):
            index = cached_static(case, d_dense)
            run = decode_static.static_real_search(
                index, encoded, case.beams, case.length, is_tiled=is_tiled
            )
            side = functools.partial(run, model.params, memory)
            check_same(codes, ours(), np.asarray(side()[0]))
            others["static_tiled" if is_tiled else f"static_d{d_dense}"] = side
    if "unconstrained" in options.against:
        run = functools.partial(
            unconstrained_search,
            init_decode=encoded.init_decode,
            decode_step=encoded.decode_step,
            num_beams=case.beams,
        )
        others["unconstrained"] = functools.partial(
            jax.jit(run), model.params, memory, trie
        )
    facts = {"dtype": options.dtype}
    yield from compare(case, ours, others, rounds, encoder=False, **facts)
    ours = jitted_search(model, trie, inputs, case.beams)
    others = {}
    if "hf" in options.against and case.items <= 100_000:
        hf = HfGenerate(model, codes, case.beams)
        others["hf_generate"] = hf.run(inputs, is_constrained=False)
        others["hf_constrained"] = hf.run(inputs, is_constrained=True)
    if "faiss" in options.against:
        for kind in ("flat", "hnsw"):
            if kind == "flat" or case.items <= 1_000_000:
                index = FaissIndex(case.items, kind)
                others[f"faiss_{kind}"] = index.run(case.batch, case.beams)
    yield from compare(case, ours, others, rounds, encoder=True, **facts)
    if "exact" in options.against and case.items <= 100_000:
        # Seconds a call, so once in turns has to do.
        others = {"exact": exact_side(model, trie, inputs, case.beams)}
        yield from compare(case, ours, others, 1, encoder=True, **facts)


PARTS = {
    "build": measure_build,
    "step": measure_step,
    "loop_trivial": measure_loop_trivial,
    "loop_real": measure_loop_real,
}


# --- Which cases ----------------------------------------------------------------


def list_cases(options: argparse.Namespace) -> Iterator[Case]:
    """The grid, catalogue by catalogue, so that each is drawn and built once."""
    grid = itertools.product(
        options.distributions, options.items, options.sizes, options.lengths
    )
    for distribution, items, size, length in grid:
        if items > 0.5 * size**length:
            continue

        def case(part: str, **sizes: Any) -> Case:
            return Case(part, items, size, length, distribution, **sizes)  # noqa: B023

        if "build" in options.parts:
            yield case("build")
        for batch, beams in itertools.product(options.batches, options.beams):
            if "step" in options.parts:
                for level in range(1, min(length, 5)):
                    yield case("step", batch=batch, beams=beams, level=level)
            if "loop_trivial" in options.parts:
                yield case("loop_trivial", batch=batch, beams=beams)
        if "loop_real" in options.parts:
            for batch, beams in itertools.product(
                options.real_batches, options.real_beams
            ):
                yield case("loop_real", batch=batch, beams=beams)


def measure_peak(items: int, size: int, length: int) -> dict[str, Any]:
    """Peak memory of a build in a process of its own, the codes included."""
    command = [sys.executable, "-m", "benchmarks.decoding", "--peak"]
    command += [str(items), str(size), str(length)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def build_and_report(items: int, size: int, length: int) -> None:
    """Builds one trie of random Semantic IDs, and prints its peak and bytes.

    The peak is that of the whole program, the drawing of the Semantic IDs included,
    which takes little where they are too many for two to be alike.
    """
    if size**length < items**2 * 1000:
        codes = draw_codes(items, size, length, "random")
    else:
        rng = np.random.default_rng(0)
        codes = np.empty((items, length), np.int32)
        for level in range(length):
            codes[:, level] = rng.integers(0, size, items, dtype=np.int32)
    started = time.perf_counter()
    trie = Trie.build(codes, (size,) * length)
    seconds = time.perf_counter() - started
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {
        "benchmark": "decode",
        "case": {
            "part": "build",
            "items": items,
            "codebook_size": size,
            "length": length,
            "distribution": "random",
            "codes_gb": round(codes.nbytes / 1e9, 2),
            "bytes_per_item": round(trie_bytes(trie) / items, 2),
            "bytes_per_item_without_exclusion": round(
                (trie_bytes(trie) - trie.nbytes["exclusion"]) / items, 2
            ),
        },
        "against": None,
        "ours_ms": round(1e3 * seconds, 1),
        "ours_peak_gb": round(peak / 1e9, 2),
        "environment": environment(),
    }
    print(json.dumps(row))


def parse() -> argparse.Namespace:
    """The command line; sides that aren't installed are taken out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(float(word)) for word in text.split(",")]

    add = parser.add_argument
    add("--against", type=words, default=["static", "exact", "unconstrained"])
    add("--parts", type=words, default=list(PARTS))
    add("--items", type=numbers, default=[12_000, 1_000_000, 10_000_000])
    add("--sizes", type=numbers, default=[256, 2048], help="codewords a level")
    add("--lengths", type=numbers, default=[4, 8], help="levels")
    add("--distributions", type=words, default=["random", "zipf"])
    add("--batches", type=numbers, default=[32, 256])
    add("--beams", type=numbers, default=[10, 50])
    add("--real_batches", type=numbers, default=[16, 32])
    add("--real_beams", type=numbers, default=[20, 50])
    add("--dtype", default="float32", help="of the real decoder")
    add("--rounds", type=int, default=15)
    add("--rows", type=Path, help="append the rows to this file")
    add(
        "--table",
        type=Path,
        help="a Markdown file that takes tables of all --rows between its marks",
    )
    add("--quick", action="store_true", help="small sizes, a minute")
    add("--peak", type=int, nargs=3, metavar=("ITEMS", "K", "T"))
    options = parser.parse_args()
    if options.quick:
        options.items, options.sizes, options.lengths = [12_000], [256], [4]
        options.batches = options.real_batches = [32]
        options.beams = options.real_beams = [20]
        options.rounds = min(options.rounds, 5)
    packages = {"static": "static_decoding", "hf": "transformers", "faiss": "faiss"}
    for side, package in packages.items():
        if side in options.against and not is_installed(package):
            print(f"without {side}: {package} is not installed", file=sys.stderr)
            options.against.remove(side)
    unknown = set(options.against) - set(SIDES) | set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    """Runs the cases and prints a row for each comparison."""
    options = parse()
    if options.peak:
        build_and_report(*options.peak)
        return 0
    for case in list_cases(options):
        for row in PARTS[case.part](case, options):
            line = json.dumps(row)
            print(line, flush=True)
            if options.rows:
                with open(options.rows, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
    if options.table:
        write_table(options.rows, options.table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
