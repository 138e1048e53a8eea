"""Histories and Semantic IDs to a trained recommender: the folder `recommender/`."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.microbatches import BucketConfig
from tiger_jax.input_pipeline.resident import ResidentConfig
from tiger_jax.models.codeword_embeddings import init_token_embeddings
from tiger_jax.models.tiger import (
    Params,
    Tiger,
    TigerConfig,
    init_params,
    make_loss_fn,
)
from tiger_jax.progress import say
from tiger_jax.quantizers.rqvae_quantizer import load_quantizer
from tiger_jax.recommending.trained_model import (
    CHECKPOINTS,
    ModelCard,
    load_recommender,
    load_start,
)
from tiger_jax.recommending.training_inputs import (
    TrainingInputs,
    find_token_shards,
    open_histories,
    open_token_shards,
)
from tiger_jax.recommending.validation import ValidationConfig, make_evaluate_fn
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stages.context import RunContext
from tiger_jax.training.loop import LoopConfig, decides, train
from tiger_jax.training.optimizers import OptimizerConfig, make_optimizer
from tiger_jax.training.partitioning import MeshConfig, Partitioner, check_hosts_agree
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.provenance import code_version

# Where the tasks of `tasks.tiger` look for a work directory.
_TASKS_WORKDIR = "TIGER_WORKDIR"
ALL_PREFIXES, LAST_ALONE = "prefixes", "last"  # which pairs are trained on


@gin.configurable(module="stages")
def train_recommender(
    context: RunContext,
    *,
    seed: int = 0,
    model: TigerConfig | None = None,
    num_user_tokens: int = 2000,
    codeword_embeddings: bool = False,
    starts_from: str | None = None,
    training_pairs: str = ALL_PREFIXES,
    optimizer: OptimizerConfig | None = None,
    loop: LoopConfig | None = None,
    validation: ValidationConfig | None = None,
    mesh: MeshConfig | None = None,
    input: str = "resident",
    resident: ResidentConfig | None = None,
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
        mesh: How devices share the work; of no consequence for the result beyond
            the order of float additions, so a run may resume on another.
        input: ``resident`` keeps all histories on the devices and gathers examples
            inside the step; ``seqio`` streams a task of any size. A task over token
            files in shards (``tiger_shards``) is validated on some of these too, so
            that `data/` is not needed.
        resident: For the resident input.
        seqio: For the stream: a `batches.SeqioConfig` with the task's name.
        buckets: For the stream: how its batches are cut.

    Raises:
        InputError: An input is missing, or a config doesn't fit another.
        DivergedError: The loss was not finite or rose far above its start.
        Preempted: Stopped by SIGTERM, after saving.
    """
    recipe = _Recipe(
        seed=seed,
        model=model or TigerConfig(),
        num_user_tokens=num_user_tokens,
        codeword_embeddings=codeword_embeddings,
        starts_from=Path(starts_from).absolute() if starts_from else None,
        training_pairs=training_pairs,
        optimizer=optimizer or OptimizerConfig(),
        loop=loop or LoopConfig(),
        validation=validation or ValidationConfig(),
        input=_choose_input(input, resident, seqio, buckets),
    )
    partitioner = Partitioner(mesh)
    check_hosts_agree(code_version() + gin.config_str(), "config or code")
    with _tasks_read(context.workdir):
        token_shards = find_token_shards(recipe.input)
        run = _begin(context.workdir, recipe, token_shards)
        if run.is_current:
            return
        inputs = _open_inputs(context.workdir, recipe, token_shards)
        _train(run, context.workdir, recipe, inputs, partitioner)


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """All configs that decide what is trained.

    Attributes:
        input: The input's configs; the first has its batch size and `max_items`.
    """

    seed: int
    model: TigerConfig
    num_user_tokens: int
    codeword_embeddings: bool
    starts_from: Path | None
    training_pairs: str
    optimizer: OptimizerConfig
    loop: LoopConfig
    validation: ValidationConfig
    input: tuple[Any, ...]

    def __post_init__(self) -> None:
        is_resident = isinstance(self.input[0], ResidentConfig)
        if self.training_pairs not in (ALL_PREFIXES, LAST_ALONE):
            raise InputError(
                f"train_recommender.training_pairs {self.training_pairs!r}: choose "
                f"{ALL_PREFIXES!r} or {LAST_ALONE!r}"
            )
        if self.training_pairs != ALL_PREFIXES and not is_resident:
            raise InputError(
                "train_recommender.training_pairs is for the resident input: a seqio "
                "task makes its pairs itself"
            )

    def decides(self) -> dict[str, Any]:
        """What a finished folder must agree with to be up to date.

        Where the start lies is of no consequence: `_begin` adds its hash.
        """
        settings = {**vars(self), "loop": decides(self.loop)}
        del settings["starts_from"]
        if self.training_pairs == ALL_PREFIXES:
            del settings["training_pairs"]  # as it was before there was a choice
        return settings


def _open_inputs(workdir: Path, recipe: _Recipe, token_shards: Any) -> TrainingInputs:
    sizes = {
        "num_user_tokens": recipe.num_user_tokens,
        "num_validation_users": recipe.validation.num_users,
        "seed": recipe.seed,
    }
    if token_shards is not None:
        return open_token_shards(token_shards, workdir, recipe.input, **sizes)
    only_last = recipe.training_pairs == LAST_ALONE
    return open_histories(workdir, recipe.input, only_last=only_last, **sizes)


def _train(
    run: Any,
    workdir: Path,
    recipe: _Recipe,
    inputs: TrainingInputs,
    partitioner: Partitioner,
) -> None:
    """Trains in `run.folder` and commits it."""
    table, num_pairs = inputs.table, inputs.num_pairs
    tiger = Tiger(recipe.model, inputs.layout)
    max_items, batch_size = recipe.input[0].max_items, recipe.input[0].batch_size
    evaluate_fn = make_evaluate_fn(
        tiger, table, inputs.sample, recipe.validation, partitioner
    )
    start = None
    if recipe.starts_from is not None:
        start = load_start(
            recipe.starts_from, tiger, table, sharding=partitioner.replicated
        )
        say(f"starts from the best parameters in {recipe.starts_from}")
    say(
        f"{num_pairs:,} training pairs, {batch_size} an update, "
        f"{num_pairs / batch_size:,.0f} updates an epoch; {_describe(partitioner)}"
    )
    result = train(
        loss_fn=make_loss_fn(tiger),
        init_fn=_make_init_fn(recipe, workdir, tiger, table),
        optimizer=make_optimizer(recipe.optimizer, recipe.loop.total_steps),
        input=inputs.examples,
        evaluate_fn=evaluate_fn,
        partitioner=partitioner,
        config=recipe.loop,
        folder=run.folder,
        seed=recipe.seed,
        initial_params=start,
    )
    if result.stopped:
        say(f"stopped after step {result.step:,}: {result.stopped}")
    say(
        f"best at step {result.best_step:,}: "
        + ", ".join(f"{n} {v:.4f}" for n, v in result.best_metrics.items())
    )
    card = ModelCard(
        config=recipe.model,
        layout=inputs.layout,
        max_items=max_items,
        best_step=result.best_step,
        best_metrics=result.best_metrics,
        semantic_ids=table.content_hash,
    )
    summary = {
        "parameters": int(sum(x.size for x in jax.tree.leaves(result.state.params))),
        "training_pairs": num_pairs,
        "steps": result.step,
        "stopped": result.stopped,
        "seconds": round(result.seconds, 1),
        "best_step": result.best_step,
        "best": result.best_metrics,
    }
    _commit(run, card, summary, partitioner)


def _make_init_fn(
    recipe: _Recipe, workdir: Path, tiger: Tiger, table: SemanticIdTable
) -> Callable[[jax.Array], Params]:
    if not recipe.codeword_embeddings:
        return lambda key: init_params(tiger, key)
    arrays = load_quantizer(workdir / "rqvae").to_arrays()
    by_level = {name.rpartition(".")[2]: array for name, array in arrays.items()}
    names = [f"codebook_{level}" for level in range(table.num_levels)]
    codebooks = [jnp.asarray(by_level[name]) for name in names if name in by_level]
    sizes = tuple(len(codebook) for codebook in codebooks)
    if sizes != table.codebook_sizes[:-1]:
        raise InputError(
            f"train_recommender.codeword_embeddings: the quantizer in "
            f"{workdir / 'rqvae'} has codebooks of {sizes} codewords, and the Semantic "
            f"IDs need {table.codebook_sizes[:-1]}: turn it off for this quantizer"
        )

    def init_fn(key: jax.Array) -> Params:
        params = init_params(tiger, key)
        return init_token_embeddings(params, codebooks, jax.random.fold_in(key, 1))

    return init_fn


def _choose_input(
    input: str,
    resident: ResidentConfig | None,
    seqio: Any,
    buckets: BucketConfig | None,
) -> tuple[Any, ...]:
    """The configs of the input that was chosen."""
    if input == "resident":
        return (resident or ResidentConfig(),)
    if input == "seqio" and seqio is not None:
        return (seqio, buckets or BucketConfig())
    raise InputError(
        f"train_recommender.input {input!r}: choose 'resident', or 'seqio' with "
        "train_recommender.seqio = @batches.SeqioConfig() (base/seqio_input.gin)"
    )


@contextlib.contextmanager
def _tasks_read(workdir: Path) -> Iterator[None]:
    """Lets the tasks of `tasks.tiger` read this work directory, meanwhile.

    Raises:
        InputError: The user has set another one.
    """
    named = os.environ.get(_TASKS_WORKDIR)
    if named is not None and Path(named).resolve() != workdir.resolve():
        raise InputError(
            f"{_TASKS_WORKDIR}={named} makes seqio's tasks read another work "
            f"directory than --workdir={workdir}: unset it, or make both the same"
        )
    os.environ[_TASKS_WORKDIR] = str(workdir)
    try:
        yield
    finally:
        if named is None:
            del os.environ[_TASKS_WORKDIR]


class _Elsewhere:
    """Another process's view of the run that process 0 has begun."""

    def __init__(self, final: Path, is_current: bool) -> None:
        self.is_current = is_current
        self.folder = final if is_current else final.with_name(f"{final.name}.partial")


def _begin(workdir: Path, recipe: _Recipe, token_shards: Any) -> Any:
    """Opens the folder; of several processes, only the first touches it."""
    run: Any = None
    if jax.process_index() == 0:
        external, folders = {}, ["data", "semantic_ids"]
        if token_shards is not None:
            external, folders = {"tokens": token_shards.content_hash}, folders[1:]
        if recipe.starts_from is not None:
            start = artifacts.load_manifest(recipe.starts_from)
            external["starts_from"] = start.content_hash
        run = artifacts.begin(
            workdir,
            "recommender",
            stage="train_recommender",
            inputs=(*folders, *(("rqvae",) if recipe.codeword_embeddings else ())),
            config=recipe.decides(),
            external=external,
            resumable=True,
            opaque=(CHECKPOINTS, "tensorboard", "profile"),
        )
    if jax.process_count() == 1:
        return run
    mine = np.int32(run is not None and run.is_current)
    is_current = bool(multihost_utils.broadcast_one_to_all(mine))
    return run or _Elsewhere(workdir / "recommender", is_current)


def _commit(
    run: Any, card: ModelCard, summary: dict[str, Any], partitioner: Partitioner
) -> None:
    """Names the folder's content by the best parameters, and puts it in place."""
    if jax.process_index() == 0:
        card.save(run.folder)
    multihost_utils.sync_global_devices("model.json is written")
    *_, params = load_recommender(run.folder, sharding=partitioner.replicated)
    if jax.process_index() == 0:
        run.commit(contents={"params": jax.device_get(params)}, summary=summary)
    multihost_utils.sync_global_devices("recommender/ is in place")


def _describe(partitioner: Partitioner) -> str:
    shape = partitioner.mesh.shape
    kind = partitioner.mesh.devices.flat[0].device_kind
    return f"mesh {shape['data']} data × {shape['model']} model ({kind})"
