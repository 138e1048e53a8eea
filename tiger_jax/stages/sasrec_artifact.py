"""The folder `sasrec/`: what rebuilds the trained baseline, and reading it back."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, Int32

from tiger_jax.errors import InputError
from tiger_jax.evaluation.recommend_fn import RecommendFn, from_scores, last_items
from tiger_jax.models.sasrec import (
    Params,
    SasRec,
    SasRecConfig,
    init_params,
    make_score_fn,
)
from tiger_jax.training.checkpoints import STEP_PREFIX, restore_params_of
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.reading import reading

MODEL_FILE = "model.json"
CHECKPOINTS = "checkpoints"
MOST_USERS = 256  # scored at a time


@dataclasses.dataclass(frozen=True)
class SasRecCard:
    """Everything that rebuilds the model; the fields of ``model.json``.

    Attributes:
        config: The Transformer's sizes.
        num_items: Size of the catalogue that it scores.
        best_step: The step whose checkpoint is the best on validation.
        best_metrics: The validation metrics at that step.
    """

    config: SasRecConfig
    num_items: int
    best_step: int
    best_metrics: dict[str, float]

    def save(self, folder: Path) -> None:
        """Writes ``model.json``."""
        write_json(folder / MODEL_FILE, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "SasRecCard":
        """Reads ``model.json``.

        Raises:
            InputError: The file is missing or isn't what `save` wrote.
        """
        path = folder / MODEL_FILE
        with reading(path):
            value = read_json(path)
            return cls(
                config=SasRecConfig(**value["config"]),
                num_items=int(value["num_items"]),
                best_step=int(value["best_step"]),
                best_metrics=dict(value["best_metrics"]),
            )


def load_sasrec_params(
    folder: Path, *, sharding: jax.sharding.Sharding | None = None
) -> tuple[SasRecCard, Params]:
    """Loads the parameters that were best on validation.

    Raises:
        InputError: The folder is incomplete, or its checkpoint doesn't fit its model.
    """
    card = SasRecCard.load(folder)
    model = SasRec(card.config, card.num_items)
    best = folder / CHECKPOINTS / f"{STEP_PREFIX}_{card.best_step}"
    params = restore_params_of(best, lambda key: init_params(model, key), sharding)
    return card, params


def load_sasrec(workdir: Path, num_items: int) -> tuple[RecommendFn, int]:
    """Loads the baseline of a work directory.

    Returns:
        The recommender, and how many items of a history it reads.

    Raises:
        InputError: It can't be read, or was trained on another catalogue.
    """
    card, params = load_sasrec_params(workdir / "sasrec")
    if card.num_items != num_items:
        raise InputError(
            f"{workdir / 'sasrec'} scores {card.num_items:,} items, and the data has "
            f"{num_items:,}: run --stage=train_sasrec again"
        )
    score = make_numpy_score_fn(SasRec(card.config, num_items), params)
    return from_scores(score, num_items), card.config.max_length


def make_numpy_score_fn(
    model: SasRec, params: Params
) -> Callable[
    [Int32[np.ndarray, " B"], Int32[np.ndarray, "B I"]], Float32[np.ndarray, "B N"]
]:
    """Makes the form that `from_scores` takes; compiled once a history width.

    Histories longer than the model reads are cut to their last items.
    """
    score_fn = jax.jit(make_score_fn(model))
    longest = model.config.max_length

    def score(
        user_numbers: Int32[np.ndarray, " B"], histories: Int32[np.ndarray, "B I"]
    ) -> Float32[np.ndarray, "B N"]:
        del user_numbers
        items = last_items(histories, longest)
        parts = []
        for at in range(0, len(items), MOST_USERS):
            part = items[at : at + MOST_USERS]
            # One shape a width: the rows that fill the last part up are dropped.
            filled = np.pad(part, ((0, MOST_USERS - len(part)), (0, 0)), mode="edge")
            parts.append(np.asarray(score_fn(params, filled))[: len(part)])
        return np.concatenate(parts)

    return score
