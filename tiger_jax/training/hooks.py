"""What happens beside the updates of a training: each a small object of its own."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.training.checkpoints import Checkpointer
from tiger_jax.training.flops import count_microbatch_flops, peak_flops
from tiger_jax.training.partitioning import Partitioner, from_process_0
from tiger_jax.training.step_metrics import StepMetrics
from tiger_jax.training.train_step import LossFn

PyTree = Any
EvaluateFn = Callable[[PyTree], Mapping[str, float]]


class DivergedError(InputError):
    """The loss is not finite any more, or far above where it began."""


class Preemption:
    """Notes SIGTERM instead of dying of it, while the block runs.

    With several processes JAX's own notice is used, so that all stop at one step.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._before: Any = None
        self._is_installed = (
            jax.process_count() == 1
            and threading.current_thread() is threading.main_thread()
        )

    def __enter__(self) -> "Preemption":
        if self._is_installed:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._is_installed:
            signal.signal(signal.SIGTERM, self._before)

    def is_due(self, step: int) -> bool:
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._is_set

    def _note(self, number: int, frame: Any) -> None:
        del number, frame
        self._is_set = True


class Clock:
    """Wall-clock time over all starts of a run, and its limit."""

    def __init__(self, earlier_seconds: float, max_minutes: float | None) -> None:
        self._started = time.monotonic() - earlier_seconds
        self._max_minutes = max_minutes

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def is_time_up(self, step: int, log_every: int) -> bool:
        """Whether the limit is reached; several processes ask only every so often."""
        if self._max_minutes is None:
            return False
        seconds = self.seconds
        if jax.process_count() > 1:
            if step % log_every:
                return False  # asking process 0 at every step would cost
            seconds = from_process_0({"seconds": seconds})["seconds"]
        return seconds >= 60 * self._max_minutes


class Profiler(contextlib.AbstractContextManager):
    """Writes a profiler trace of a few updates, if that is asked for."""

    def __init__(self, folder: Path, first: int | None, num_steps: int) -> None:
        """Takes the first update of the trace, None for no trace, and how many."""
        self._folder, self._first, self._num_steps = folder, first, num_steps
        self._is_on = False

    def __exit__(self, *error: Any) -> None:
        self._stop()

    def before_step(self, step: int) -> None:
        if self._first is None:
            return
        if step >= self._first + self._num_steps:
            self._stop()
        elif step >= self._first and not self._is_on:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # the devices' work, not every call
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
            self._is_on = True

    def _stop(self) -> None:
        if self._is_on:
            jax.profiler.stop_trace()
            self._is_on = False
            say(f"profiler trace written to {self._folder}")


class FlopMeter:
    """Which share of the devices' peak updates use, where the peak is known."""

    def __init__(
        self, loss_fn: LossFn, input: Any, partitioner: Partitioner, peak: float | None
    ) -> None:
        """Takes the FLOP/s of one device, for where its kind isn't known."""
        self._loss_fn, self._input, self._partitioner = loss_fn, input, partitioner
        devices = partitioner.mesh.devices
        self._peak = (peak or peak_flops(devices.flat[0]) or 0.0) * devices.size
        self._by_bucket: list[float] = []

    def count(self, params: PyTree, updates: list[Any]) -> float:
        """Floating-point operations of some updates; 0 if the peak isn't known."""
        if not self._peak:
            return 0.0
        if not self._by_bucket:
            self._by_bucket = count_microbatch_flops(
                self._loss_fn, self._input, params, updates[0], self._partitioner
            )
        return sum(self._by_bucket[b] for u in updates for b in u.buckets)

    def utilisation(self, flops: float, seconds: float) -> dict[str, float]:
        if not flops:
            return {}
        return {"train/flop_utilisation": flops / seconds / self._peak}


class Divergence:
    """Stops a run whose loss has left the rails, and says what to try."""

    def __init__(self, max_ratio: float, checkpointer: Checkpointer, advice: str):
        self._max_ratio, self._advice = max_ratio, advice
        self._checkpointer = checkpointer

    def check_finite(self, window: StepMetrics) -> None:
        """Raises a DivergedError that names the first update that was not finite."""
        if (what := window.first_not_finite()) is not None:
            self._raise(what)

    def check_loss(self, step: int, loss: float, first: float) -> None:
        """Raises a DivergedError if the loss is far above the first that was logged."""
        if loss > self._max_ratio * first:
            self._raise(
                f"the training loss rose to {loss:.4g} at step {step:,}, from "
                f"{first:.4g} at the start"
            )

    def _raise(self, what: str) -> None:
        self._checkpointer.wait()
        steps = self._checkpointer.steps()
        good = "there is no checkpoint yet"
        if steps:
            path = self._checkpointer.path(steps[-1])
            good = f"the last good checkpoint is {path}"
        raise DivergedError(f"{what}; {good}. Try {self._advice}")


def rank(metrics: Mapping[str, float], name: str) -> tuple[float, float]:
    """What is compared to find the best: the metric, at a tie the loss.

    The smallest is best if the metric's name ends in "loss", else the largest.
    """
    if name not in metrics:
        return -math.inf, -math.inf
    sign = -1.0 if name.endswith("loss") else 1.0
    return sign * metrics[name], -metrics.get("loss", 0.0)
