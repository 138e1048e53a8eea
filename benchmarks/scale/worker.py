"""One worker of a pipeline: shards one after the other, in a process of its own.

The work is what Beam's workers are sent, called without a runner. What two steps
exchange lies in files, as a service's shuffle keeps it, so that a worker's memory is
what its shard needs.
"""

import dataclasses
import functools
import multiprocessing
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib import Row
from tiger_jax.beam.runner import Emit, Flow, Keyed, RunnerConfig, Write
from tiger_jax.workdir.shards import ShardWriter

_LENGTH = struct.Struct("<q")
_PIPELINES = ("assign", "embed", "prepare", "tokens")
_IMPORTS = [f"tiger_jax.beam.{name}" for name in _PIPELINES]
Task = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a worker took for so many shards.

    Attributes:
        peak_bytes: The most memory that the process held at any shard: its libraries
            and the touched pages of mapped files included.
        start_bytes: What it held before the first shard.
        result: What the last task returned.
    """

    shards: int
    cpu_seconds: float
    peak_bytes: int
    start_bytes: int
    result: Any = None

    def row(self) -> Row:
        """All but the result."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "result"}


def run_tasks(tasks: Sequence[Task], name: str) -> Measured:
    """Runs tasks one after the other in a new process; RuntimeError if one failed.

    It is forked from a server that has imported what is needed and done nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTS)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(list(tasks), theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        raise RuntimeError(f"{name}: the worker failed") from error
    finally:
        process.join()


def peak_bytes() -> int:
    """The most memory that this process held, since `measure_here` began."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system keeps no peak memory of a process")


def measure_here(shards: int, work: Task) -> Measured:
    """Runs in this process, which works through so many shards, and measures it."""
    Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
    start, cpu_start = peak_bytes(), time.process_time()
    result = work()
    seconds = time.process_time() - cpu_start
    return Measured(shards, seconds, peak_bytes(), start, result)


def _run(tasks: list[Task], pipe: Any) -> None:
    def work() -> Any:
        result = None
        for task in tasks:
            result = task()
        return result

    pipe.send(measure_here(len(tasks), work))


@dataclasses.dataclass(frozen=True)
class Spool:
    """Blocks on their way between two steps: one file per key."""

    folder: Path

    def put(self, keyed: Iterable[tuple[int, bytes]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for key, block in keyed:
            with open(self._path(key), "ab") as file:
                file.write(_LENGTH.pack(len(block)))
                file.write(block)

    def take(self, key: int) -> list[bytes]:
        """Hands out a key's blocks, and forgets them."""
        path = self._path(key)
        if not path.exists():
            return []
        blocks = []
        with open(path, "rb") as file:
            while head := file.read(_LENGTH.size):
                blocks.append(file.read(_LENGTH.unpack(head)[0]))
        path.unlink()
        return blocks

    def keys(self) -> set[int]:
        """Which some blocks lie here for."""
        return {int(path.name) for path in self.folder.glob("*")}

    def _path(self, key: int) -> Path:
        return self.folder / f"{key:06}"


@functools.cache
def _load_once(infer: Any) -> Any:
    return infer.load_model()


class OneWorker(RunnerConfig):
    """Does a flow's work in Beam's place, a step a process, and tells what it took."""

    def __init__(self, spool: Path, tell: Callable[[str, Measured], None]) -> None:
        """Takes a folder for blocks on their way, and who is told of each step."""
        super().__init__()
        vars(self).update(_folder=spool, _tell=tell)  # the dataclass is frozen

    def do(self, name: str, work: Task, inputs: Iterable[Any]) -> Any:
        """Works on each input, tells what all took, and gives the last one's result."""
        measured = run_tasks([functools.partial(work, each) for each in inputs], name)
        self._tell(name, measured)
        return measured.result

    def run(self, flow: Flow, writer: ShardWriter, missing: list[int]) -> None:
        name, every = writer.folder.name, list(range(writer.num_shards))
        folder = self._folder / name
        came, wanted = {}, every if flow.through else missing
        for step, (inputs, emit) in flow.sources.items():
            came[step] = Spool(folder / step)
            put = functools.partial(_put, came[step], emit, wanted)
            self.do(f"{name}, {step}", put, inputs)
        *_, last = (None, *flow.through)
        for step, emit in flow.through.items():
            spool, is_last = Spool(folder / step), step == last
            wanted, infer = (missing, flow.infer) if is_last else (every, None)
            put = functools.partial(_put, spool, emit, wanted, infer=infer)
            work = functools.partial(_pass_on, came, put)
            keys = sorted(set().union(*(own.keys() for own in came.values())))
            self.do(f"{name}, {step}", work, keys)
            came = {step: spool}
        work = functools.partial(_write, flow.write, [*came.values()], writer)
        self.do(f"{name}, write" if came else name, work, missing)


def _put(
    spool: Spool, emit: Emit, wanted: Sequence[int], value: Any, infer: Any = None
) -> None:
    """What one input is taken apart into; of a model, what that makes of it."""
    blocks: Iterable[Keyed] = emit(value, wanted)
    if infer is not None:
        blocks = infer.run_inference(list(blocks), _load_once(infer))
    spool.put(blocks)


def _pass_on(came: Mapping[str, Spool], put: Callable[..., None], key: int) -> None:
    """What lies between two exchanges, for one key."""
    taken = {step: spool.take(key) for step, spool in came.items()}
    put((key, taken if len(taken) > 1 else taken.popitem()[1]))


def _write(
    write: Write, came: Sequence[Spool], writer: ShardWriter, shard: int
) -> None:
    """The end, for one shard."""
    write(shard, [block for spool in came for block in spool.take(shard)], writer)
