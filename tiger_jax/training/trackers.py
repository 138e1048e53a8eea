"""Experiment trackers beside the curves on disk: Weights & Biases, and MLflow.

The variable TIGER_TRACKERS names those that are wanted, as in ``wandb,mlflow``: no
config, since where curves are shown decides nothing about a run. Project, address and
offline mode are their own variables (WANDB_PROJECT, WANDB_MODE=offline,
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME). A run that is resumed goes on in the same
entry.
"""

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gin

from tiger_jax.errors import InputError

VARIABLE = "TIGER_TRACKERS"
_IDS = Path("tensorboard", "trackers.json")  # no part of what the folder is named by


@runtime_checkable
class Tracker(Protocol):
    """What a training tells of itself.

    Attributes:
        run_id: By which the tracker finds the entry again.
    """

    run_id: str

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class _WeightsAndBiases:
    def __init__(self, wandb: Any, name: str, run_id: str | None) -> None:
        settings = {"gin": gin.config_str()}
        more = {"id": run_id, "resume": "allow"} if run_id else {}
        self._run = wandb.init(name=name, config=settings, **more)
        self.run_id: str = self._run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _MlFlow:
    def __init__(self, mlflow: Any, name: str, run_id: str | None) -> None:
        self._mlflow = mlflow
        run = mlflow.start_run(run_id=run_id, run_name=None if run_id else name)
        self.run_id: str = run.info.run_id
        if run_id is None:
            mlflow.log_text(gin.config_str(), "config.gin")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # It takes no @ in a name.
        named = {name.replace("@", "_at_"): value for name, value in values.items()}
        self._mlflow.log_metrics(named, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


_KNOWN: dict[str, Any] = {"wandb": _WeightsAndBiases, "mlflow": _MlFlow}


def open_trackers(folder: Path, *, is_resumed: bool) -> list[Tracker]:
    """Opens what TIGER_TRACKERS names, for the training that writes in `folder`.

    Raises:
        InputError: A name is unknown, or its package is not installed.
    """
    names = [name for name in os.environ.get(VARIABLE, "").split(",") if name]
    for name in names:
        if name not in _KNOWN:
            known = ", ".join(_KNOWN)
            raise InputError(f"{VARIABLE} names {name!r}: choose from {known}")
    path = folder / _IDS
    ids = json.loads(path.read_text()) if is_resumed and path.is_file() else {}
    title = f"{folder.parent.name}/{folder.name.removesuffix('.partial')}"
    opened: list[Tracker] = []
    for name in names:
        try:
            package = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{VARIABLE} names {name}, which is not installed: pip install {name}"
            ) from error
        opened.append(_KNOWN[name](package, title, ids.get(name)))
        ids[name] = opened[-1].run_id
    if names:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(ids))
    return opened
