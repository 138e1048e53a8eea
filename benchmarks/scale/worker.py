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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib import Row

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
    """Runs tasks one after the other in a new process.

    It is forked from a server that has imported what is needed and done nothing.

    Raises:
        RuntimeError: One failed; the process said why.
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

    def _path(self, key: int) -> Path:
        return self.folder / f"{key:06}"


def emit_into(
    spool: Spool, emit: Callable[..., Iterator[Any]], wanted: range, value: Any
) -> None:
    """The first half of an exchange, for one input."""
    spool.put(emit(value, wanted))


def pass_on(
    take: Callable[[int], Any],
    answer: Callable[[tuple[int, Any]], Iterable[Any]],
    spool: Spool,
    key: int,
) -> None:
    """What lies between two exchanges, for one key; with nothing taken, nothing."""
    if taken := take(key):
        spool.put(answer((key, taken)))


def write_from(
    spool: Spool, write: Callable[..., None], writer: Any, shard: int
) -> None:
    """The second half, for one shard."""
    write(shard, spool.take(shard), writer)


class OneWorker:
    """Takes the place of `exchange` and `each_shard`, and tells what was measured.

    Blocks lie in the folder `spool`; `tell` is called with each step's name.
    """

    def __init__(self, spool: Path, tell: Callable[[str, Measured], None]) -> None:
        self._spool, self._tell = spool, tell

    def run(self, name: str, work: Task, inputs: Iterable[Any]) -> Any:
        """Works on each input, tells what all took, and gives the last one's result."""
        measured = run_tasks([functools.partial(work, each) for each in inputs], name)
        self._tell(name, measured)
        return measured.result

    def exchange(
        self,
        runner: Any,
        writer: Any,
        inputs: Sequence[Any],
        emit: Callable[..., Iterator[Any]],
        write: Callable[..., None],
        **facts: Any,
    ) -> Any:
        """`tiger_jax.beam.steps.exchange`, by one worker."""
        del runner
        name, every = writer.folder.name, range(writer.num_shards)
        spool = Spool(self._spool / name)
        emitting = functools.partial(emit_into, spool, emit, every)
        self.run(f"{name}, take apart", emitting, inputs)
        writing = functools.partial(write_from, spool, write, writer)
        self.run(f"{name}, write", writing, every)
        return writer.finish(**facts)

    def each_shard(
        self, runner: Any, writer: Any, work: Callable[..., None], **facts: Any
    ) -> Any:
        """`tiger_jax.beam.steps.each_shard`, by one worker."""
        del runner
        every = range(writer.num_shards)
        self.run(
            writer.folder.name, functools.partial(write_shard, writer, work), every
        )
        return writer.finish(**facts)


def write_shard(writer: Any, work: Callable[..., None], shard: int) -> None:
    """The work on one shard."""
    work(shard, writer)
