"""What happened in training since the last row of metrics."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

# The sums of a loss over some updates, by name, to what is written of them.
DescribeFn = Callable[[Mapping[str, Any]], dict[str, float]]


def divide_by_weight(sums: Mapping[str, Any]) -> dict[str, float]:
    """The mean of every sum over the weight, which is the number of targets."""
    weight = max(float(sums["weight"]), 1e-9)
    names = sorted(sums.keys() - {"weight"})
    return {name: float(sums[name]) / weight for name in names}


class StepMetrics:
    """Collects the metrics of consecutive updates, left on the devices until asked."""

    def __init__(self, first_step: int) -> None:
        """Starts before update `first_step` (the number of updates made so far)."""
        self._first_step = first_step
        self._metrics: list[dict[str, jax.Array]] = []
        self._fetched: dict[str, Any] = {}
        self._examples = self._tokens = 0
        self._started = time.monotonic()
        self.flops = 0.0

    def add(self, updates: list[Any], metrics: Any, flops: float) -> None:
        """Adds one dispatch: its updates and the metrics [U] it returned."""
        for update in updates:
            self._examples += update.num_examples
            self._tokens += update.num_tokens
        self.flops += flops
        self._metrics.append(metrics)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves what happens inside (an evaluation) out of the rates."""
        self._fetch()  # the updates so far have ended before the pause begins
        started = time.monotonic()
        yield
        self._started += time.monotonic() - started

    def first_not_finite(self) -> str | None:
        """Names the first update whose loss or gradient was not finite, if any."""
        values = self._fetch()
        for name in ("loss", "gradient_norm"):
            bad = np.flatnonzero(~np.isfinite(values.get(name, np.zeros(0))))
            if len(bad):
                step = self._first_step + int(bad[0]) + 1
                value = values[name][bad[0]]
                return f"the {name.replace('_', ' ')} was {value} at step {step:,}"
        return None

    def summarise(self, describe_fn: DescribeFn) -> dict[str, float]:
        """One row: means over the updates, and rates by the clock."""
        values = dict(self._fetch())
        seconds = max(time.monotonic() - self._started, 1e-9)
        loss, norm = values.pop("loss"), values.pop("gradient_norm")
        weight = max(float(values["weight"].sum()), 1e-9)
        sums = jax.tree.map(lambda x: x.sum(0), values)
        row = {
            "train/loss": float((loss * values["weight"]).sum()) / weight,
            "train/gradient_norm": float(norm.mean()),
            "train/examples_per_s": self._examples / seconds,
            "train/tokens_per_s": self._tokens / seconds,
            "train/seconds": seconds,
        }
        described = describe_fn(sums)
        return row | {f"train/{name}": value for name, value in described.items()}

    def _fetch(self) -> dict[str, Any]:
        """The metrics of every update so far; waits for the devices."""
        if self._metrics:
            new = jax.device_get(self._metrics)
            old = [self._fetched] if self._fetched else []
            self._fetched = jax.tree.map(
                lambda *parts: np.concatenate(parts), *old, *new
            )
            self._metrics = []
        return self._fetched
