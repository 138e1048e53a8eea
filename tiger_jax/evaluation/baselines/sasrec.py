"""Baseline: a trained SASRec or BSARec; what rebuilds it from the folder `sasrec/`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float32

from tiger_jax.config import config
from tiger_jax.errors import InputError
from tiger_jax.evaluation.baselines.baseline import Baseline
from tiger_jax.evaluation.recommend_fn import ScoredCatalogue, Shown, Users
from tiger_jax.models import sasrec
from tiger_jax.models.bsarec import BsaRecConfig
from tiger_jax.models.sasrec import Params, SasRecConfig
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.reading import reading

if TYPE_CHECKING:
    from tiger_jax.data.prepared import PreparedData

MODEL_FILE = "model.json"
CHECKPOINTS = "checkpoints"
MAX_USERS = 256  # scored at a time
_KINDS = {kind.title: kind for kind in (SasRecConfig, BsaRecConfig)}


@dataclasses.dataclass(frozen=True)
class SasRecCard:
    """Everything that rebuilds the model; the fields of ``model.json``."""

    config: SasRecConfig
    num_items: int
    best_step: int
    best_metrics: dict[str, float]

    def save(self, folder: Path) -> None:
        """Writes ``model.json``."""
        kind = {"kind": self.config.title}
        write_json(folder / MODEL_FILE, kind | dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "SasRecCard":
        """Reads ``model.json``; InputError if it isn't what `save` wrote."""
        path = folder / MODEL_FILE
        with reading(path):
            value = read_json(path)
            # Earlier versions knew SASRec alone and named no kind.
            kind = _KINDS[value.get("kind", SasRecConfig.title)]
            return cls(
                config=kind(**value["config"]),
                num_items=int(value["num_items"]),
                best_step=int(value["best_step"]),
                best_metrics=dict(value["best_metrics"]),
            )


def load_sasrec_params(
    folder: Path, *, sharding: jax.sharding.Sharding | None = None
) -> tuple[SasRecCard, Params]:
    """The parameters that were best on validation; InputError if they can't be read."""
    # Only here: whoever reads the name of a baseline needs no orbax.
    from tiger_jax.training.checkpoints import STEP_PREFIX, restore_params_of

    card = SasRecCard.load(folder)
    model = card.config.build(card.num_items)
    best = folder / CHECKPOINTS / f"{STEP_PREFIX}_{card.best_step}"
    params = restore_params_of(
        best, lambda key: sasrec.init_params(model, key), sharding
    )
    return card, params


@config("sasrec_baseline")
class TrainedSasRec(Baseline):
    """SASRec or BSARec with a full softmax, as `train_sasrec` left it."""

    name, title = "sasrec", "SASRec, full softmax"
    inputs = ("sasrec",)

    def title_in(self, workdir: Path) -> str:
        """Says which of the two was trained there."""
        return f"{SasRecCard.load(workdir / 'sasrec').config.title}, full softmax"

    def build(self, data: "PreparedData", workdir: Path) -> ScoredCatalogue:
        """Loads the best parameters; InputError if they are of another catalogue."""
        card, params = load_sasrec_params(workdir / "sasrec")
        if card.num_items != data.num_items:
            raise InputError(
                f"{workdir / 'sasrec'} scores {card.num_items:,} items, and the data "
                f"has {data.num_items:,}: run --stage=train_sasrec again"
            )
        return make_recommend_fn(card.config.build(card.num_items), params)


def make_recommend_fn(model: nn.Module, params: Params) -> ScoredCatalogue:
    """Wraps a model and its parameters; compiled once per history width."""
    score_fn = jax.jit(sasrec.make_score_fn(model))

    def score(user_numbers: Users, histories: Shown) -> Float32[np.ndarray, "B N"]:
        del user_numbers
        parts = []
        for at in range(0, len(histories), MAX_USERS):
            part = histories[at : at + MAX_USERS]
            # One shape per width: the rows that fill the last part up are dropped.
            filled = np.pad(part, ((0, MAX_USERS - len(part)), (0, 0)), mode="edge")
            parts.append(np.asarray(score_fn(params, filled))[: len(part)])
        return np.concatenate(parts)

    return ScoredCatalogue(score, model.num_items, model.config.max_length)
