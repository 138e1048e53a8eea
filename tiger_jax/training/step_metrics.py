"""What happened in training since the last row of metrics."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


class StepMetrics:
    """Collects the metrics of consecutive updates, left on the devices until asked.

    Attributes:
        flops: Floating-point operations of the updates, where they are counted.
    """

    def __init__(self, first_step: int) -> None:
        """Starts before update `first_step` (the number of updates made so far)."""
        self._first_step = first_step
        self._metrics: list[dict[str, jax.Array]] = []
        self._fetched: dict[str, np.ndarray] = {}
        self._examples = self._tokens = 0
        self._started = time.monotonic()
        self.flops = 0.0

    def add(
        self, updates: list[Any], metrics: Any, bucket_flops: list[float] | None
    ) -> None:
        """Adds one dispatch: its updates and the metrics [U] it returned."""
        for update in updates:
            self._examples += update.num_examples
            self._tokens += update.num_tokens
            if bucket_flops:
                self.flops += sum(bucket_flops[b] for b in update.buckets)
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

    def summarise(self) -> dict[str, float]:
        """One row: means over the updates, and rates by the clock."""
        values = self._fetch()
        seconds = max(time.monotonic() - self._started, 1e-9)
        weight = max(float(values["weight"].sum()), 1e-9)
        row = {
            "train/loss": float((values["loss"] * values["weight"]).sum()) / weight,
            "train/gradient_norm": float(values["gradient_norm"].mean()),
            "train/examples_per_s": self._examples / seconds,
            "train/tokens_per_s": self._tokens / seconds,
            "train/seconds": seconds,
        }
        for name in sorted(values.keys() - {"loss", "weight", "gradient_norm"}):
            row[f"train/{name}"] = float(values[name].sum()) / weight
        return row

    def _fetch(self) -> dict[str, np.ndarray]:
        """The metrics of every update so far; waits for the devices."""
        if self._metrics:
            new = jax.device_get(self._metrics)
            old = [self._fetched] if self._fetched else []
            self._fetched = {
                name: np.concatenate([part[name] for part in (*old, *new)])
                for name in new[0]
            }
            self._metrics = []
        return self._fetched
