"""Runs a pipeline: which runner, with which of Beam's options, and its errors."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from tiger_jax.errors import InputError

IN_PROCESS = "FnApiRunner"


@dataclasses.dataclass(frozen=True)
class RunnerConfig:
    """Where the work is done; of no consequence for what is written.

    Attributes:
        runner: Beam's name of a runner ("DataflowRunner", "FlinkRunner",
            "SparkRunner"). The default works in this process, without starting or
            downloading a program as newer DirectRunners do.
        options: Beam's own command-line options, such as "--project=…".
        workers: Threads of the in-process runner.
    """

    runner: str = IN_PROCESS
    options: tuple[str, ...] = ()
    workers: int = 1

    def pipeline(self) -> beam.Pipeline:
        """An empty pipeline on the runner."""
        options = list(self.options)
        runner: Any = self.runner
        if self.runner == IN_PROCESS:
            from apache_beam.runners.portability.fn_api_runner import FnApiRunner

            runner = FnApiRunner()
            options.append(f"--direct_num_workers={self.workers}")
            options.append("--direct_running_mode=multi_threading")
            if self.workers == 1:
                options[-1] = "--direct_running_mode=in_memory"
        return beam.Pipeline(runner=runner, options=PipelineOptions(options))


def run(config: RunnerConfig, build: Callable[[beam.Pipeline], None]) -> None:
    """Builds a pipeline, runs it and waits for its end.

    Raises:
        InputError: A worker met bad input; the message is the worker's.
    """
    try:
        with config.pipeline() as pipeline:
            build(pipeline)
    except InputError:
        raise
    except Exception as error:
        # Runners hand errors on as text, the worker's traceback included.
        found = re.findall(r"InputError: (.+)", str(error))
        if found:
            message = re.sub(r" \[while running .*", "", found[-1])
            raise InputError(message.replace("\\n", " ").strip(" '\"")) from error
        raise
