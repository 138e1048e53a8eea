"""Histories to a trained SASRec, the neural baseline: the folder `sasrec/`."""

from collections.abc import Callable, Iterator
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Int64

from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation.baselines.sasrec import (
    CHECKPOINTS,
    SasRecCard,
    load_sasrec_params,
)
from tiger_jax.evaluation.metrics import compute_metrics
from tiger_jax.histories import HeldOut
from tiger_jax.input_pipeline.resident_sequences import (
    ResidentSequences,
    SequenceConfig,
)
from tiger_jax.models.sasrec import (
    Params,
    SasRec,
    SasRecConfig,
    init_params,
    make_loss_fn,
    make_score_fn,
)
from tiger_jax.progress import say
from tiger_jax.stages.context import RunContext
from tiger_jax.training.loop import LoopConfig, decides, train
from tiger_jax.training.optimizers import OptimizerConfig, make_optimizer
from tiger_jax.training.partitioning import MeshConfig, Partitioner
from tiger_jax.workdir import artifacts

VALIDATION_BATCH = 256
CUTOFF = 10


@gin.configurable(module="stages")
def train_sasrec(
    context: RunContext,
    *,
    seed: int = 0,
    model: SasRecConfig | None = None,
    sequences: SequenceConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    loop: LoopConfig | None = None,
    validation_users: int | None = None,
    mesh: MeshConfig | None = None,
) -> None:
    """Trains SASRec with a full softmax and keeps what was best on validation.

    `evaluate` puts it beside the recommender when its folder is there, and `fuse`
    takes it in.

    Args:
        seed: Decides parameters, dropout, the order of histories, and the sample of
            validation users.
        validation_users: Users on whom a checkpoint is judged; None for all.
        mesh: How devices share the work.

    Raises:
        InputError: `data/` is missing, or a config doesn't fit.
        DivergedError: The loss was not finite or rose far above its start.
        Preempted: Stopped by SIGTERM, after saving.
    """
    if jax.process_count() > 1:
        raise InputError("train_sasrec runs in one process: a baseline needs no more")
    config = model or SasRecConfig()
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
        opaque=(CHECKPOINTS, "tensorboard", "profile"),
    )
    if run.is_current:
        return
    data = PreparedData.load(context.workdir / "data")
    sasrec = SasRec(config, data.num_items)
    partitioner = Partitioner(mesh)
    examples = ResidentSequences(
        data.train, sequences, max_items=config.max_length, seed=seed
    )
    say(
        f"{examples.num_targets:,} training targets in {examples.num_examples:,} "
        f"windows, {sequences.batch_size} an update, "
        f"{examples.num_examples / sequences.batch_size:,.0f} updates an epoch"
    )
    result = train(
        loss_fn=make_loss_fn(sasrec),
        init_fn=lambda key: init_params(sasrec, key),
        optimizer=make_optimizer(optimizer, loop.total_steps),
        input=examples,
        evaluate_fn=make_evaluate_fn(
            sasrec,
            data.validation,
            partitioner,
            num_users=validation_users,
            seed=seed,
        ),
        partitioner=partitioner,
        config=loop,
        folder=run.folder,
        seed=seed,
    )
    if result.stopped:
        say(f"stopped after step {result.step:,}: {result.stopped}")
    best = ", ".join(f"{n} {v:.4f}" for n, v in result.best_metrics.items())
    say(f"best at step {result.best_step:,}: {best}")
    card = SasRecCard(config, data.num_items, result.best_step, result.best_metrics)
    card.save(run.folder)
    _, params = load_sasrec_params(run.folder)
    run.commit(
        contents={"params": jax.device_get(params)},
        summary={
            "parameters": int(sum(x.size for x in jax.tree.leaves(params))),
            "training_targets": examples.num_targets,
            "steps": result.step,
            "stopped": result.stopped,
            "seconds": round(result.seconds, 1),
            "best_step": result.best_step,
            "best": result.best_metrics,
        },
    )


def make_evaluate_fn(
    model: SasRec,
    held_out: HeldOut,
    partitioner: Partitioner,
    *,
    num_users: int | None = None,
    seed: int = 0,
) -> Callable[[Params], dict[str, float]]:
    """Makes params -> {"loss", "recall@10", "ndcg@10"} over the whole catalogue.

    Seen items aren't masked, and a tie counts against the target, as while the
    recommender is trained.
    """
    total = len(held_out.targets)
    count = min(num_users or total, total)
    chosen = np.random.default_rng(seed).permutation(total)[:count]
    sample = held_out.select(np.sort(chosen))
    shards = partitioner.num_data_shards
    size = -(-min(VALIDATION_BATCH, count) // shards) * shards
    batches = [
        (rows, partitioner.put(arrays, batch_axis=0, is_global=True))
        for rows, arrays in _batches(sample, model.config.max_length, size)
    ]
    score_fn = make_score_fn(model)

    @jax.jit
    def judge(
        params: Params, items: Array, targets: Array
    ) -> tuple[Float[Array, " B"], Int32[Array, " B"]]:
        scores = score_fn(params, items)  # [B, N]
        target = jnp.take_along_axis(scores, targets[:, None], 1)  # [B, 1]
        loss = jax.nn.logsumexp(scores, -1) - target[:, 0]
        return loss, (scores >= target).sum(-1, dtype=jnp.int32) - 1

    def evaluate_fn(params: Any) -> dict[str, float]:
        losses, ranks = np.zeros(count), np.zeros(count, np.int32)
        for rows, arrays in batches:
            found = judge(params, arrays["items"], arrays["targets"])
            losses[rows], ranks[rows] = jax.device_get(found)
        names = (f"recall@{CUTOFF}", f"ndcg@{CUTOFF}")
        return {"loss": float(losses.mean()), **compute_metrics(ranks, names)}

    return evaluate_fn


def _batches(
    sample: HeldOut, max_length: int, size: int
) -> Iterator[tuple[Int64[np.ndarray, " B"], dict[str, np.ndarray]]]:
    """Cuts users into batches by length: few widths, each compiled once.

    Yields:
        Rows of the sample, the last batch filled up with repeats, and their
        histories and targets.
    """
    lengths = np.minimum(sample.histories.lengths, max_length)
    order = np.argsort(lengths, kind="stable")
    widths = (max(1, max_length // 4), max(1, max_length // 2), max_length)
    for at in range(0, len(order), size):
        rows = np.resize(order[at : at + size], size)
        width = next(w for w in widths if lengths[rows].max() <= w)
        part = sample.select(rows)
        yield rows, {"items": part.histories.last(width), "targets": part.targets}
