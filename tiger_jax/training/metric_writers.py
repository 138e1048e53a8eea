"""Training curves as JSON lines, and as TensorBoard event files."""

import contextlib
import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax

from tiger_jax.progress import say

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

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._lines.close()
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
