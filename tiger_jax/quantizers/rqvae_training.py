"""Training an RQ-VAE: on embeddings that lie on the device, or on a stream of them.

The loop is `training.loop`, as for every model. What is the RQ-VAE's own are its
batches, codebooks that k-means starts and fits anew now and then, and codewords that
nobody uses, which move to where residuals are.

Batches and everything else random come from (seed, step), so a run that goes on from a
checkpoint gives, bit for bit, what an uninterrupted one gives. That holds for a stream
too: it is asked for the rows from a position on.
"""

import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jaxtyping import Array, Float, Float32, Int32

from tiger_jax.config import config
from tiger_jax.errors import InputError, flag
from tiger_jax.models.residual_quantizer import nearest_codewords
from tiger_jax.models.rqvae import RqVae, RqVaeConfig, make_loss_fn
from tiger_jax.progress import say
from tiger_jax.quantizers.fitting import DrawFn
from tiger_jax.quantizers.kmeans import fit_kmeans
from tiger_jax.quantizers.quantizer import chunks, row_chunks, usual_codebook_size
from tiger_jax.quantizers.rqvae_quantizer import RqVaeQuantizer, apply
from tiger_jax.semantic_ids.quality import perplexity
from tiger_jax.training import inputs, loop, optimizers, train_state
from tiger_jax.training.partitioning import Partitioner
from tiger_jax.training.train_step import StepParts

Params = Mapping[str, Any]
_ADVICE = f"a lower rate: {flag('rqvae_training.RqVaeTraining.learning_rate', 1e-4)}"
_DRAWN_AHEAD = 64  # steps whose rows are drawn in one call


@config("rqvae_training")
class RqVaeTraining:
    """How an RQ-VAE is trained; a quantizer config with a `fit`, like the others.

    The paper's settings (``experiments/rqvae_paper.gin``) lose most of their
    codewords; the defaults here keep all of them: standardized inputs, AdamW,
    codewords that nobody uses moved to where residuals are, and a few times k-means
    on the latents again. The latter matters most: latents move faster than
    codewords can follow, and a codebook that lags behind uses its codewords
    unevenly and lets more items collide.

    Attributes:
        batch_size: Items per step, drawn with replacement.
        learning_rate: At the start; "cosine" goes down to 0.
        standardize: Give the embeddings mean 0 and variance 1.
        standardize_each: Give it to each dimension by itself, as befits one text
            encoder's. Otherwise one scale serves all, and dimensions that vary more
            weigh more, as befits vectors joined with a chosen weight.
        reset_every: Steps after which a codeword that was not used since moves to
            the residual of some item at its level.
        reset_share: The share of training in which that is done.
        refresh_at: Shares of training after which k-means fits all codebooks anew,
            to the latents of that moment; whole dispatches.
        steps_per_dispatch: Steps between two rows of metrics.
        max_items: Of more items than this, a random part is trained on.
    """

    model: RqVaeConfig = RqVaeConfig()
    num_steps: int = 1500
    batch_size: int = 1024
    optimizer: Literal["adamw", "adagrad"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 0.01
    standardize: bool = True
    standardize_each: bool = True
    reset_every: int = 100
    reset_share: float = 0.5
    refresh_at: tuple[float, ...] = (0.1, 0.25, 0.5)
    steps_per_dispatch: int = 100
    max_items: int = 1_000_000

    def resolved(
        self, embeddings: Iterable[Float[np.ndarray, " E"]]
    ) -> "RqVaeTraining":
        if self.model.codebook_sizes:
            return self
        sizes = (usual_codebook_size(embeddings),) * 3
        model = dataclasses.replace(self.model, codebook_sizes=sizes)
        return dataclasses.replace(self, model=model)

    def fit(
        self, embeddings: Float[np.ndarray, "N E"], *, seed: int = 0
    ) -> RqVaeQuantizer:
        """Trains in a folder that is thrown away."""
        with tempfile.TemporaryDirectory() as folder:
            return self.fit_in(Path(folder), embeddings, seed=seed)

    def fit_in(
        self,
        folder: Path,
        embeddings: Float[np.ndarray, "N E"],
        *,
        seed: int,
        draw: DrawFn | None = None,
        checkpoint_seconds: float | None = None,
    ) -> RqVaeQuantizer:
        """Trains from the newest checkpoint in `folder`, or from the start.

        Args:
            embeddings: What the scale and k-means are computed of, and what batches
                are drawn from: a sample, if there is a stream.
            draw: A stream of all embeddings, for batches.
            checkpoint_seconds: How much time a kill may cost.
        """
        self = self.resolved(embeddings)
        rqvae, parts = self._prepare(embeddings, seed, draw)
        _mention_earlier_version(folder / "checkpoints")
        unit = self.steps_per_dispatch
        whole = math.ceil(self.num_steps / unit) * unit
        result = loop.train(
            **parts._asdict(),
            # Small enough for one device, and one process.
            partitioner=Partitioner(devices=jax.local_devices()[:1]),
            config=loop.LoopConfig(
                total_steps=self.num_steps,
                log_every=unit,
                evaluate_every=whole,
                checkpoint_every=whole,
                checkpoint_seconds=checkpoint_seconds,
                steps_per_dispatch=unit,
                max_loss_ratio=100.0,
            ),
            folder=folder,
            seed=seed,
            on_start=rqvae.start_codebooks,
            before_dispatch=rqvae.refresh_codebooks,
            describe_fn=_describe,
            advice=_ADVICE,
        )
        params = jax.tree.map(np.asarray, result.state.params)
        return RqVaeQuantizer(self.model, params, rqvae.mean, rqvae.scale)

    def step_parts(self, embeddings: Float[np.ndarray, "N E"]) -> StepParts:
        """What is compiled of the training, to be compiled for another device."""
        return self.resolved(embeddings)._prepare(embeddings, 0, None)[1]

    def _prepare(
        self, embeddings: Float[np.ndarray, "N E"], seed: int, draw: DrawFn | None
    ) -> tuple["_Training", StepParts]:
        rqvae = _Training(self, embeddings, seed, draw)
        optimizer = optimizers.OptimizerConfig(
            name=self.optimizer,
            schedule=self.schedule,
            learning_rate=self.learning_rate,
            warmup_steps=0,
            weight_decay=self.weight_decay if self.optimizer == "adamw" else 0.0,
            decay_all=True,
            epsilon=1e-8 if self.optimizer == "adamw" else 1e-7,
        )
        return rqvae, StepParts(
            loss_fn=rqvae.loss_fn,
            init_fn=rqvae.init_params,
            optimizer=optimizers.make_optimizer(optimizer, self.num_steps),
            input=rqvae.input,
            variables={"codeword_counts": rqvae.no_counts()},
            after_update=rqvae.reset_codewords,
        )


class _Training:
    """What the loop is given: an RQ-VAE's loss, batches, and changes on the way."""

    def __init__(
        self,
        config: RqVaeTraining,
        embeddings: Float[np.ndarray, "N E"],
        seed: int,
        draw: DrawFn | None,
    ) -> None:
        """Standardizes the embeddings and puts them on the device."""
        largest = max(config.model.codebook_sizes)
        if len(embeddings) < largest:
            raise InputError(
                f"a codebook of {largest} codewords needs as many items, and there are "
                f"{len(embeddings)}: let the sizes follow that number with "
                + flag("rqvae.RqVaeConfig.codebook_sizes", ())
            )
        self.config, self.seed = config, seed
        if len(embeddings) > config.max_items:
            rng = np.random.default_rng(seed)
            rows = rng.choice(len(embeddings), config.max_items, replace=False)
            embeddings = embeddings[np.sort(rows)]
        self.mean, self.scale = _mean_and_scale(embeddings, config)
        self.model = RqVae(config.model, embeddings.shape[1])
        parts = [(chunk - self.mean) / self.scale for chunk in chunks(embeddings)]
        self.embeddings = jax.device_put(np.concatenate(parts))
        self._sum_losses = make_loss_fn(self.model)
        self._block, self._rows = -1, np.zeros((0, 0), np.int32)
        if draw is None:
            self.input = Batches(self._draw_rows, {"embeddings": self.embeddings})
        else:
            self.input = Batches(functools.partial(self._draw_stream, draw), {})

    def _draw_rows(self, step: int) -> dict[str, np.ndarray]:
        """A batch of the embeddings on the device, drawn with replacement."""
        block, within = divmod(step, _DRAWN_AHEAD)
        if block != self._block:
            count = len(self.embeddings)
            sizes = min(self.config.batch_size, count), count
            first = block * _DRAWN_AHEAD
            rows = _draw_rows(jax.random.key(self.seed), first, sizes)
            self._block, self._rows = block, np.asarray(rows)
        return {"rows": self._rows[within]}

    def _draw_stream(self, draw: DrawFn, step: int) -> dict[str, np.ndarray]:
        """A batch of the stream, standardized on the host."""
        size = self.config.batch_size
        return {"embeddings": (draw(step * size, size) - self.mean) / self.scale}

    def init_params(self, key: Array) -> Params:
        """Fresh parameters; of the seed's own key, as they have always been."""
        del key
        example = jnp.zeros((1, self.model.embedding_size))
        variables = self.model.init(jax.random.key(self.seed), example)
        return meta.unbox(variables)["params"]

    def loss_fn(
        self, params: Params, batch: Mapping[str, Array], key: Array | None
    ) -> tuple[Array, dict[str, Any]]:
        """The mean over the batch: all batches have the same size."""
        loss_sum, sums = self._sum_losses(params, batch, None)
        return loss_sum / sums["weight"], {**sums, "weight": jnp.ones(())}

    def no_counts(self) -> dict[str, Array]:
        """How often each codeword was used since the last reset, by level: never."""
        sizes = self.config.model.codebook_sizes
        return {f"codebook_{l}": jnp.zeros(size) for l, size in enumerate(sizes)}

    def start_codebooks(self, params: Params) -> Params:
        """Fits the codebooks to the untrained latents.

        The paper does it on the first batch, here it is on all items.
        """
        say("train_rqvae: k-means on the untrained encoder's latents")
        return self.fit_codebooks(params)

    def refresh_codebooks(self, step: int, params: Params) -> Params:
        config, unit = self.config, self.config.steps_per_dispatch
        due = (share * config.num_steps for share in config.refresh_at)
        if step in {max(round(at / unit), 1) * unit for at in due}:
            return self.fit_codebooks(params)
        return params

    def fit_codebooks(self, params: Params) -> Params:
        """k-means level by level, on what the levels before left over."""
        parts = (self.embeddings[rows] for rows in row_chunks(len(self.embeddings)))
        latents = [np.asarray(apply(self.model, "encode", params, p)) for p in parts]
        residual = np.concatenate(latents)
        codebooks = {}
        for level, size in enumerate(self.config.model.codebook_sizes):
            codebook = fit_kmeans(residual, size, seed=self.seed + level)
            codebooks[f"codebook_{level}"] = codebook
            residual = residual - codebook[nearest_codewords(residual, codebook)]
        return {**params, "quantizer": codebooks}

    def reset_codewords(
        self, state: train_state.TrainState, sums: Any, constants: Any, arrays: Any
    ) -> train_state.TrainState:
        """Counts the codewords that were used, and moves the others where it is due."""
        config = self.config
        counts = jax.tree.map(
            jnp.add, state.variables["codeword_counts"], sums["codeword_counts"]
        )
        key = jax.random.fold_in(jax.random.key(self.seed), state.step - 1)
        _, reset_key = jax.random.split(key)
        one = jax.tree.map(lambda x: x[0], arrays)
        batch = self.input.make_batch(constants, one, 0)
        last_reset = int(config.reset_share * config.num_steps)
        params, counts = jax.lax.cond(
            (state.step % config.reset_every == 0) & (state.step <= last_reset),
            functools.partial(_move_unused, self.model, batch, reset_key),
            lambda params, counts: (params, counts),
            state.params,
            counts,
        )
        return state._replace(params=params, variables={"codeword_counts": counts})


class Batches:
    """Updates that are numbered from 0 on; the number is what is saved.

    Either rows of embeddings that lie on the device, or the embeddings themselves.
    """

    buckets = (0,)

    def __init__(
        self, draw: Callable[[int], dict[str, np.ndarray]], constants: dict[str, Array]
    ) -> None:
        self._draw, self.constants, self._step = draw, constants, 0

    def __next__(self) -> inputs.Update:
        arrays = {name: array[None] for name, array in self._draw(self._step).items()}
        self._step += 1
        (size,) = {array.shape[1] for array in arrays.values()}
        return inputs.Update(arrays, np.zeros(1, np.int32), size, 0, is_global=True)

    def make_batch(self, constants: Any, arrays: Any, bucket: int) -> dict[str, Array]:
        """Gathers the rows, if it is rows; runs inside the compiled step."""
        if "rows" in arrays:
            return {"embeddings": constants["embeddings"][arrays["rows"]]}
        return arrays

    def save(self, path: Any) -> None:
        (path / "position.json").write_text(json.dumps({"updates": self._step}))

    def restore(self, path: Any) -> None:
        self._step = json.loads((path / "position.json").read_text())["updates"]


@functools.partial(jax.jit, static_argnums=2)
def _draw_rows(
    key: Array, first: Int32[Array, ""], sizes: tuple[int, int]
) -> Int32[Array, "steps B"]:
    """The rows of the steps from `first` on; `sizes` are those of batch and corpus."""

    def draw(step: Array) -> Int32[Array, " B"]:
        batch_key, _ = jax.random.split(jax.random.fold_in(key, step))
        return jax.random.randint(batch_key, sizes[:1], 0, sizes[1])

    return jax.vmap(draw)(first + jnp.arange(_DRAWN_AHEAD))


def _move_unused(
    model: RqVae,
    batch: Mapping[str, Array],
    key: Array,
    params: Params,
    counts: dict[str, Array],
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Puts each codeword with a count of 0 on some item's residual at its level."""
    _, residuals = model.apply(
        {"params": params}, batch["embeddings"], method="quantize"
    )
    codebooks = {}
    for level in range(len(counts)):
        name = f"codebook_{level}"
        size, batch_size = len(counts[name]), residuals.shape[1]
        # Different items for different codewords, as far as there are enough.
        order = jax.random.permutation(
            jax.random.fold_in(key, level), max(size, batch_size)
        )
        candidates = residuals[level][order[:size] % batch_size]  # [K, Z]
        is_unused = (counts[name] == 0)[:, None]
        codebooks[name] = jnp.where(is_unused, candidates, params["quantizer"][name])
    fresh = jax.tree.map(jnp.zeros_like, counts)
    return {**params, "quantizer": codebooks}, fresh


def _describe(sums: Mapping[str, Any]) -> dict[str, float]:
    """What is logged of some updates: see `reporting.pictures`."""
    row = {"reconstruction_error": float(sums["reconstruction"] / sums["variance"])}
    for name, counts in sums["codeword_counts"].items():
        level = name.removeprefix("codebook_")
        row[f"use_{level}"] = float((counts > 0).mean())
        row[f"perplexity_{level}"] = perplexity(counts)
    return row


def _mention_earlier_version(checkpoints: Path) -> None:
    """Says that what an earlier version saved half-way is not gone on with."""
    if any(path.name.isdigit() for path in checkpoints.glob("*")):
        say(
            f"train_rqvae: {checkpoints} holds checkpoints in an earlier version's "
            "form, which can't be resumed: training starts again, and they go when "
            "it has ended"
        )


def _mean_and_scale(
    embeddings: Float[np.ndarray, "N E"], config: RqVaeTraining
) -> tuple[Float32[np.ndarray, " E"], Float32[np.ndarray, " E"]]:
    width = embeddings.shape[1]
    if not config.standardize:
        return np.zeros(width, np.float32), np.ones(width, np.float32)
    mean = np.mean(embeddings, axis=0, dtype=np.float64)
    scale = np.std(embeddings, axis=0, dtype=np.float64)
    if not config.standardize_each:
        scale = np.full(width, np.sqrt(np.mean(scale**2)))
    # A dimension that hardly varies says nothing; blown up, it would be noise.
    scale[scale < 1e-3 * scale.max(initial=0)] = 1
    scale[scale == 0] = 1
    return mean.astype(np.float32), scale.astype(np.float32)
