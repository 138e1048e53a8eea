"""The training loop: one for every model that is trained here.

    while steps are left:
        draw updates -> compiled step -> log -> evaluate -> save -> stop?

A model brings its loss and its first parameters, an input its batches; what else a
training may need (variables without a gradient, changes between updates) is a function
that `train` is given.
"""

import contextlib
import dataclasses
import operator
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from tiger_jax.config import config
from tiger_jax.errors import InputError, Preempted, flag
from tiger_jax.progress import Progress, say
from tiger_jax.training import hooks, train_state, train_step
from tiger_jax.training.checkpoints import Checkpointer
from tiger_jax.training.hooks import DivergedError, EvaluateFn
from tiger_jax.training.inputs import TrainingInput, Update
from tiger_jax.training.metric_writers import MetricWriter
from tiger_jax.training.optimizers import OptimizerConfig
from tiger_jax.training.partitioning import Partitioner, from_process_0
from tiger_jax.training.step_metrics import (
    DescribeFn,
    StepMetrics,
    divide_by_weight,
)
from tiger_jax.training.train_state import TrainState
from tiger_jax.training.train_step import AfterUpdateFn, LossFn

__all__ = ["DivergedError", "LoopConfig", "TrainResult", "TrainingInput", "train"]

PyTree = Any
_TIME_LIMIT = "time limit"
_ADVICE = (
    f"a lower rate, as {flag('optimizers.OptimizerConfig.learning_rate', 0.001)}; "
    f"{flag('optimizers.OptimizerConfig.clip_norm', 1.0)}; or more warmup_steps; with "
    "bfloat16, float32"
)


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
        checkpoint_seconds: Also save when so much time has passed since the last
            checkpoint; in one process only.
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
    checkpoint_seconds: float | None = None
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
        for name in ("total_steps", "log_every", "evaluate_every", "checkpoint_every"):
            period = getattr(self, name)
            # The last dispatch of a run may be shorter than the others.
            is_whole = name == "total_steps" or unit < 1 or period % unit == 0
            if period < 1 or unit < 1 or not is_whole:
                raise InputError(
                    f"loop.LoopConfig.{name} = {period} must be a positive multiple of "
                    f"steps_per_dispatch = {unit}"
                )


# Settings that change a run's cost or its record, but not what it makes.
_WITHOUT_EFFECT = (
    "log_every",
    "checkpoint_every",
    "checkpoint_seconds",
    "keep_checkpoints",
    "profile_at",
    "profile_steps",
    "peak_flops",
)


def decides(config: LoopConfig) -> dict[str, Any]:
    """The settings that a finished run must agree with to be up to date."""
    return {k: v for k, v in vars(config).items() if k not in _WITHOUT_EFFECT}


def may_grow(optimizer: OptimizerConfig) -> tuple[str, ...]:
    """Settings that a run may go on with larger, as if they had always been so.

    A cosine's steps all depend on how many there are.
    """
    is_fixed = optimizer.schedule == "cosine"
    return ("loop.max_minutes", *["loop.total_steps"] * (not is_fixed))


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

    def judge(self, step: int, metrics: dict[str, float], config: LoopConfig) -> bool:
        """Remembers an evaluation; says whether it is the best so far.

        Raises:
            InputError: It lacks the metric that decides.
        """
        name = config.best_metric
        if name not in metrics:
            raise InputError(
                f"loop.LoopConfig.best_metric {name!r} is none of the evaluation's: "
                f"{', '.join(sorted(metrics))}"
            )
        is_best = hooks.rank(metrics, name) > hooks.rank(self.best_metrics, name)
        self.evaluations_since_best += 1
        if is_best:
            self.best_step, self.best_metrics = step, metrics
            self.evaluations_since_best = 0
        self.last_evaluated = step
        if config.patience and self.evaluations_since_best >= config.patience:
            self.stopped = self.stopped or (
                f"no better {name} in {config.patience} evaluations"
            )
        return is_best


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How training ended.

    Attributes:
        step: Updates made.
        best_step: The step whose checkpoint is the best on validation.
        stopped: Why it ended before `total_steps`, if it did.
        seconds: Wall-clock time over all starts.
    """

    state: TrainState
    step: int
    best_step: int
    best_metrics: dict[str, float]
    stopped: str | None
    seconds: float

    def report(self) -> dict[str, Any]:
        """Says how it ended, and gives the facts for a manifest."""
        if self.stopped:
            say(f"stopped after step {self.step:,}: {self.stopped}")
        best = ", ".join(f"{name} {v:.4f}" for name, v in self.best_metrics.items())
        say(f"best at step {self.best_step:,}: {best}")
        return {
            "parameters": sum(x.size for x in jax.tree.leaves(self.state.params)),
            "steps": self.step,
            "stopped": self.stopped,
            "seconds": round(self.seconds, 1),
            "best_step": self.best_step,
            "best": self.best_metrics,
        }


def train(
    *,
    loss_fn: LossFn,
    init_fn: Callable[[jax.Array], PyTree],
    optimizer: optax.GradientTransformation,
    input: TrainingInput,
    partitioner: Partitioner,
    config: LoopConfig,
    folder: Path,
    evaluate_fn: EvaluateFn | None = None,
    seed: int = 0,
    variables: PyTree | Callable[[PyTree], PyTree] = (),
    on_start: Callable[[PyTree], PyTree] | None = None,
    before_dispatch: Callable[[int, PyTree], PyTree] | None = None,
    after_update: AfterUpdateFn | None = None,
    evaluated: Callable[[TrainState], PyTree] = operator.attrgetter("params"),
    describe_fn: DescribeFn = divide_by_weight,
    advice: str = _ADVICE,
) -> TrainResult:
    """Trains to the end, from the newest checkpoint in `folder` if there is one.

    Args:
        loss_fn: ``(params, batch, dropout_key) -> (loss_sum, sums)``.
        init_fn: Key to parameters with their logical axis names.
        folder: Gets ``checkpoints/``, ``metrics.jsonl`` and ``tensorboard/``.
        evaluate_fn: Parameters to metrics by name; written as ``validation/…``. With
            None nothing is evaluated, and the last step counts as the best.
        variables: First values of what changes without a gradient, or a function
            from the first parameters to them.
        on_start: First parameters to those that a new run starts from; not called
            when a run resumes.
        before_dispatch: (updates made, parameters) to parameters, on the host.
        after_update: Changes the state after each update, inside the compiled step.
        evaluated: What of the state `evaluate_fn` is given.
        describe_fn: A loss's sums over some updates to the metrics that are logged.
        advice: What to try when the loss diverges.

    Raises:
        DivergedError: The loss was not finite, or rose far above its start.
        Preempted: SIGTERM came; everything is saved.
        InputError: A checkpoint or a config doesn't fit.
    """
    with contextlib.ExitStack() as stack:
        # The newest checkpoint, or a first state.
        init_key, step_key = train_state.split_seed(seed)
        state = train_state.init_train_state(
            init_fn, optimizer, partitioner, init_key, variables
        )
        checkpointer = stack.enter_context(
            Checkpointer(folder / "checkpoints", keep=config.keep_checkpoints)
        )
        restored = checkpointer.restore_newest(state, input)
        if restored is None:
            memory = LoopState()
            if on_start is not None:
                params = train_state.put_like(on_start(state.params), state.params)
                state = state._replace(params=params)
                if callable(variables):
                    first = train_state.put_like(variables(params), state.variables)
                    state = state._replace(variables=first)
        else:
            state, remembered = restored
            memory = LoopState(**remembered)
            checkpointer.best_step = memory.best_step
            say(f"resumed at step {int(state.step):,}")
        step = int(state.step)
        last_saved = resumed = None if restored is None else step
        last_save_time = time.monotonic()

        # What goes on beside.
        writer = stack.enter_context(MetricWriter(folder, resume_from_step=resumed))
        preemption = stack.enter_context(hooks.Preemption())
        profiler = stack.enter_context(
            hooks.Profiler(folder / "profile", config.profile_at, config.profile_steps)
        )
        clock = hooks.Clock(memory.seconds, config.max_minutes)
        is_time_up = clock.is_time_up(step, 1)  # more may be given than there was
        if not is_time_up and (memory.stopped or "").startswith(_TIME_LIMIT):
            memory.stopped = None
        flop_meter = hooks.FlopMeter(loss_fn, input, partitioner, config.peak_flops)
        divergence = hooks.Divergence(config.max_loss_ratio, checkpointer, advice)

        run_step = train_step.make_train_step(
            loss_fn,
            optimizer,
            partitioner,
            jax.tree.map(lambda x: x.sharding, state),
            make_batch=input.make_batch,
            num_buckets=len(input.buckets),
            after_update=after_update,
        )
        constants = partitioner.put(input.constants, batch_axis=None, is_global=True)
        window, shown, previous = StepMetrics(step), {}, None
        total = config.total_steps
        bar = stack.enter_context(Progress(total, "Training", unit="step", start=step))
        while step < total and memory.stopped is None:
            # A dispatch of one or several updates.
            profiler.before_step(step)
            if before_dispatch is not None:
                params = train_state.put_like(
                    before_dispatch(step, state.params), state.params
                )
                state = state._replace(params=params)
            count = min(config.steps_per_dispatch, total - step)
            updates = [next(input) for _ in range(count)]
            flops = flop_meter.count(state.params, updates)
            state, metrics = run_step(
                state, step_key, constants, *_to_devices(updates, partitioner)
            )
            step += count
            window.add(updates, metrics, flops)
            # At most one dispatch ahead of the devices: enough to keep them busy,
            # and a signal or a NaN is seen at once.
            jax.block_until_ready(previous)
            previous = metrics
            bar.advance(count, **shown)

            if step % config.log_every == 0 or step >= total:
                divergence.check_finite(window)
                row = window.summarise(describe_fn)
                if memory.first_loss is None:
                    memory.first_loss = row["train/loss"]
                divergence.check_loss(step, row["train/loss"], memory.first_loss)
                row |= flop_meter.utilisation(window.flops, row["train/seconds"])
                writer.write(step, row)
                shown = {
                    "loss": row["train/loss"],
                    "examples/s": row["train/examples_per_s"],
                }
                window = StepMetrics(step)

            is_preempted = preemption.is_due(step)
            if not is_preempted and clock.is_time_up(step, config.log_every):
                memory.stopped = f"{_TIME_LIMIT} of {config.max_minutes:g} minutes"
            is_last = step >= total or memory.stopped is not None

            is_best = False
            is_due = is_last or step % config.evaluate_every == 0
            if is_due and not is_preempted and evaluate_fn is not None:
                divergence.check_finite(window)
                with window.pause(), partitioner.context():
                    found = from_process_0(evaluate_fn(evaluated(state)))
                is_best = memory.judge(step, found, config)
                checkpointer.best_step = memory.best_step
                writer.write(step, {f"validation/{k}": v for k, v in found.items()})
                text = ", ".join(f"{name} {v:.4f}" for name, v in found.items())
                say(f"step {step:,}: validation {text}" + " (best)" * is_best)
                is_last = is_last or memory.stopped is not None

            waited = time.monotonic() - last_save_time
            is_due = step % config.checkpoint_every == 0 or (
                config.checkpoint_seconds is not None
                and waited >= config.checkpoint_seconds
            )
            if is_due or is_preempted or is_last or is_best:
                divergence.check_finite(window)
                memory.seconds = clock.seconds
                if last_saved != step:
                    last_saved = checkpointer.save(
                        state, input, dataclasses.asdict(memory)
                    )
                    last_save_time = time.monotonic()
            if is_preempted:
                checkpointer.wait()
                raise Preempted(
                    f"stopped by a signal after step {step:,}, which is saved: the "
                    "same command goes on from there"
                )
        checkpointer.wait()
    return TrainResult(
        state=state,
        step=step,
        best_step=step if memory.best_step is None else memory.best_step,
        best_metrics=memory.best_metrics,
        stopped=memory.stopped,
        seconds=memory.seconds,
    )


def _to_devices(
    updates: list[Update], partitioner: Partitioner
) -> tuple[PyTree, PyTree]:
    """Arrays [U M B] and buckets [U M] of some updates, as the step takes them."""
    arrays, buckets, batch_axis = stack_updates(updates, partitioner)
    return (
        partitioner.put(arrays, batch_axis=batch_axis, is_global=updates[0].is_global),
        partitioner.put(buckets, batch_axis=None, is_global=True),
    )


def stack_updates(
    updates: list[Update], partitioner: Partitioner
) -> tuple[PyTree, PyTree, int | None]:
    """The same on the host, and which axis of the arrays the data devices split.

    Raises:
        InputError: A microbatch can't be split over them.
    """
    arrays = jax.tree.map(lambda *xs: np.stack(xs), *[u.arrays for u in updates])
    buckets = np.stack([u.buckets for u in updates])
    is_global = updates[0].is_global
    rows = next(iter(updates[0].arrays.values())).shape[1]
    rows *= 1 if is_global else jax.process_count()
    has_all = is_global or jax.process_count() == 1
    is_spread = has_all and train_step.spreads_microbatches(
        partitioner, buckets.shape[1]
    )
    if not is_spread and rows % partitioner.num_data_shards:
        raise InputError(
            f"a microbatch of {rows} examples cannot be split over "
            f"{partitioner.num_data_shards} data devices: choose a "
            "microbatch_size that is a multiple of it"
        )
    return arrays, buckets, None if is_spread else 2
