"""Runs a pipeline: which runner, with which of Beam's options, and its errors.

Imports Beam only when a pipeline is run: gin binds `RunnerConfig` without it.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tiger_jax.config import config
from tiger_jax.errors import InputError, flag
from tiger_jax.progress import say
from tiger_jax.workdir.shards import Shards, ShardWriter

IN_PROCESS = "FnApiRunner"
Keyed = tuple[int, bytes]
"""Bucket or shard number, and a table's bytes."""
Emit = Callable[[Any, Sequence[int]], Iterator[Keyed]]
"""(an input, the keys that are wanted) -> blocks for these keys."""
Write = Callable[[int, Iterable[bytes], ShardWriter], None]
"""(shard, the blocks that came for it, where to write it)."""


@dataclasses.dataclass(frozen=True)
class Flow:
    """How shards are made, whoever does the work; all its parts go to workers.

    Attributes:
        write: Called once per missing shard, also if nothing came for it.
        sources: By the step's name: small descriptions of inputs, such as paths, and
            what takes each apart into blocks. Without any, shards are written alone.
        through: Steps by which blocks meet on their way: each is given (key, the blocks
            that came for it; of several sources, by their names) and emits blocks for
            other keys. The last is asked for the missing shards, those before for all.
        infer: Beam's handle on a model that the blocks pass last.
    """

    write: Write
    sources: Mapping[str, tuple[Sequence[Any], Emit]] = dataclasses.field(
        default_factory=dict
    )
    through: Mapping[str, Emit] = dataclasses.field(default_factory=dict)
    infer: Any = None


@config("beam")
class RunnerConfig:
    """Where the work is done; does not affect what is written.

    Attributes:
        runner: Beam's name of a runner ("DaskRunner", "DataflowRunner",
            "FlinkRunner", "SparkRunner"). The default works in this process, without
            starting or downloading a program as newer DirectRunners do.
        options: Beam's own command-line options, such as "--project=…".
        workers: Threads of the in-process runner.
    """

    runner: str = IN_PROCESS
    options: tuple[str, ...] = ()
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError("workers must be at least 1")

    def write(self, writer: ShardWriter, flow: Flow, **facts: Any) -> Shards:
        """Writes the shards that are missing, if any, and lists them all.

        A pipeline that was killed leaves the finished ones alone when it is started
        again; the facts are kept with the folder.
        """
        whole = writer.whole()
        if whole is not None:
            say(f"{writer.folder}: up to date")
            return whole
        if missing := writer.missing():
            what = f"{len(missing)} of {writer.num_shards} shards to write"
            say(f"{writer.folder}: {what}")
            self.run(flow, writer, missing)
        return writer.finish(**facts)

    def run(self, flow: Flow, writer: ShardWriter, missing: list[int]) -> None:
        """Builds a flow's pipeline, runs it and waits for its end.

        Raises:
            InputError: A worker met bad input; the message is the worker's.
        """
        logging.getLogger("apache_beam").setLevel(logging.WARNING)
        pipeline = self._pipeline()
        try:
            with pipeline:
                _build(pipeline, flow, writer, missing)
        except Exception as error:
            # Runners hand errors on as text, the worker's traceback included.
            found = re.findall(r"InputError: (.+)", str(error))
            if not found and isinstance(error, InputError):
                found = [str(error)]
            if found:
                message = re.sub(r" \[while running .*", "", found[-1])
                raise InputError(message.replace("\\n", " ").strip(" '\"")) from error
            raise
        finally:
            # Dask's would stay, and its results with it, one for each pipeline.
            if client := getattr(getattr(pipeline, "result", None), "client", None):
                client.close()

    def _pipeline(self) -> Any:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        options = list(self.options)
        runner: Any = self.runner
        if self.runner == "DaskRunner":
            if not find_spec("distributed"):
                raise InputError(
                    f"{flag('beam.RunnerConfig.runner', self.runner)} needs Dask, "
                    "which is not installed: pip install 'tiger_jax[dask]'"
                )
            # Beam has no short name for it.
            runner = "apache_beam.runners.dask.dask_runner.DaskRunner"
            # An element is a shard's work; of 128 together, one worker would do all.
            if not any("npartitions" in o or "partition_size" in o for o in options):
                options.append("--dask_partition_size=1")
        if self.runner == IN_PROCESS:
            from apache_beam.runners.portability.fn_api_runner import FnApiRunner

            runner = FnApiRunner()
            mode = "in_memory" if self.workers == 1 else "multi_threading"
            options.append(f"--direct_num_workers={self.workers}")
            options.append(f"--direct_running_mode={mode}")
        return beam.Pipeline(runner=runner, options=PipelineOptions(options))


def _build(
    pipeline: Any, flow: Flow, writer: ShardWriter, missing: Sequence[int]
) -> None:
    import apache_beam as beam

    def take_apart(emit: Emit, wanted: Sequence[int]) -> Any:
        own = beam.FlatMap(lambda value: emit(value, wanted))
        return own.with_output_types(Keyed)

    every = list(range(writer.num_shards))
    wanted = every if flow.through else missing
    # Each missing shard has a block, an empty one, even if none comes for it.
    blocks = pipeline | "Missing shards" >> beam.Create(
        [(shard, b"") for shard in missing]
    ).with_output_types(Keyed)
    parts = {
        name: pipeline
        | f"List {name}" >> beam.Create(list(inputs))
        | f"Spread {name}" >> beam.Reshuffle()
        | f"Emit {name}" >> take_apart(emit, wanted)
        for name, (inputs, emit) in flow.sources.items()
    }
    came = next(iter(parts.values()), None)
    for number, (name, emit) in enumerate(flow.through.items(), 1):
        grouped = (
            parts | f"Join for {name}" >> beam.CoGroupByKey()
            if number == 1 and len(parts) > 1
            else came | f"Group for {name}" >> beam.GroupByKey()
        )
        wanted = missing if number == len(flow.through) else every
        came = grouped | name >> take_apart(emit, wanted)
    if flow.infer is not None:
        from apache_beam.ml.inference.base import RunInference

        # A block is a batch. Beam's own batches end with their bundle, and what a
        # bundle's end emits some runners (Dask's) lose.
        batches = came | "Batches" >> beam.Map(lambda block: [block])
        came = batches | RunInference(flow.infer).with_output_types(Keyed)
    if came is not None:
        blocks = (blocks, came) | "Blocks and keys" >> beam.Flatten()
    _ = (
        blocks
        | "By shard" >> beam.GroupByKey()
        | "Write" >> beam.MapTuple(lambda s, blocks: flow.write(s, blocks, writer))
    )


def check_all_came(
    found: Shards, num_rows: int, folder: Path, runner: RunnerConfig
) -> None:
    """Raises an InputError where a runner lost rows of an output on their way."""
    if found.num_rows != num_rows:
        raise InputError(
            f"{found.folder} has {found.num_rows:,} rows of {num_rows:,}: "
            f"{runner.runner} lost the others; remove {folder}, and use another runner"
        )


def require_beam() -> None:
    """Raises an InputError where Beam is not installed."""
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise InputError(
            "Apache Beam is not installed: make .venv/bin/.test, or pip install "
            "'tiger_jax[beam]'"
        ) from error
