"""Runs a pipeline: which runner, with which of Beam's options, and its errors.

Imports Beam only when a pipeline is run: gin binds `RunnerConfig` without it.
"""

import logging
import re
from collections.abc import Callable
from typing import Any

from tiger_jax.config import config
from tiger_jax.errors import InputError

IN_PROCESS = "FnApiRunner"


@config("beam")
class RunnerConfig:
    """Where the work is done; does not affect what is written.

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

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError("workers must be at least 1")

    def pipeline(self) -> Any:
        """An empty `beam.Pipeline` on the runner."""
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        options = list(self.options)
        runner: Any = self.runner
        if self.runner == IN_PROCESS:
            from apache_beam.runners.portability.fn_api_runner import FnApiRunner

            runner = FnApiRunner()
            mode = "in_memory" if self.workers == 1 else "multi_threading"
            options.append(f"--direct_num_workers={self.workers}")
            options.append(f"--direct_running_mode={mode}")
        return beam.Pipeline(runner=runner, options=PipelineOptions(options))


def run(config: RunnerConfig, build: Callable[[Any], None]) -> None:
    """Builds a pipeline, runs it and waits for its end.

    Raises:
        InputError: A worker met bad input; the message is the worker's.
    """
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
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


def require_beam() -> None:
    """Raises an InputError where Beam is not installed."""
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise InputError(
            "Apache Beam is not installed: make .venv/bin/.test, or pip install "
            "'tiger_jax[beam]'"
        ) from error
