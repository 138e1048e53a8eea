"""Large catalogues within stated memory, and long runs that don't grow."""

import functools
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tiny_run

from faults import shop
from faults.campaign import FINE, REPOSITORY, Fault, Outcome
from tiger_jax.decoding.search import beam_search
from tiger_jax.decoding.trie import Trie
from tiger_jax.quantizers.residual_kmeans import ResidualCodebooks
from tiger_jax.semantic_ids.collisions import add_collision_level

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

# What a run may hold more than the largest of a few at the start; the very first, which
# compiles, does not count.
_FIRST_RUNS, _MORE_MIB, _MORE_FILES, _MORE_THREADS = 5, 32, 8, 8
_MAX_CHECKPOINTS = 3  # two newest, and the best
_MORE_DISK = 1.5
_INTERRUPTED = 4  # run.py's exit code after it has saved what it was asked to leave
_FOREVER = (
    "--gin.train_recommender.epochs=None",
    "--gin.loop.LoopConfig.total_steps=1000000",
    "--gin.loop.LoopConfig.max_minutes=None",
    "--gin.loop.LoopConfig.patience=None",
    "--gin.loop.LoopConfig.max_loss_ratio=1000.0",
)


def preempted_runs(number: int, folder: Path) -> Outcome:
    """One of a training's many runs, asked to end when it has made some updates.

    Each is a process that goes on from the checkpoint that the one before saved when
    it was asked to end, as on a machine that is taken away every few minutes. What
    the process holds is measured right before.
    """
    whole = shop.whole_run(folder.parent, "assign_semantic_ids")
    workdir, record = folder / "work", folder / "held.json"
    if not record.exists():
        shop.copy_before("train_recommender", whole, workdir)
        record.write_text("[]")
    before = json.loads(record.read_text())
    checkpoints = workdir / "recommender.partial" / "checkpoints"
    first_step = max(_steps(checkpoints), default=0)
    running = shop.Stage("train_recommender", workdir, *_FOREVER)
    while running.is_running() and max(_steps(checkpoints), default=0) <= first_step:
        time.sleep(0.01)
    held = _what_is_held(running.pid) if running.is_running() else {}
    running.signal(signal.SIGTERM)
    ended = running.end()
    if ended.code != _INTERRUPTED:
        return Outcome(wrong=1, note=f"try {number}: {ended.output[-500:]}")
    steps = _steps(checkpoints)
    if max(steps, default=0) <= first_step:
        return Outcome(lost=1, note=f"try {number}: still at step {first_step}")
    if problems := shop.wrong_folders(workdir, whole):
        return Outcome(lost=1, note=f"try {number}: {problems}")
    held["checkpoints"] = len(steps)
    sizes = [p.stat().st_size for p in checkpoints.rglob("*") if p.is_file()]
    held["kib"] = sum(sizes) // 1024
    record.write_text(json.dumps([*before, held]))
    return _compare(number, before[1 : 1 + _FIRST_RUNS], held)


def _compare(number: int, first: list[dict], held: dict[str, int]) -> Outcome:
    if len(first) < _FIRST_RUNS:
        return FINE
    allowed = {name: max(run[name] for run in first) for name in held}
    allowed["files"] += _MORE_FILES
    allowed["threads"] += _MORE_THREADS
    allowed["mib"] += _MORE_MIB
    allowed["kib"] = int(allowed["kib"] * _MORE_DISK)
    allowed["checkpoints"] = _MAX_CHECKPOINTS
    return _judge(number, held, allowed)


def _judge(
    number: int, held: dict[str, int], allowed: dict[str, int], count: int = 1
) -> Outcome:
    grown = [
        f"{held[name]} {name} of {most}"
        for name, most in allowed.items()
        if held[name] > most
    ]
    note = f"try {number}: {', '.join(grown)}" if grown else ""
    return Outcome(wrong=int(bool(grown)), note=note, count=count)


def _steps(checkpoints: Path) -> list[int]:
    names = [path.name for path in checkpoints.glob("checkpoint_*")]
    return [int(n.removeprefix("checkpoint_")) for n in names if n[-1].isdigit()]


def _what_is_held(pid: int | str) -> dict[str, int]:
    """Open files, threads and MiB of a process; zeros if it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return {
            "files": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": int(fields["Threads"]),
            "mib": int(fields["VmRSS"].split()[0]) // 1024,
        }
    except (OSError, KeyError):
        return {"files": 0, "threads": 0, "mib": 0}


RUNS_PER_TRY, STEPS_PER_RUN = 20, 4
# TensorStore 0.1.86 never frees the lists and dicts that it turns JSON into, and orbax
# asks it for some of each array: hence so much a run. Nothing of ours is among what a
# run leaves, nor anything but lists and dicts.
_MIB_PER_RUN, _MIB_AT_FIRST, _MORE_OBJECTS = 0.25, 64, 500


def runs_in_one_process(number: int, folder: Path) -> Outcome:
    """Twenty short runs of one process, each resumed from the one before."""
    run = folder / f"run_of_{os.getpid()}"
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
    gc.collect()
    kinds = Counter(type(x) for x in gc.get_objects())
    held = _what_is_held("self")
    held["checkpoints"] = len(_steps(run / "checkpoints"))
    held["objects"] = sum(n for kind, n in kinds.items() if kind not in (list, dict))
    _HELD.append(held)
    if len(_HELD) <= 2:  # in which everything is compiled and loaded
        return Outcome(count=RUNS_PER_TRY)
    first, runs = _HELD[1], (len(_HELD) - 2) * RUNS_PER_TRY
    allowed = {
        "files": first["files"] + _MORE_FILES,
        "threads": first["threads"] + _MORE_THREADS,
        "mib": first["mib"] + _MIB_AT_FIRST + int(_MIB_PER_RUN * runs),
        "checkpoints": _MAX_CHECKPOINTS,
        "objects": first["objects"] + _MORE_OBJECTS,
    }
    return _judge(number, held, allowed, count=RUNS_PER_TRY)


_HELD: list[dict[str, int]] = []
# A schedule as long as the run would differ from run to run.
_CONSTANT = tiny_run.OptimizerConfig(
    name="adamw", schedule="constant", learning_rate=0.001, warmup_steps=0
)


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
        "length: a day of preempted runs without growth",
        288,  # one every five minutes
        preempted_runs,
        tries_per_row=10,
    ),
    Fault(
        f"length: resumed runs of one process, within {_MIB_PER_RUN:g} MiB each",
        1000,
        runs_in_one_process,
        tries_per_row=RUNS_PER_TRY,
    ),
    Fault("length: short runs end as one long run", 20, same_as_one_run),
]

if __name__ == "__main__":
    live_with_many_items(int(sys.argv[1]), int(sys.argv[2]))
