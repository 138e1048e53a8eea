"""Stage `assign_shards`: `shards/` and `rqvae/` -> Semantic IDs and token files."""

import inspect
from pathlib import Path
from typing import Any

import gin

from tiger_jax.beam.runner import RunnerConfig, require_beam
from tiger_jax.errors import InputError
from tiger_jax.semantic_ids.collisions import COLLISION_LEVEL_SIZE
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir.shards import Shards


@gin.configurable(module="stages")
def assign_shards(
    context: RunContext,
    *,
    seed: int = 0,
    rqvae: str | None = None,
    collision_level_size: int = COLLISION_LEVEL_SIZE,
    examples: Any = None,
    num_user_tokens: int | None = None,
    folders: tuple[str, ...] = ("data", "embeddings", "semantic_ids"),
    runner: RunnerConfig | None = None,
) -> None:
    """Gives every item its Semantic ID and writes the examples to train on.

    Writes `shards/semantic_ids` and `shards/tokens`, in as many files as
    `prepare_shards` wrote, and the folders that the local stages write. A run that
    was interrupted writes only the shards that are missing.

    Args:
        seed: Decides the order of training examples within their file.
        rqvae: The quantizer's folder; `rqvae/` in the work directory if None.
        examples: The `batches.SeqioConfig` that training streams by: its `max_items`
            is the most items of an example.
        num_user_tokens: By default what gin binds for `train_recommender`.
        folders: What to write for the local stages, where one machine holds it;
            ``("semantic_ids",)`` is enough for training.
    """
    require_beam()
    # Only here: Beam is slow to import, and other stages do without.
    from tiger_jax.beam.assign import assign
    from tiger_jax.beam.prepare import PreparedShards
    from tiger_jax.beam.tokens import make_tokens
    from tiger_jax.beam.workdir import write_workdir

    if examples is None:
        raise InputError("assign_shards.examples is not bound: add base/shards.gin")
    if num_user_tokens is None:
        num_user_tokens = _num_user_tokens()
    shards, runner = context.workdir / "shards", runner or RunnerConfig()
    data = PreparedShards.load(shards / "data")
    semantic_ids = assign(
        Shards.load(shards / "embedded" / "embeddings"),
        Path(rqvae) if rqvae else context.workdir / "rqvae",
        shards / "semantic_ids",
        collision_level_size=collision_level_size,
        runner=runner,
    )
    make_tokens(
        data,
        semantic_ids,
        shards / "tokens",
        num_user_tokens=num_user_tokens,
        max_items=examples.max_items,
        seed=seed,
        runner=runner,
    )
    write_workdir(context.workdir, folders)


def _num_user_tokens() -> int:
    """What `train_recommender` will be given: the experiment says it once."""
    name = "num_user_tokens"
    training = gin.get_configurable("train_recommender")
    default = inspect.signature(training).parameters[name].default
    return gin.get_bindings("train_recommender").get(name, default)
