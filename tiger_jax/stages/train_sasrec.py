"""Histories to a trained SASRec or BSARec, the dense rivals: the folder `sasrec/`."""

import gin
import jax

from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation.baselines import sasrec as sasrec_baseline
from tiger_jax.input_pipeline.resident_sequences import (
    ResidentSequences,
    SequenceConfig,
)
from tiger_jax.models import sasrec as sasrec_model
from tiger_jax.progress import say
from tiger_jax.recommending.sasrec_validation import make_evaluate_fn
from tiger_jax.stages.context import RunContext
from tiger_jax.training.loop import LoopConfig, decides, may_grow, train
from tiger_jax.training.optimizers import OptimizerConfig, make_optimizer
from tiger_jax.training.partitioning import MeshConfig, Partitioner
from tiger_jax.workdir import artifacts


@gin.configurable(module="stages")
def train_sasrec(
    context: RunContext,
    *,
    seed: int = 0,
    model: sasrec_model.SasRecConfig | None = None,
    sequences: SequenceConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    loop: LoopConfig | None = None,
    validation_users: int | None = None,
    mesh: MeshConfig | None = None,
) -> None:
    """Trains a dense rival with a full softmax and keeps what was best on validation.

    `evaluate` puts it beside the recommender when its folder is there, and `fuse`
    takes it in.

    Args:
        model: SASRec, or BSARec by a `bsarec.BsaRecConfig`.
        seed: Decides parameters, dropout, the order of histories, and the sample of
            validation users.
        validation_users: Users on whom a checkpoint is judged; None for all.

    Raises:
        DivergedError: The loss was not finite or rose far above its start.
        Preempted: Stopped by SIGTERM, after saving.
    """
    if jax.process_count() > 1:
        raise InputError("train_sasrec runs in one process: a baseline needs no more")
    config = model or sasrec_model.SasRecConfig()
    sequences, optimizer = sequences or SequenceConfig(), optimizer or OptimizerConfig()
    loop = loop or LoopConfig()
    run = artifacts.begin(
        context.workdir,
        "sasrec",
        stage="train_sasrec",
        inputs=("data",),
        config={
            "model": config,
            "sequences": sequences,
            "optimizer": optimizer,
            "loop": decides(loop),
            "validation_users": validation_users,
            "seed": seed,
        },
        resumable=True,
        may_grow=may_grow(optimizer),
        opaque=(sasrec_baseline.CHECKPOINTS, "tensorboard", "profile"),
    )
    if run.is_current:
        return
    data = PreparedData.load(context.workdir / "data")
    sasrec = config.build(data.num_items)
    partitioner = Partitioner(mesh)
    examples = ResidentSequences(
        data.train,
        sequences,
        max_items=config.max_length,
        seed=seed,
        only_last=not config.is_causal,
    )
    say(
        f"{examples.num_targets:,} training targets in {examples.num_examples:,} "
        f"windows, {sequences.batch_size} an update, "
        f"{examples.num_examples / sequences.batch_size:,.0f} updates an epoch"
    )
    result = train(
        loss_fn=sasrec_model.make_loss_fn(sasrec),
        init_fn=lambda key: sasrec_model.init_params(sasrec, key),
        optimizer=make_optimizer(optimizer, loop.total_steps),
        input=examples,
        evaluate_fn=make_evaluate_fn(
            sasrec, data.validation, partitioner, num_users=validation_users, seed=seed
        ),
        partitioner=partitioner,
        config=loop,
        folder=run.folder,
        seed=seed,
    )
    card = sasrec_baseline.SasRecCard(
        config, data.num_items, result.best_step, result.best_metrics
    )
    card.save(run.folder)
    _, params = sasrec_baseline.load_sasrec_params(run.folder)
    run.commit(
        contents={"params": jax.device_get(params)},
        summary={"training_targets": examples.num_targets, **result.report()},
    )
