"""Training curves as JSON lines, for TensorBoard, and for trackers that are wanted."""

import contextlib
import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax

from tiger_jax.progress import say
from tiger_jax.training.trackers import open_trackers

METRICS_FILE = "metrics.jsonl"


class MetricWriter(contextlib.AbstractContextManager):
    """Writes scalars by step; in a multi-host run only process 0 does."""

    def __init__(self, folder: Path, *, resume_from_step: int | None = None) -> None:
        """Opens ``metrics.jsonl`` and ``tensorboard/`` in `folder`.

        Without tensorboardX, which is no part of the core, there are JSON lines only.
        Rows after `resume_from_step`, written by a run that was killed before it could
        save, are dropped: they will be written again.
        """
        self._is_open = jax.process_index() == 0
        if not self._is_open:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS_FILE
        _drop_rows_after(path, -1 if resume_from_step is None else resume_from_step)
        self._lines: IO[str] = open(path, "a", encoding="utf-8")
        is_resumed = resume_from_step is not None
        self._trackers = open_trackers(folder, is_resumed=is_resumed)
        self._events: Any = None
        if importlib.util.find_spec("tensorboardX") is None:
            say("tensorboardX is not installed: curves are in metrics.jsonl alone")
            return
        from tensorboardX import SummaryWriter

        # Makes TensorBoard forget what an earlier file says of later steps.
        purge = None if resume_from_step is None else resume_from_step + 1
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def __exit__(self, *error: Any) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one row; what is not finite becomes null in JSON."""
        if not self._is_open:
            return
        row = {k: float(v) if math.isfinite(v) else None for k, v in values.items()}
        self._lines.write(json.dumps({"step": step, **row}) + "\n")
        self._lines.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()
        finite = {name: value for name, value in row.items() if value is not None}
        for tracker in self._trackers:
            tracker.log(step, finite)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._lines.close()
            for tracker in self._trackers:
                tracker.close()
            if self._events is not None:
                self._events.close()


def _drop_rows_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # the line that the kill cut short, or one that was damaged
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(kept), encoding="utf-8")
    beside.replace(path)
