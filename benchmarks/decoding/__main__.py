"""Measures decoding: building the trie, one candidate step, and whole loops.

    PYTHONPATH=/path/to/static-constraint-decoding \
        python -m benchmarks.decoding --against static,hf,exact,faiss,unconstrained \
        --rows rows.jsonl --table benchmarks/README.md

The two sides of a comparison run in turns in one process, on the same arrays, and
medians are compared. Where both are exact, their results are checked to be the same.
A side whose package isn't installed is left out, and standard error says so. On CPU,
set GLIBC_TUNABLES as the Makefile does: it spares both sides page faults.

One JSON row per comparison. `ratio` is theirs / ours; `*_cpu_ms` is processor time,
summed over cores, which other programs on the machine disturb less.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import lib
from benchmarks.decoding import static
from benchmarks.decoding.cases import (
    Case,
    Catalogue,
    RealModel,
    TrivialModel,
    around,
    draw_codes,
)
from benchmarks.decoding.others import FaissIndex, HfGenerate
from benchmarks.lib import Row
from tiger_jax.decoding.search import (
    CatalogueWalk,
    beam_search,
    exact_search,
    unconstrained_search,
)
from tiger_jax.decoding.search.candidates import Beams
from tiger_jax.decoding.search.restrictions import Restriction
from tiger_jax.decoding.trie import Trie
from tiger_jax.models.tiger import TigerConfig

Side = Callable[[], Any]
TURN_SECONDS = 0.3
# Who is compared with, and the package that has it.
PACKAGES = {"static": "static_decoding", "hf": "transformers", "faiss": "faiss"}
SIDES = (*PACKAGES, "exact", "unconstrained")
MAX_ITEMS = {"exact": 100_000, "hf": 100_000, "hnsw": 1_000_000}


def compare(
    case: Case,
    ours: Side,
    others: dict[str, Side],
    rounds: int,
    *,
    turn_seconds: float = TURN_SECONDS,
    **facts: Any,
) -> Iterator[Row]:
    """One row for each other side."""
    if not others:
        return
    turns = lib.race({"ours": ours, **others}, rounds, turn_seconds)
    times = {  # wall and processor milliseconds per call
        name: 1e3 * np.median(own[:, :2] / own[:, 2:], axis=0)
        for name, own in turns.items()
    }
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
            "environment": lib.environment(),
        }


def measure_build(case: Case, options: argparse.Namespace) -> Iterator[Row]:
    """From a table in any order; STATIC asks its user to sort first."""
    catalogue, codes = case.catalogue, case.catalogue.codes
    build = functools.partial(Trie.build, codes, catalogue.sizes, exclusion=False)
    nbytes = build().nbytes
    others: dict[str, Side] = {}
    facts = {
        "bytes_per_item": round(sum(nbytes.values()) / catalogue.items, 2),
        "levels_bytes_per_item": round(nbytes["levels"] / catalogue.items, 2),
    }
    if "static" in options.against:
        from static_decoding.csr_utils import build_static_index

        started = time.perf_counter()
        _ = catalogue.sorted_codes
        facts["their_sort_ms"] = round(1e3 * (time.perf_counter() - started))
        for d_dense in (1, 2):
            own = static.StaticIndex(catalogue, d_dense).nbytes
            name = f"static_d{d_dense}"
            facts[f"{name}_bytes_per_item"] = round(own / catalogue.items, 2)
            others[name] = lambda d_dense=d_dense: build_static_index(
                catalogue.sorted_codes, catalogue.codebook_size, d_dense
            )
    rounds = max(2, options.rounds // 4)
    yield from compare(case, build, others, rounds, turn_seconds=0.0, **facts)


def measure_step(case: Case, options: argparse.Namespace) -> Iterator[Row]:
    """One level, from logits and beams at random items' ancestors to their children."""
    catalogue, trie, level = case.catalogue, case.catalogue.trie, case.level
    rng = np.random.default_rng(0)
    leaves = rng.integers(0, catalogue.items, (case.batch, 4 * case.beams))
    nodes = trie.exclusion.ancestors_of(jnp.asarray(leaves, jnp.int32), level)
    nodes = pick_distinct(np.asarray(nodes), case.beams)
    shape = (case.batch, nodes.shape[1])
    logits = rng.normal(size=(*shape, catalogue.codebook_size))
    logits = jnp.asarray(logits, jnp.float32)
    scores = jnp.asarray(rng.normal(size=shape), jnp.float32)
    beams = Beams(jnp.asarray(nodes), scores, jnp.asarray(nodes), jnp.asarray(nodes))

    @jax.jit
    def step(trie: Trie, logits: jax.Array, beams: Beams) -> Beams:
        return Restriction.build(trie, case.batch).best_children(
            level,
            logits,
            beams,
            width=trie.width(level + 1, case.beams),
            normalize="level",
        )

    ours = functools.partial(step, trie, logits, beams)
    others, expected = {}, np.sort(np.asarray(ours().scores), axis=1)
    for d_dense in (1, 2) if "static" in options.against else ():
        index = static.static_index(catalogue, d_dense)
        states = jnp.asarray(nodes) + index.first_state[level]
        side = functools.partial(index.step(level, case.beams), logits, scores, states)
        np.testing.assert_allclose(
            np.sort(np.asarray(side()[0]), axis=1), expected, atol=1e-5
        )
        others[f"static_d{d_dense}"] = side
    plan = trie.plan.levels[level]
    facts = {"kind": plan.kind, "max_fan_out": plan.max_fan_out}
    yield from compare(case, ours, others, options.rounds, **facts)


def pick_distinct(nodes: np.ndarray, beams: int) -> np.ndarray:
    """Distinct nodes of each request, in order, as many as every request has."""
    rows = [np.unique(row) for row in nodes]
    width = min(beams, min(len(row) for row in rows))
    rng = np.random.default_rng(0)
    return np.stack([np.sort(rng.choice(row, width, replace=False)) for row in rows])


def check_same(codes: np.ndarray, ours: Any, theirs: np.ndarray) -> None:
    """Checks that both sides decoded the same items with few near-ties swapped."""
    items = np.asarray(ours.item_numbers)
    mine = [{tuple(code) for code in codes[row[row >= 0]]} for row in items]
    other = [{tuple(code) for code in row} for row in theirs]
    shared = sum(len(a & b) for a, b in zip(mine, other, strict=True))
    total = sum(map(len, mine))
    if shared < 0.999 * total:
        raise AssertionError(f"only {shared} of {total} items are the same")


def measure_loop_trivial(case: Case, options: argparse.Namespace) -> Iterator[Row]:
    """The whole loop around a model that only reads a table."""
    catalogue = case.catalogue
    model, trie = TrivialModel(catalogue.sizes), catalogue.trie
    inputs = jnp.arange(case.batch, dtype=jnp.int32)
    ours = around(model, beam_search, inputs, trie, num_beams=case.beams)
    others = {}
    for d_dense in _static_settings(case, options):
        index = static.static_index(catalogue, d_dense)
        side = index.search(model.params, case.batch, case.beams, catalogue.length)
        check_same(catalogue.codes, ours(), np.asarray(side()))
        others[f"static_d{d_dense}"] = side
    if _has("exact", case, options):
        others["exact"] = exact_side(model, trie, inputs, case.beams)
    yield from compare(case, ours, others, options.rounds)


def _static_settings(case: Case, options: argparse.Namespace) -> tuple[int, ...]:
    """STATIC takes no more beams than codewords."""
    fits = case.beams <= case.catalogue.codebook_size
    return (1, 2) if "static" in options.against and fits else ()


def _has(side: str, case: Case, options: argparse.Namespace) -> bool:
    return side in options.against and case.catalogue.items <= MAX_ITEMS[side]


def exact_side(model: Any, trie: Trie, inputs: jax.Array, results: int) -> Side:
    """Our exact scorer of the whole catalogue."""
    walk = CatalogueWalk.build(trie)
    return around(model, exact_search, inputs, walk, num_results=results)


def measure_loop_real(case: Case, options: argparse.Namespace) -> Iterator[Row]:
    """The whole loop with TIGER and random weights.

    Other searches around the same model start, as ours, from encoded histories; the
    other ways from history to items are compared with ours, encoder included.
    """
    catalogue, codes, trie = case.catalogue, case.catalogue.codes, case.catalogue.trie
    model = RealModel(catalogue.sizes, TigerConfig(dtype=options.dtype))
    inputs = model.inputs(case.batch, codes)
    rounds = max(3, options.rounds // 3)
    encoded = model.encoded()
    memory = jax.jit(model.init_decode)(model.params, inputs)
    ours = around(encoded, beam_search, memory, trie, num_beams=case.beams)
    others: dict[str, Side] = {}
    settings = [(d, f"static_d{d}") for d in _static_settings(case, options)]
    for d_dense, name in [*settings, *((d, "static_tiled") for d, _ in settings[1:])]:
        run = static.static_real_search(
            static.static_index(catalogue, d_dense),
            encoded,
            case.beams,
            catalogue.length,
            is_tiled=name == "static_tiled",
        )
        side = functools.partial(run, model.params, memory)
        check_same(codes, ours(), np.asarray(side()[0]))
        others[name] = side
    if "unconstrained" in options.against:
        others["unconstrained"] = around(
            encoded, unconstrained_search, memory, trie, num_beams=case.beams
        )
    facts = {"dtype": options.dtype}
    yield from compare(case, ours, others, rounds, encoder=False, **facts)
    ours = around(model, beam_search, inputs, trie, num_beams=case.beams)
    others = {}
    if _has("hf", case, options):
        hf = HfGenerate(model, codes, case.beams)
        others["hf_generate"] = hf.run(inputs, is_constrained=False)
        others["hf_constrained"] = hf.run(inputs, is_constrained=True)
    if "faiss" in options.against:
        for kind in ("flat", "hnsw"):
            if kind == "flat" or catalogue.items <= MAX_ITEMS["hnsw"]:
                index = FaissIndex(catalogue.items, kind)
                others[f"faiss_{kind}"] = index.run(case.batch, case.beams)
    yield from compare(case, ours, others, rounds, encoder=True, **facts)
    if _has("exact", case, options):
        # Seconds a call, so once in turns has to do.
        others = {"exact": exact_side(model, trie, inputs, case.beams)}
        yield from compare(case, ours, others, 1, encoder=True, **facts)


_HEADERS = {
    "build": "Building the index",
    "step": "One candidate step",
    "loop_trivial": "The whole loop around a model that only reads a table",
    "loop_real": "The whole loop with TIGER, random weights",
}
PARTS = {
    "build": measure_build,
    "step": measure_step,
    "loop_trivial": measure_loop_trivial,
    "loop_real": measure_loop_real,
}


def list_cases(options: argparse.Namespace) -> Iterator[Case]:
    """The grid, catalogue by catalogue, so that each is drawn and built once."""
    grid = itertools.product(
        options.distributions, options.items, options.sizes, options.lengths
    )
    small = list(itertools.product(options.batches, options.beams))
    real = list(itertools.product(options.real_batches, options.real_beams))
    for distribution, items, size, length in grid:
        if items > 0.5 * size**length:
            continue
        catalogue = Catalogue(items, size, length, distribution)
        cases = [Case("build", catalogue)]
        for pair in small:
            levels = range(1, min(length, 5))
            cases += [Case("step", catalogue, *pair, level) for level in levels]
            cases.append(Case("loop_trivial", catalogue, *pair))
        cases += [Case("loop_real", catalogue, *pair) for pair in real]
        yield from (case for case in cases if case.part in options.parts)


def measure_peak(items: int, size: int, length: int) -> Row:
    """Builds one trie of random Semantic IDs: its time, bytes and peak of memory.

    The peak is that of the whole program, the drawing of the Semantic IDs included,
    which takes little where they are too many for two to be alike.
    """
    if size**length < items**2 * 1000:
        codes = draw_codes(items, size, length, "random")
    else:
        rng = np.random.default_rng(0)
        codes = rng.integers(0, size, (items, length), dtype=np.int32)
    started = time.perf_counter()
    nbytes = Trie.build(codes, (size,) * length).nbytes
    seconds = time.perf_counter() - started
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = sum(nbytes.values())
    without = (total - nbytes["exclusion"]) / items
    return {
        "benchmark": "decode",
        "case": {
            **Case("build", Catalogue(items, size, length, "random")).describe(),
            "codes_gb": round(codes.nbytes / 1e9, 2),
            "bytes_per_item": round(total / items, 2),
            "bytes_per_item_without_exclusion": round(without, 2),
        },
        "against": None,
        "ours_ms": round(1e3 * seconds, 1),
        "ours_peak_gb": round(peak / 1e9, 2),
        "environment": lib.environment(),
    }


def _case(row: Row) -> Row:
    return {k: v for k, v in row["case"].items() if not k.endswith("_ms")}


def write_table(rows_file: Path, table_file: Path) -> None:
    """Puts the newest row of every comparison between the file's marks."""
    rows = lib.newest_rows(rows_file, lambda row: [_case(row), row["against"]])
    found = [row["environment"] for row in rows]
    machines = {f"{e['device']} ({e['platform']}, {e['cores']} cores)" for e in found}
    commits = {e["commit"] for e in found}
    lines = [
        f"On {', '.join(sorted(machines))}; commits {', '.join(sorted(commits))}.",
        "Milliseconds are medians of runs in turns; a ratio above 1 is ours faster.",
        "",
    ]
    by_part: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_part[row["case"]["part"]].append(row)
    for part, header in _HEADERS.items():
        if by_part[part]:
            lines += [f"### {header}", "", *_table(by_part[part]), ""]
    lib.write_between(table_file, "decode", "\n".join(lines))


def _table(rows: Sequence[Row]) -> list[str]:
    cases: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        cases[json.dumps(_case(row))].append(row)
    names = list(dict.fromkeys(name for row in rows for name in _case(row)))
    names.remove("part")
    sides = list(dict.fromkeys(row["against"] for row in rows if row["against"]))
    has_peak = any("ours_peak_gb" in row for row in rows)
    cells = []
    for own in cases.values():
        last, by_side = own[-1], {row["against"]: row for row in own}
        line = [_cell(last["case"].get(name, "")) for name in names]
        line.append(f"{last['ours_ms']:.2f}")
        if has_peak:
            line.append(_cell(last.get("ours_peak_gb", "")))
        line += [_against(by_side[side]) if side in by_side else "" for side in sides]
        cells.append(line)
    titles = [*names, "ours ms", *(["peak GB"] if has_peak else [])]
    return lib.markdown_table([*titles, *(f"{side} (ratio)" for side in sides)], cells)


def _against(row: Row) -> str:
    """The other side's milliseconds and the ratio, to two places that say something."""
    ratio = f"{row['ratio']:.2f}" if row["ratio"] >= 0.095 else f"{row['ratio']:.3f}"
    return f"{row['theirs_ms']:.1f} ({ratio}x)"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def parse() -> argparse.Namespace:
    """The command line; sides that aren't installed are taken out."""
    parser = lib.make_parser(__doc__, "rows", "table")
    add = parser.add_argument
    add("--against", type=lib.words, default=["static", "exact", "unconstrained"])
    add("--parts", type=lib.words, default=list(PARTS))
    add("--items", type=lib.numbers, default=[12_000, 1_000_000, 10_000_000])
    add("--sizes", type=lib.numbers, default=[256, 2048], help="codewords per level")
    add("--lengths", type=lib.numbers, default=[4, 8], help="levels")
    add("--distributions", type=lib.words, default=["random", "zipf"])
    add("--batches", type=lib.numbers, default=[32, 256])
    add("--beams", type=lib.numbers, default=[10, 50])
    add("--real_batches", type=lib.numbers, default=[16, 32])
    add("--real_beams", type=lib.numbers, default=[20, 50])
    add("--dtype", default="float32", help="of the real decoder")
    add("--rounds", type=int, default=15)
    add("--quick", action="store_true", help="small sizes, a minute")
    add("--peak", type=int, nargs=3, metavar=("ITEMS", "K", "T"), help="one build")
    options = lib.parse(parser)
    if options.quick:
        options.items, options.sizes, options.lengths = [12_000], [256], [4]
        options.batches = options.real_batches = [32]
        options.beams = options.real_beams = [20]
        options.rounds = min(options.rounds, 5)
    for side, package in PACKAGES.items():
        if side in options.against and not importlib.util.find_spec(package):
            print(f"without {side}: {package} is not installed", file=sys.stderr)
            options.against.remove(side)
    unknown = set(options.against) - set(SIDES) | set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Runs the cases and prints a row for each comparison."""
    options = parse()
    if options.peak:
        lib.report(measure_peak(*options.peak), options.rows)
        return
    for case in list_cases(options):
        for row in PARTS[case.part](case, options):
            lib.report(row, options.rows)
    if options.table:
        write_table(options.rows, options.table)


if __name__ == "__main__":
    lib.run(main)
