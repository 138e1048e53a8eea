"""Large catalogues within stated memory, and long runs that don't grow."""

import functools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tiny_run

from faults.campaign import FINE, REPOSITORY, Fault, Outcome
from tiger_jax.decoding.beam_search import beam_search
from tiger_jax.decoding.trie import Trie
from tiger_jax.semantic_ids.collisions import add_collision_level
from tiger_jax.semantic_ids.quantizers import ResidualCodebooks

# What 10M items may take, all stages of their life in one process. The item ids are
# most of it: as Python's texts 0.6 GiB, and once more as NumPy's to sort them.
NUM_ITEMS, GIGABYTES = 10_000_000, 6.0
_SIZES, _COLLISIONS, _BEAMS, _REQUESTS = (256, 256, 256), 4096, 20, 8


def many_items(number: int, folder: Path) -> Outcome:
    """Assigns Semantic IDs to 10M items, builds their trie and decodes from it."""
    folder.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-m", "faults.lengths", str(number), str(NUM_ITEMS)]
    paths = [str(REPOSITORY), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        program, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return Outcome(wrong=1, note=f"try {number}: {done.stderr[-500:]}")
    peak = json.loads(done.stdout.splitlines()[-1])["peak_gib"]
    note = f"try {number}: {NUM_ITEMS:,} items took {peak:.2f} GiB of {GIGABYTES:g}"
    return Outcome(wrong=int(peak > GIGABYTES), note=note)


def live_with_many_items(seed: int, num_items: int) -> float:
    """The whole life of a catalogue in this process; the peak of memory in GiB."""
    rng = np.random.default_rng(seed)
    # Each level's as large as what is left over, so that the items spread.
    books = tuple(
        (scale * rng.normal(size=(size, 8))).astype(np.float32)
        for size, scale in zip(_SIZES, (1.0, 0.8, 0.65), strict=True)
    )
    quantizer = ResidualCodebooks(books)
    codes = np.empty((num_items, len(_SIZES)), np.int32)
    for start in range(0, num_items, 1 << 18):  # no array of all the embeddings
        part = codes[start : start + (1 << 18)]
        part[:] = quantizer.encode(rng.normal(size=(len(part), 8)).astype(np.float32))
    ids = [f"B{n:09d}" for n in range(num_items)]
    full = add_collision_level(codes, ids, collision_level_size=_COLLISIONS)
    del ids, codes
    sizes = (*_SIZES, _COLLISIONS)
    trie = Trie.build(full, sizes)
    tables = tiny_tables(rng, sizes)
    search = jax.jit(
        functools.partial(
            beam_search,
            init_decode=lambda params, rows: rows[:, None],
            decode_step=_table_step,
            num_beams=_BEAMS,
        )
    )
    exclude = rng.integers(0, num_items, (_REQUESTS, 4)).astype(np.int32)
    rows = jnp.arange(_REQUESTS, dtype=jnp.int32)
    items = np.asarray(search(tables, rows, trie, exclude=jnp.asarray(exclude))[0])
    assert ((items >= 0) & (items < num_items)).all()
    assert all(len(set(row)) == _BEAMS for row in items.tolist())
    assert not (items[:, :, None] == exclude[:, None, :]).any()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"items": num_items, "peak_gib": round(peak, 2)}))
    return peak


def tiny_tables(rng: np.random.Generator, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """A table of logits a level, as the model."""
    return [rng.normal(size=(64, size)).astype(np.float32) for size in sizes]


def _table_step(tables, rows, codewords, parents, level):
    rows = jnp.take_along_axis(rows, parents, axis=1)
    if level:
        rows = (rows * 7 + codewords * 3 + level) % 64
    return tables[level][rows], rows


# --- A long training in many short runs ----------------------------------------------

RUNS_PER_TRY, STEPS_PER_RUN = 20, 4
# After the first tries, in which everything is compiled and loaded.
_GROWTH_MIB = 64


def resumed_runs(number: int, folder: Path) -> Outcome:
    """Twenty short runs of one process, each resumed from the one before.

    What they leave may not grow: open files, threads, checkpoints beyond keep-N, and
    memory beyond what the allocator holds back.
    """
    run, sizes = folder / f"run_of_{os.getpid()}", []
    for index in range(RUNS_PER_TRY):
        total = (len(_HELD) * RUNS_PER_TRY + index + 1) * STEPS_PER_RUN
        result = tiny_run.run(
            run,
            optimizer=_CONSTANT,
            total_steps=total,
            log_every=2,
            evaluate_every=STEPS_PER_RUN,
            checkpoint_every=STEPS_PER_RUN,
        )
        assert result.step == total
        sizes.append(_what_is_held(run))
    _HELD.append(sizes[-1])
    first, last = sizes[0], sizes[-1]
    grown = [
        f"{name} from {first[name]} to {last[name]}"
        for name in ("files", "threads")
        if last[name] > first[name] + 2
    ]
    if last["checkpoints"] > 3:  # two newest, and the best
        grown.append(f"{last['checkpoints']} checkpoints")
    if len(_HELD) > 2 and last["mib"] > _HELD[1]["mib"] + _GROWTH_MIB:
        grown.append(f"memory from {_HELD[1]['mib']} to {last['mib']} MiB")
    note = f"try {number}: {', '.join(grown)}" if grown else ""
    return Outcome(wrong=int(bool(grown)), note=note, count=RUNS_PER_TRY)


_HELD: list[dict[str, int]] = []
# A schedule as long as the run would differ from run to run.
_CONSTANT = tiny_run.OptimizerConfig(
    name="adamw", schedule="constant", learning_rate=0.001, warmup_steps=0
)


def _what_is_held(run: Path) -> dict[str, int]:
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(fields["Threads"]),
        "mib": int(fields["VmRSS"].split()[0]) // 1024,
        "checkpoints": len(list((run / "checkpoints").iterdir())),
    }


def same_as_one_run(number: int, folder: Path) -> Outcome:
    """Many short runs end in the bits of one long run."""
    hashes = []
    for name, stops in (("whole", [40]), ("cut", [4, 12, 16, 28, 40])):
        run = folder / f"{name}_{number}"
        for stop in stops:
            result = tiny_run.run(
                run,
                optimizer=_CONSTANT,
                total_steps=stop,
                evaluate_every=4,
                checkpoint_every=4,
            )
        hashes.append(tiny_run.hash_of(result.state.params))
    return FINE if len(set(hashes)) == 1 else Outcome(lost=1, note="other bits")


FAULTS = [
    Fault(
        f"length: {NUM_ITEMS:,} items within {GIGABYTES:g} GiB",
        3,
        many_items,
        seconds=3600,
    ),
    Fault(
        "length: short resumed runs without growth",
        1000,
        resumed_runs,
        tries_per_row=RUNS_PER_TRY,
    ),
    Fault("length: short runs end as one long run", 20, same_as_one_run),
]

if __name__ == "__main__":
    live_with_many_items(int(sys.argv[1]), int(sys.argv[2]))
