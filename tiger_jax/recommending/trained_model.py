"""The folder `recommender/`: what rebuilds a trained model, and reading it back."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float32

from tiger_jax.data.item_vectors import (
    load_collaborative,
    load_embeddings,
    make_content,
)
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.extensions import config_of, settings_of
from tiger_jax.models.generator import (
    GeneratorConfig,
    Params,
    build_model,
    init_params,
)
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.recommending.searcher import DenseWeights
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.training.checkpoints import STEP_PREFIX, restore_params_of
from tiger_jax.training.train_state import AVERAGE
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.reading import reading

MODEL_FILE = "model.json"
CHECKPOINTS = "checkpoints"
# Among the validation metrics: what the dense head was best with.
DENSE_WEIGHT, POPULARITY_WEIGHT = "dense_weight", "popularity_weight"


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """Everything that rebuilds the model; the fields of ``model.json``.

    Attributes:
        config: The sizes of the model and its loss.
        layout: Token numbers.
        max_items: Items of a history that the encoder was trained to see.
        best_step: The step whose checkpoint is the best on validation.
        best_metrics: The validation metrics at that step.
        semantic_ids: Content hash of the Semantic ID table it was trained on.
        content_shape: Items, and dimensions of the content vectors that the model
            takes; zeros if it takes none.
        is_averaged: Whether the parameters are a checkpoint's running average.
    """

    config: GeneratorConfig
    layout: TokenLayout
    max_items: int
    best_step: int
    best_metrics: dict[str, float]
    semantic_ids: str
    content_shape: tuple[int, int] = (0, 0)
    is_averaged: bool = False

    @property
    def dense_weights(self) -> DenseWeights:
        """How log p(item) counts beside log p(codes); chosen on validation."""
        names = (DENSE_WEIGHT, POPULARITY_WEIGHT)
        return DenseWeights(*(float(self.best_metrics.get(n, 0.0)) for n in names))

    @property
    def checkpoint(self) -> str:
        """The best checkpoint, relative to the folder."""
        return f"{CHECKPOINTS}/{STEP_PREFIX}_{self.best_step}"

    def save(self, folder: Path) -> None:
        """Writes ``model.json``."""
        write_json(
            folder / MODEL_FILE,
            {
                "config": settings_of(self.config, TigerConfig),
                "layout": self.layout.to_json(),
                "max_items": self.max_items,
                "checkpoint": self.checkpoint,
                "best_step": self.best_step,
                "best_metrics": self.best_metrics,
                "semantic_ids": self.semantic_ids,
                "content_shape": self.content_shape,
                "is_averaged": self.is_averaged,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> "ModelCard":
        """Reads ``model.json``.

        Raises:
            InputError: The file is missing or isn't what `save` wrote.
        """
        path = Path(folder) / MODEL_FILE
        with reading(path):
            value: dict[str, Any] = read_json(path)
            return cls(
                config=config_of(value["config"], TigerConfig, path),
                layout=TokenLayout.from_json(value["layout"]),
                max_items=int(value["max_items"]),
                best_step=int(value["best_step"]),
                best_metrics=dict(value["best_metrics"]),
                semantic_ids=value["semantic_ids"],
                content_shape=content_shape_of(value),
                is_averaged=bool(value.get("is_averaged", False)),
            )


def content_shape_of(facts: Mapping[str, Any]) -> tuple[int, int]:
    """What a model was built with; earlier versions wrote the dimensions alone."""
    num_items, dims = facts.get("content_shape", (0, facts.get("content_dims", 0)))
    return int(num_items), int(dims)


def load_recommender(
    folder: Path,
    *,
    sharding: jax.sharding.Sharding | None = None,
    step: int | None = None,
) -> tuple[GeneratorConfig, TokenLayout, nn.Module, Params]:
    """Loads the model with the parameters that were best on validation.

    Args:
        folder: A finished `recommender/`; `ModelCard.load` gives the rest of its
            facts, such as `max_items`.
        sharding: Where the parameters go; the first local device by default.
        step: Another checkpoint that was kept, instead of the best.

    Raises:
        InputError: The folder is incomplete, or its checkpoint doesn't fit its model.
    """
    card = ModelCard.load(folder)
    if step is not None:
        card = dataclasses.replace(card, best_step=step)
    model = build_model(card.config, card.layout, card.content_shape)
    params = _restore_best(Path(folder), card, model, sharding)
    return card.config, card.layout, model, params


def load_start(
    folder: Path,
    model: nn.Module,
    table: SemanticIdTable,
    *,
    sharding: jax.sharding.Sharding | None = None,
) -> Params:
    """Loads a finished recommender's best parameters for another one to start from.

    Args:
        folder: A finished `recommender/`, of this work directory or another one.
        model: What is to be trained; dropout and losses may differ from that one's.
        table: The Semantic IDs that it is to be trained on.
        sharding: Where the parameters go; the first local device by default.

    Raises:
        InputError: The folder is incomplete, was trained on other Semantic IDs or
            token numbers, or its parameters have other shapes.
    """
    card = ModelCard.load(folder)
    if card.semantic_ids != table.content_hash or card.layout != model.layout:
        raise InputError(
            f"train_recommender.starts_from: {folder} was trained on the Semantic IDs "
            f"{card.semantic_ids[:12]} with {card.layout.num_user_tokens} user tokens, "
            f"here they are {table.content_hash[:12]} with "
            f"{model.layout.num_user_tokens}: its tokens mean something else"
        )
    return _restore_best(Path(folder), card, model, sharding)


def _restore_best(
    folder: Path,
    card: ModelCard,
    model: nn.Module,
    sharding: jax.sharding.Sharding | None,
) -> Params:
    return restore_params_of(
        folder / card.checkpoint,
        lambda key: init_params(model, key),
        sharding,
        part=AVERAGE if card.is_averaged else ("target",),
    )


def load_content(workdir: Path, num_items: int) -> Float32[np.ndarray, "N E"]:
    """The items' content vectors: what their codes were made of.

    Raises:
        InputError: There are no embeddings, or not one per item.
    """
    text = load_embeddings(workdir / "embeddings", num_items)
    ids = artifacts.load_manifest(workdir / "semantic_ids", verify=False)
    is_quantized = "rqvae" in ids.inputs
    return make_content(
        text, load_collaborative(workdir / "rqvae") if is_quantized else None
    )


def load_card_and_table(
    workdir: Path, data: PreparedData
) -> tuple[ModelCard, SemanticIdTable]:
    """Reads the model's card and the Semantic IDs, which must be the data's items'.

    Raises:
        InputError: One can't be read, the recommender was trained on other Semantic
            IDs, or those are not of the data's items.
    """
    folder = workdir / "recommender"
    card, table = ModelCard.load(folder), load_table(workdir, data)
    if card.semantic_ids != table.content_hash:
        raise InputError(
            f"{folder} was trained on the Semantic IDs {card.semantic_ids[:12]}, but "
            f"{workdir / 'semantic_ids'} holds {table.content_hash[:12]}: run "
            "--stage=train_recommender again, or put those Semantic IDs back"
        )
    return card, table


def load_table(workdir: Path, data: PreparedData) -> SemanticIdTable:
    """Reads the Semantic IDs, which must be the data's items'.

    Raises:
        InputError: They can't be read, or are not of the data's items.
    """
    table = SemanticIdTable.load(workdir / "semantic_ids")
    if table.item_ids != data.item_ids:
        raise InputError(
            f"{workdir}: semantic_ids/ and data/ don't hold the same items in the same "
            "order: run --stage=assign_semantic_ids again"
        )
    return table
