"""Histories and Semantic IDs to a trained recommender: the folder `recommender/`."""

from pathlib import Path
from typing import Any

import gin
import jax
from jax.experimental import multihost_utils

from tiger_jax.input_pipeline.microbatches import BucketConfig
from tiger_jax.input_pipeline.packed_histories import PackedConfig
from tiger_jax.input_pipeline.resident import ResidentConfig
from tiger_jax.models.generator import GeneratorConfig, needs_content
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.recommending import training_inputs
from tiger_jax.recommending.recipe import ALL_PREFIXES, Recipe, choose_input
from tiger_jax.recommending.train_tiger import train_tiger
from tiger_jax.recommending.trained_model import CHECKPOINTS, load_recommender
from tiger_jax.recommending.validation import ValidationConfig
from tiger_jax.stages.context import RunContext
from tiger_jax.training import partitioning
from tiger_jax.training.loop import LoopConfig, may_grow
from tiger_jax.training.optimizers import OptimizerConfig
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.provenance import code_version


@gin.configurable(module="stages")
def train_recommender(
    context: RunContext,
    *,
    seed: int = 0,
    model: GeneratorConfig | None = None,
    num_user_tokens: int = 2000,
    codeword_embeddings: bool = False,
    starts_from: str | None = None,
    training_pairs: str = ALL_PREFIXES,
    average_decay: float = 0.0,
    epochs: float | None = None,
    min_steps: int = 0,
    optimizer: OptimizerConfig | None = None,
    loop: LoopConfig | None = None,
    validation: ValidationConfig | None = None,
    mesh: partitioning.MeshConfig | None = None,
    input: str = "resident",
    resident: ResidentConfig | PackedConfig | None = None,
    seqio: Any = None,
    buckets: BucketConfig | None = None,
) -> None:
    """Trains the Transformer and keeps what was best on validation.

    Args:
        seed: Decides parameters, dropout, the order of examples, and the sample of
            validation users.
        num_user_tokens: Tokens that users are hashed to; 0 trains without.
        codeword_embeddings: Start the codewords' token embeddings from the
            quantizer's codebooks, so that close codewords start close.
        starts_from: A finished `recommender/` on the same Semantic IDs, whose best
            parameters are where training starts; steps, schedule and optimizer
            start anew.
        training_pairs: ``prefixes`` takes every prefix of a history with the item
            after it; ``last`` the longest alone (resident input only).
        average_decay: Of the running average of the parameters, which is what is
            evaluated and kept (.998, say); 0 keeps the parameters themselves.
        epochs: Passes over the data in place of `LoopConfig.total_steps`, with six
            evaluations on the way; warm-up takes at most a fifth of them.
        min_steps: Updates that a run by epochs makes at least, on little data.
        mesh: How devices share the work; does not affect the result beyond the
            order of float additions, so a run may resume on another.
        input: ``resident`` keeps all histories on the devices and gathers examples
            inside the step; ``seqio`` streams a task of any size. A task over token
            files in shards (``tiger_shards``) is validated on some of these too, so
            that `data/` is not needed.
        resident: For the resident input; a `packed_histories.PackedConfig` trains
            a generator that predicts at every position on whole histories.
        seqio: For the stream: a `batches.SeqioConfig` with the task's name.
        buckets: For the stream: how its batches are cut.

    Raises:
        DivergedError: The loss was not finite or rose far above its start.
        Preempted: Stopped by SIGTERM, after saving.
    """
    recipe = Recipe(
        seed=seed,
        model=model or TigerConfig(),
        num_user_tokens=num_user_tokens,
        codeword_embeddings=codeword_embeddings,
        starts_from=Path(starts_from).absolute() if starts_from else None,
        training_pairs=training_pairs,
        average_decay=average_decay,
        epochs=epochs,
        min_steps=min_steps,
        optimizer=optimizer or OptimizerConfig(),
        loop=loop or LoopConfig(),
        validation=validation or ValidationConfig(),
        input=choose_input(input, resident, seqio, buckets),
    )
    partitioner = partitioning.Partitioner(mesh)
    partitioning.check_hosts_agree(code_version() + gin.config_str(), "config or code")
    with training_inputs.tasks_read(context.workdir):
        shards = training_inputs.find_token_shards(recipe.input)
        # Of several processes, only the first touches the folder.
        run = None
        if jax.process_index() == 0:
            run = _begin(context.workdir, recipe, shards)
        is_current = float(run is not None and run.is_current)
        if partitioning.from_process_0({"is_current": is_current})["is_current"]:
            return
        inputs = training_inputs.open_inputs(context.workdir, recipe, shards)
        folder = context.workdir / "recommender.partial"
        card, summary = train_tiger(recipe, inputs, folder, partitioner)
    if run is not None:
        card.save(folder)
    multihost_utils.sync_global_devices("model.json is written")
    *_, params = load_recommender(folder, sharding=partitioner.replicated)
    multihost_utils.sync_global_devices("all have read it")  # it is moved now
    if run is not None:
        # The best parameters name the folder's content.
        run.commit(contents={"params": jax.device_get(params)}, summary=summary)
    multihost_utils.sync_global_devices("recommender/ is in place")


def _read_besides(workdir: Path, recipe: Recipe) -> list[str]:
    """Folders that only some recipes read."""
    names = ["rqvae"] * recipe.codeword_embeddings
    if needs_content(recipe.model):
        ids = artifacts.load_manifest(workdir / "semantic_ids", verify=False)
        names += ["embeddings", *["rqvae"] * ("rqvae" in ids.inputs)]
    return names


def _begin(workdir: Path, recipe: Recipe, shards: Any) -> artifacts.StageRun:
    external, inputs = {}, ["data", "semantic_ids"]
    if shards is not None:
        external, inputs = {"tokens": shards.content_hash}, ["semantic_ids"]
    if recipe.starts_from is not None:
        start = artifacts.load_manifest(recipe.starts_from)
        external["starts_from"] = start.content_hash
    return artifacts.begin(
        workdir,
        "recommender",
        stage="train_recommender",
        inputs=list(dict.fromkeys([*inputs, *_read_besides(workdir, recipe)])),
        config=recipe.decides(),
        external=external,
        resumable=True,
        may_grow=may_grow(recipe.optimizer),
        opaque=(CHECKPOINTS, "tensorboard", "profile"),
    )
