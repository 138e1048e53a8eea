"""Training a recommender by its recipe; what the stage `train_recommender` calls."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from tiger_jax.models.generator import (
    Params,
    build_model,
    init_params,
    make_loss_fn,
)
from tiger_jax.progress import say
from tiger_jax.recommending.codeword_embeddings import init_token_embeddings
from tiger_jax.recommending.recipe import Recipe
from tiger_jax.recommending.trained_model import ModelCard, load_start
from tiger_jax.recommending.training_inputs import TrainingInputs
from tiger_jax.recommending.validation import make_evaluate_fn
from tiger_jax.training.loop import train
from tiger_jax.training.optimizers import make_optimizer
from tiger_jax.training.partitioning import Partitioner
from tiger_jax.training.train_state import averaging
from tiger_jax.training.train_step import StepParts


def train_tiger(
    recipe: Recipe, inputs: TrainingInputs, folder: Path, partitioner: Partitioner
) -> tuple[ModelCard, dict[str, Any]]:
    """Trains in `folder`, from its newest checkpoint if there is one.

    Returns:
        The card of the best model, and a few facts about the training.
    """
    recipe = recipe.for_examples(inputs.num_examples)
    table, num_pairs = inputs.table, inputs.num_pairs
    tiger = build_model(recipe.model, inputs.layout, inputs.content_shape)
    batch_size = recipe.input[0].batch_size
    evaluate_fn = make_evaluate_fn(
        tiger,
        table,
        inputs.sample,
        recipe.validation,
        partitioner,
        inputs.content,
        inputs.occurrences,
    )

    def load_first(params: Params) -> Params:
        assert recipe.starts_from is not None
        say(f"starts from the best parameters in {recipe.starts_from}")
        return load_start(
            recipe.starts_from, tiger, table, sharding=partitioner.replicated
        )

    num_examples = inputs.num_examples
    say(
        f"{num_pairs:,} training pairs in {num_examples:,} examples, {batch_size} per "
        f"update, {num_examples / batch_size:,.0f} updates per epoch; "
        f"{_describe(partitioner)}"
    )
    parts = step_parts(recipe, tiger, inputs.examples, inputs.codebooks)
    result = train(
        **parts._asdict(),
        evaluate_fn=evaluate_fn,
        partitioner=partitioner,
        config=recipe.loop,
        folder=folder,
        seed=recipe.seed,
        on_start=None if recipe.starts_from is None else load_first,
    )
    card = ModelCard(
        config=recipe.model,
        layout=inputs.layout,
        max_items=recipe.max_items,
        best_step=result.best_step,
        best_metrics=result.best_metrics,
        semantic_ids=table.content_hash,
        content_shape=inputs.content_shape,
        is_averaged=recipe.average_decay > 0,
    )
    return card, {"training_pairs": num_pairs, **result.report()}


def step_parts(
    recipe: Recipe,
    tiger: nn.Module,
    examples: Any,
    codebooks: Sequence[jax.Array] | None = None,
) -> StepParts:
    """What is compiled of a recommender's training."""
    return StepParts(
        loss_fn=make_loss_fn(tiger),
        init_fn=_make_init_fn(tiger, codebooks),
        optimizer=make_optimizer(recipe.optimizer, recipe.loop.total_steps),
        input=examples,
        **(averaging(recipe.average_decay) if recipe.average_decay else {}),
    )


def _make_init_fn(
    tiger: nn.Module, codebooks: Sequence[jax.Array] | None
) -> Callable[[jax.Array], Params]:
    def init_fn(key: jax.Array) -> Params:
        params = init_params(tiger, key)
        if codebooks is None:
            return params
        config, key = tiger.config, jax.random.fold_in(key, 1)
        stds = {"token_embeddings": config.embedding_std}
        if (head_std := getattr(config, "head_std", None)) is not None:
            stds["output_head"] = head_std
        return init_token_embeddings(params, codebooks, key, stds)

    return init_fn


def _describe(partitioner: Partitioner) -> str:
    shape = partitioner.mesh.shape
    kind = partitioner.mesh.devices.flat[0].device_kind
    return f"mesh {shape['data']} data × {shape['model']} model ({kind})"
