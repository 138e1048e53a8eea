"""The training loop: steps, curves, evaluation, checkpoints, and how it ends."""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from tiger_jax.config import config
from tiger_jax.errors import InputError, Preempted
from tiger_jax.progress import Progress, say
from tiger_jax.training.checkpoints import Checkpointer
from tiger_jax.training.flops import count_microbatch_flops, peak_flops
from tiger_jax.training.metric_writers import MetricWriter
from tiger_jax.training.partitioning import Partitioner, from_process_0
from tiger_jax.training.step_metrics import StepMetrics
from tiger_jax.training.train_state import TrainState, init_train_state, split_seed
from tiger_jax.training.train_step import (
    LossFn,
    make_train_step,
    spreads_microbatches,
)

PyTree = Any
EvaluateFn = Callable[[PyTree], Mapping[str, float]]


class DivergedError(InputError):
    """The loss is not finite any more, or far above where it began."""


@runtime_checkable
class TrainingInput(Protocol):
    """What the loop needs of an input.

    ``next`` gives an update: `arrays` with the leading axes [M B], ``buckets`` [M],
    and what is counted in it. `make_batch` turns one microbatch's arrays into the
    loss's batch, inside the compiled step; `constants` live on the devices.
    """

    constants: PyTree
    buckets: tuple[int, ...]

    def __next__(self) -> Any: ...

    def make_batch(self, constants: PyTree, arrays: PyTree, bucket: int) -> PyTree: ...

    def save(self, path: Any) -> None: ...

    def restore(self, path: Any) -> None: ...


@config("loop")
class LoopConfig:
    """How long to train, and what to do on the way; periods are in updates.

    Attributes:
        total_steps: Updates of the whole run; also the length of its schedule.
        max_minutes: Stop after this much wall-clock time, resumed runs' included.
            The schedule keeps its length.
        log_every: Updates between rows of metrics, which hold their means.
        evaluate_every: Updates between evaluations.
        checkpoint_every: Updates between checkpoints; a new best adds one.
        keep_checkpoints: Newest checkpoints kept, beside the best.
        best_metric: Which of the evaluation's metrics decides; the smallest is best
            if its name ends in "loss", else the largest; at a tie, the smaller
            "loss".
        patience: Stop after this many evaluations without a new best.
        steps_per_dispatch: Updates in one call of the compiled step. More than one
            pays where an update takes less than a few milliseconds.
        max_loss_ratio: Stop when the mean loss between two logs is this many times
            that of the first.
        profile_at: Update at which a profiler trace starts.
        profile_steps: Updates in the trace.
        peak_flops: FLOP/s of one device, where its kind isn't known.
    """

    total_steps: int = 200_000
    max_minutes: float | None = None
    log_every: int = 100
    evaluate_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    best_metric: str = "recall@10"
    patience: int | None = 20
    steps_per_dispatch: int = 1
    max_loss_ratio: float = 2.0
    profile_at: int | None = None
    profile_steps: int = 5
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        unit = self.steps_per_dispatch
        periods = ("total_steps", "log_every", "evaluate_every", "checkpoint_every")
        for name in periods:
            period = getattr(self, name)
            if period < 1 or unit < 1 or period % unit:
                raise InputError(
                    f"loop.LoopConfig.{name} = {period} must be a positive multiple of "
                    f"steps_per_dispatch = {unit}"
                )


# Settings that change a run's cost or its record, but not what it makes.
_WITHOUT_EFFECT = (
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "profile_at",
    "profile_steps",
    "peak_flops",
)


def decides(config: LoopConfig) -> dict[str, Any]:
    """The settings that a finished run must agree with to be up to date."""
    return {k: v for k, v in vars(config).items() if k not in _WITHOUT_EFFECT}


@dataclasses.dataclass
class LoopState:
    """What the loop remembers from one start to the next; saved as JSON."""

    seconds: float = 0.0
    best_step: int | None = None
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluations_since_best: int = 0
    last_evaluated: int = 0
    first_loss: float | None = None
    stopped: str | None = None


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How training ended.

    Attributes:
        state: The last state.
        step: Updates made.
        best_step: The step whose checkpoint is the best on validation.
        best_metrics: The evaluation at that step.
        stopped: Why it ended before `total_steps`, if it did.
        seconds: Wall-clock time over all starts.
    """

    state: TrainState
    step: int
    best_step: int
    best_metrics: dict[str, float]
    stopped: str | None
    seconds: float


def train(
    *,
    loss_fn: LossFn,
    init_fn: Callable[[jax.Array], PyTree],
    optimizer: optax.GradientTransformation,
    input: TrainingInput,
    evaluate_fn: EvaluateFn,
    partitioner: Partitioner,
    config: LoopConfig,
    folder: Path,
    seed: int = 0,
    initial_params: PyTree | None = None,
) -> TrainResult:
    """Trains to the end, from the newest checkpoint in `folder` if there is one.

    Args:
        loss_fn: ``(params, batch, dropout_key) -> (loss_sum, sums)``.
        init_fn: Key to parameters with their logical axis names.
        evaluate_fn: Parameters to metrics by name; written as ``validation/…``.
        folder: Gets ``checkpoints/``, ``metrics.jsonl`` and ``tensorboard/``.
        initial_params: Start from these instead of `init_fn`'s values.

    Raises:
        DivergedError: The loss was not finite, or rose far above its start.
        Preempted: SIGTERM came; everything is saved.
        InputError: A checkpoint or a config doesn't fit.
    """
    loop = _Loop(
        loss_fn, init_fn, optimizer, input, evaluate_fn, partitioner, config, folder
    )
    return loop.run(seed, initial_params)


class _Loop:
    """The state of one call of `train`."""

    def __init__(
        self,
        loss_fn: LossFn,
        init_fn: Callable[[jax.Array], PyTree],
        optimizer: optax.GradientTransformation,
        input: TrainingInput,
        evaluate_fn: EvaluateFn,
        partitioner: Partitioner,
        config: LoopConfig,
        folder: Path,
    ) -> None:
        self.loss_fn, self.init_fn, self.optimizer = loss_fn, init_fn, optimizer
        self.input, self.evaluate_fn = input, evaluate_fn
        self.partitioner, self.config, self.folder = partitioner, config, folder
        self.memory = LoopState()
        self.checkpointer = Checkpointer(
            folder / "checkpoints", keep=config.keep_checkpoints
        )
        self.last_saved: int | None = None
        self.bucket_flops: list[float] | None = None
        self.is_profiling = False

    def run(self, seed: int, initial_params: PyTree | None) -> TrainResult:
        """Restores or initialises, trains, and closes everything."""
        init_key, self.key = split_seed(seed)
        state = init_train_state(
            self.init_fn, self.optimizer, self.partitioner, init_key
        )
        if initial_params is not None:
            state = state._replace(
                params=jax.tree.map(
                    lambda new, old: jax.device_put(new, old.sharding),
                    initial_params,
                    state.params,
                )
            )
        restored = self.checkpointer.restore_newest(state, self.input)
        if restored is not None:
            state, remembered = restored
            self.memory = LoopState(**remembered)
            self.checkpointer.best_step = self.memory.best_step
            self.last_saved = int(state.step)
            say(f"resumed at step {int(state.step):,}")
        self.earlier_seconds, self.started = self.memory.seconds, time.monotonic()
        self.writer = MetricWriter(
            self.folder,
            resume_from_step=None if restored is None else int(state.step),
        )
        try:
            with _SigtermFlag() as self.sigterm:
                state = self._train(state)
            self.checkpointer.wait()
        finally:
            self.writer.close()
            self.checkpointer.close()
        memory = self.memory
        assert memory.best_step is not None  # every run ends with an evaluation
        return TrainResult(
            state=state,
            step=int(state.step),
            best_step=memory.best_step,
            best_metrics=memory.best_metrics,
            stopped=memory.stopped,
            seconds=memory.seconds,
        )

    def _train(self, state: TrainState) -> TrainState:
        config, step = self.config, int(state.step)
        shardings = jax.tree.map(lambda x: x.sharding, state)
        train_step = make_train_step(
            self.loss_fn,
            self.optimizer,
            self.partitioner,
            shardings,
            make_batch=self.input.make_batch,
            num_buckets=len(self.input.buckets),
        )
        constants = self.partitioner.put(
            self.input.constants, batch_axis=None, is_global=True
        )
        window, shown = StepMetrics(step), {}
        previous: Any = None
        total = config.total_steps
        with Progress(total, "Training", unit="step", start=step) as bar:
            while step < total and self.memory.stopped is None:
                self._profile(step)
                updates = [next(self.input) for _ in range(config.steps_per_dispatch)]
                self._count_flops(state, constants, updates[0])
                state, metrics = train_step(
                    state, self.key, constants, *self._to_devices(updates)
                )
                step += len(updates)
                window.add(updates, metrics, self.bucket_flops)
                # At most one dispatch ahead of the devices: enough to keep them
                # busy, and a signal or a NaN is seen at once.
                jax.block_until_ready(previous)
                previous = metrics
                bar.advance(len(updates), **shown)
                if step % config.log_every == 0 or step >= total:
                    shown = self._log(step, window)
                    window = StepMetrics(step)
                self._at_boundaries(state, step, window)
        self._stop_profile()
        return state

    def _at_boundaries(self, state: TrainState, step: int, window: StepMetrics) -> None:
        """Evaluates, saves and stops, whatever is due after `step`."""
        config, memory = self.config, self.memory
        is_preempted = self._is_preempted(step)
        if not is_preempted and self._is_time_up(step):
            memory.stopped = f"time limit of {config.max_minutes:g} minutes"
        is_last = step >= config.total_steps or memory.stopped is not None
        is_best = False
        if not is_preempted and (is_last or step % config.evaluate_every == 0):
            self._check_finite(window)
            with window.pause():
                is_best = self._evaluate(state, step)
            if config.patience and memory.evaluations_since_best >= config.patience:
                memory.stopped = memory.stopped or (
                    f"no better {config.best_metric} in {config.patience} evaluations"
                )
            is_last = is_last or memory.stopped is not None
        if is_preempted or is_last or is_best or step % config.checkpoint_every == 0:
            self._check_finite(window)
            memory.seconds = self._seconds()
            if self.last_saved != step:
                loop_state = dataclasses.asdict(memory)
                self.last_saved = self.checkpointer.save(state, self.input, loop_state)
        if is_preempted:
            self.checkpointer.wait()
            raise Preempted(
                f"stopped by a signal after step {step:,}, which is saved: the same "
                "command goes on from there"
            )

    def _evaluate(self, state: TrainState, step: int) -> bool:
        """Evaluates, writes the metrics and says whether they are the best."""
        config, memory = self.config, self.memory
        with self.partitioner.context():
            metrics = from_process_0(self.evaluate_fn(state.params))
        if config.best_metric not in metrics:
            raise InputError(
                f"loop.LoopConfig.best_metric {config.best_metric!r} is none of the "
                f"evaluation's: {', '.join(sorted(metrics))}"
            )
        is_best = self._rank(metrics) > self._rank(memory.best_metrics)
        if is_best:
            memory.best_step, memory.best_metrics = step, metrics
            memory.evaluations_since_best = 0
            self.checkpointer.best_step = step
        else:
            memory.evaluations_since_best += 1
        memory.last_evaluated = step
        self.writer.write(step, {f"validation/{k}": v for k, v in metrics.items()})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        say(f"step {step:,}: validation {shown}" + (" (best)" if is_best else ""))
        return is_best

    def _rank(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """What is compared to find the best: the metric, at a tie the loss."""
        name = self.config.best_metric
        if name not in metrics:
            return -math.inf, -math.inf
        sign = -1.0 if name.endswith("loss") else 1.0
        return sign * metrics[name], -metrics.get("loss", 0.0)

    def _log(self, step: int, window: StepMetrics) -> dict[str, float]:
        """Writes a row of metrics; returns what the progress bar shows of it."""
        self._check_finite(window)
        values = window.summarise()
        loss = values["train/loss"]
        if self.memory.first_loss is None:
            self.memory.first_loss = loss
        if loss > self.config.max_loss_ratio * self.memory.first_loss:
            self._raise_diverged(
                f"the training loss rose to {loss:.4g} at step {step:,}, from "
                f"{self.memory.first_loss:.4g} at the start"
            )
        if window.flops:
            devices = self.partitioner.mesh.devices
            peak = self.config.peak_flops or peak_flops(devices.flat[0])
            if peak:
                rate = window.flops / values["train/seconds"]
                values["train/flop_utilisation"] = rate / (peak * devices.size)
        self.writer.write(step, values)
        return {"loss": loss, "examples/s": values["train/examples_per_s"]}

    def _check_finite(self, window: StepMetrics) -> None:
        if (what := window.first_not_finite()) is not None:
            self._raise_diverged(what)

    def _raise_diverged(self, what: str) -> None:
        """Stops the run, naming the last good checkpoint and what to try."""
        self.checkpointer.wait()
        steps = self.checkpointer.steps()
        good = (
            f"the last good checkpoint is {self.checkpointer.folder}/"
            f"checkpoint_{steps[-1]}"
            if steps
            else "there is no checkpoint yet"
        )
        raise DivergedError(
            f"{what}; {good}. Try a lower optimizers.OptimizerConfig.learning_rate, "
            "clip_norm = 1.0, or more warmup_steps; with bfloat16, try float32"
        )

    def _to_devices(self, updates: list[Any]) -> tuple[PyTree, PyTree]:
        put = self.partitioner.put
        arrays = jax.tree.map(lambda *xs: np.stack(xs), *[u.arrays for u in updates])
        buckets = np.stack([u.buckets for u in updates])
        rows = next(iter(updates[0].arrays.values())).shape[1]
        rows *= 1 if updates[0].is_global else jax.process_count()
        has_all = updates[0].is_global or jax.process_count() == 1
        is_spread = has_all and spreads_microbatches(self.partitioner, buckets.shape[1])
        if not is_spread and rows % self.partitioner.num_data_shards:
            raise InputError(
                f"a microbatch of {rows} examples cannot be split over "
                f"{self.partitioner.num_data_shards} data devices: choose a "
                "microbatch_size that is a multiple of it"
            )
        return (
            put(
                arrays,
                batch_axis=None if is_spread else 2,
                is_global=updates[0].is_global,
            ),
            put(buckets, batch_axis=None, is_global=True),
        )

    def _count_flops(self, state: TrainState, constants: PyTree, update: Any) -> None:
        if self.bucket_flops is None and (
            self.config.peak_flops or peak_flops(self.partitioner.mesh.devices.flat[0])
        ):
            self.bucket_flops = count_microbatch_flops(
                self.loss_fn,
                self.input.make_batch,
                len(self.input.buckets),
                state.params,
                constants,
                jax.tree.map(lambda x: x[0], update.arrays),
                self.partitioner,
            )

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def _is_time_up(self, step: int) -> bool:
        if self.config.max_minutes is None:
            return False
        seconds = self._seconds()
        if jax.process_count() > 1:
            if step % self.config.log_every:
                return False  # asking process 0 at every step would cost
            seconds = from_process_0({"seconds": seconds})["seconds"]
        return seconds >= 60 * self.config.max_minutes

    def _is_preempted(self, step: int) -> bool:
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.sigterm.is_set

    def _profile(self, step: int) -> None:
        start = self.config.profile_at
        if start is None:
            return
        if step >= start + self.config.profile_steps:
            self._stop_profile()
        elif step >= start and not self.is_profiling:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # the devices' work, not every call
            jax.profiler.start_trace(
                str(self.folder / "profile"), profiler_options=options
            )
            self.is_profiling = True

    def _stop_profile(self) -> None:
        if self.is_profiling:
            jax.profiler.stop_trace()
            self.is_profiling = False
            say(f"profiler trace written to {self.folder / 'profile'}")


class _SigtermFlag:
    """Notes SIGTERM instead of dying of it, while the block runs.

    With several processes JAX's own notice is used, so that all stop at one step.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._before: Any = None
        self._is_installed = (
            jax.process_count() == 1
            and threading.current_thread() is threading.main_thread()
        )

    def __enter__(self) -> "_SigtermFlag":
        if self._is_installed:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._is_installed:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: Any) -> None:
        del number, frame
        self.is_set = True
