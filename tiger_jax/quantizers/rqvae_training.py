"""Training an RQ-VAE: on embeddings that lie on the device, or on a stream of them.

A dispatch is many steps in one `lax.scan`: the host only looks at sums between
dispatches. Batches and everything else random come from (seed, step), so a run that
goes on from a saved state gives, bit for bit, what an uninterrupted one gives. That
holds for a stream too: it is asked for the rows from a position on.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from jaxtyping import Array, Float, Float32

from tiger_jax.config import config
from tiger_jax.errors import InputError
from tiger_jax.models.rqvae import RqVae, RqVaeConfig, make_loss_fn
from tiger_jax.quantizers.kmeans import fit_kmeans
from tiger_jax.quantizers.quantizer import ENCODE_CHUNK, chunks
from tiger_jax.quantizers.residual_kmeans import nearest_codewords
from tiger_jax.quantizers.rqvae_quantizer import RqVaeQuantizer
from tiger_jax.semantic_ids.quality import perplexity


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
        model: The architecture.
        num_steps: Optimizer steps.
        batch_size: Items a step, drawn with replacement.
        optimizer: "adamw" or "adagrad".
        learning_rate: At the start.
        schedule: "constant", or "cosine" down to 0.
        weight_decay: AdamW's.
        standardize: Give the embeddings mean 0 and variance 1.
        standardize_each: Give it to each dimension by itself, as befits one text
            encoder's. Otherwise one scale serves all, and dimensions that vary more
            weigh more, as befits vectors joined with a chosen weight.
        reset_every: Steps after which a codeword that was not used since moves to
            the residual of some item at its level.
        reset_share: The share of training in which that is done.
        refresh_at: Shares of training after which k-means fits all codebooks anew,
            to the latents of that moment; whole dispatches.
        steps_per_dispatch: Steps between two looks at the sums.
        max_items: Of more items than this, a random part is trained on.
    """

    model: RqVaeConfig = RqVaeConfig()
    num_steps: int = 1500
    batch_size: int = 1024
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    weight_decay: float = 0.01
    standardize: bool = True
    standardize_each: bool = True
    reset_every: int = 100
    reset_share: float = 0.5
    refresh_at: tuple[float, ...] = (0.1, 0.25, 0.5)
    steps_per_dispatch: int = 100
    max_items: int = 1_000_000

    def fit(
        self, embeddings: Float[np.ndarray, "N E"], *, seed: int = 0
    ) -> RqVaeQuantizer:
        """Trains without checkpoints; the stage adds them."""
        trainer = RqVaeTrainer(self, embeddings, seed=seed)
        state = trainer.init_state()
        while trainer.num_steps_left(state):
            state, _ = trainer.run_dispatch(state)
        return trainer.finish(state)


class RqVaeState(NamedTuple):
    """All that changes in training.

    Attributes:
        step: Steps done.
        counts: How often each codeword was used since the last reset, by level.
    """

    step: Array
    params: Mapping[str, Any]
    opt_state: optax.OptState
    counts: dict[str, Array]


DrawFn = Callable[[int, int], Float32[np.ndarray, "B E"]]
"""(position, count) -> so many embeddings of an endless stream, from there on."""


class RqVaeTrainer:
    """Takes an RQ-VAE from k-means initialization to a frozen quantizer.

    Raises:
        InputError: A setting can't work with these embeddings.
    """

    def __init__(
        self,
        config: RqVaeTraining,
        embeddings: Float[np.ndarray, "N E"],
        *,
        seed: int,
        draw: DrawFn | None = None,
    ) -> None:
        """Standardizes the embeddings and puts them on the device.

        Args:
            config: How to train.
            embeddings: What the scale and k-means are computed of, and what batches
                are drawn from: a sample, if there is a stream.
            seed: Decides everything random.
            draw: A stream of all embeddings, for batches.
        """
        largest = max(config.model.codebook_sizes)
        if len(embeddings) < largest:
            raise InputError(
                f"a codebook of {largest} codewords needs as many items, and there are "
                f"{len(embeddings)}: set smaller rqvae.RqVaeConfig.codebook_sizes"
            )
        self.config, self.seed, self._draw = config, seed, draw
        if len(embeddings) > config.max_items:
            rng = np.random.default_rng(seed)
            rows = rng.choice(len(embeddings), config.max_items, replace=False)
            embeddings = embeddings[np.sort(rows)]
        self.mean, self.scale = _mean_and_scale(embeddings, config)
        self._model = RqVae(config.model, embeddings.shape[1])
        parts = [(chunk - self.mean) / self.scale for chunk in chunks(embeddings)]
        self._embeddings = jax.device_put(np.concatenate(parts))

    def init_state(self) -> RqVaeState:
        """Fresh parameters, with codebooks fitted to the untrained latents.

        k-means goes level by level, on what the levels before left over; the paper
        does it on the first batch, here it is on all items.
        """
        state = _init_state(self.config, self._model, jax.random.key(self.seed))
        return state._replace(params=self._fit_codebooks(state.params))

    def abstract_state(self) -> RqVaeState:
        """The shapes and dtypes of a state: what a checkpoint is restored to."""
        key = jax.random.key(self.seed)
        init = functools.partial(_init_state, self.config, self._model)
        return jax.eval_shape(init, key)

    def num_steps_left(self, state: RqVaeState) -> int:
        """Steps until training is done."""
        return self.config.num_steps - int(state.step)

    def run_dispatch(self, state: RqVaeState) -> tuple[RqVaeState, dict[str, float]]:
        """Runs the next steps, after k-means where it is due.

        Returns:
            The state after them, and metrics: ``loss`` per item;
            ``reconstruction_error``, the share of the (standardized) embeddings'
            variance that is missed; ``use_<level>`` and ``perplexity_<level>``.
        """
        num_steps = min(self.config.steps_per_dispatch, self.num_steps_left(state))
        if int(state.step) in self._refresh_steps():
            state = state._replace(params=self._fit_codebooks(state.params))
        key = jax.random.key(self.seed)
        if self._draw is None:
            state, sums = _run_steps(
                self.config, self._model, num_steps, state, self._embeddings, key
            )
        else:
            batches = self._draw_batches(self._draw, int(state.step), num_steps)
            state, sums = _run_batches(self.config, self._model, state, batches, key)
        sums = jax.device_get(sums)
        loss = float((sums["reconstruction"] + sums["quantization"]) / sums["weight"])
        if not np.isfinite(loss):
            raise InputError(
                f"the RQ-VAE's loss is {loss} after {int(state.step)} steps: set a "
                "smaller rqvae_training.RqVaeTraining.learning_rate"
            )
        metrics = {
            "loss": loss,
            "reconstruction_error": float(sums["reconstruction"] / sums["variance"]),
        }
        for name, counts in sums["codeword_counts"].items():
            level = name.removeprefix("codebook_")
            metrics[f"use_{level}"] = float((counts > 0).mean())
            metrics[f"perplexity_{level}"] = perplexity(counts)
        return state, metrics

    def finish(self, state: RqVaeState) -> RqVaeQuantizer:
        """Freezes the trained network."""
        params = jax.tree.map(np.asarray, state.params)
        return RqVaeQuantizer(self.config.model, params, self.mean, self.scale)

    def _draw_batches(
        self, draw: DrawFn, step: int, num_steps: int
    ) -> Float32[np.ndarray, "steps B E"]:
        """The batches of the next steps, standardized."""
        size = self.config.batch_size
        rows = (draw(step * size, num_steps * size) - self.mean) / self.scale
        return rows.reshape(num_steps, size, -1)

    def _refresh_steps(self) -> set[int]:
        config, dispatch = self.config, self.config.steps_per_dispatch
        steps = (share * config.num_steps for share in config.refresh_at)
        return {max(round(step / dispatch), 1) * dispatch for step in steps}

    def _fit_codebooks(self, params: Mapping[str, Any]) -> dict[str, Any]:
        starts = range(0, len(self._embeddings), ENCODE_CHUNK)
        parts = [self._embeddings[s : s + ENCODE_CHUNK] for s in starts]
        latents = [np.asarray(_encode(self._model, params, part)) for part in parts]
        residual = np.concatenate(latents)
        codebooks = {}
        for level, size in enumerate(self.config.model.codebook_sizes):
            codebook = fit_kmeans(residual, size, seed=self.seed + level)
            codebooks[f"codebook_{level}"] = jnp.asarray(codebook)
            residual = residual - codebook[nearest_codewords(residual, codebook)]
        return {**params, "quantizer": codebooks}


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


def _make_optimizer(config: RqVaeTraining) -> optax.GradientTransformation:
    rates = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, config.num_steps),
    }
    if config.schedule not in rates:
        raise InputError(
            f"there is no schedule {config.schedule!r}: use one of {sorted(rates)}"
        )
    rate = rates[config.schedule]
    optimizers = {
        "adamw": optax.adamw(rate, weight_decay=config.weight_decay),
        "adagrad": optax.adagrad(rate),
    }
    if config.optimizer not in optimizers:
        raise InputError(
            f"there is no RQ-VAE optimizer {config.optimizer!r}: use one of "
            f"{sorted(optimizers)}"
        )
    return optimizers[config.optimizer]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init_state(config: RqVaeTraining, model: RqVae, key: Array) -> RqVaeState:
    params = meta.unbox(model.init(key, jnp.zeros((1, model.embedding_size))))["params"]
    sizes = config.model.codebook_sizes
    return RqVaeState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=_make_optimizer(config).init(params),
        counts={f"codebook_{l}": jnp.zeros(size) for l, size in enumerate(sizes)},
    )


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    model: RqVae, params: Mapping[str, Any], embeddings: Float[Array, "B E"]
) -> Float[Array, "B Z"]:
    return model.apply({"params": params}, embeddings, method="encode")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run_steps(
    config: RqVaeTraining,
    model: RqVae,
    num_steps: int,
    state: RqVaeState,
    embeddings: Float[Array, "N E"],
    key: Array,
) -> tuple[RqVaeState, dict[str, Any]]:
    """Many steps in one dispatch; the sums over all of them."""
    num_items = len(embeddings)
    batch_size = min(config.batch_size, num_items)

    def run_step(state: RqVaeState, _: None) -> tuple[RqVaeState, dict[str, Any]]:
        batch_key, reset_key = jax.random.split(jax.random.fold_in(key, state.step))
        rows = jax.random.randint(batch_key, (batch_size,), 0, num_items)
        return _run_step(config, model, state, embeddings[rows], reset_key)

    state, sums = jax.lax.scan(run_step, state, None, length=num_steps)
    return state, jax.tree.map(lambda x: x.sum(0), sums)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_batches(
    config: RqVaeTraining,
    model: RqVae,
    state: RqVaeState,
    batches: Float[Array, "steps B E"],
    key: Array,
) -> tuple[RqVaeState, dict[str, Any]]:
    """The same, with batches that were drawn on the host."""

    def run_step(state: RqVaeState, batch: Array) -> tuple[RqVaeState, dict[str, Any]]:
        _, reset_key = jax.random.split(jax.random.fold_in(key, state.step))
        return _run_step(config, model, state, batch, reset_key)

    state, sums = jax.lax.scan(run_step, state, batches)
    return state, jax.tree.map(lambda x: x.sum(0), sums)


def _run_step(
    config: RqVaeTraining,
    model: RqVae,
    state: RqVaeState,
    embeddings: Float[Array, "B E"],
    reset_key: Array,
) -> tuple[RqVaeState, dict[str, Any]]:
    loss_fn, optimizer = make_loss_fn(model), _make_optimizer(config)
    batch = {"embeddings": embeddings}
    last_reset = int(config.reset_share * config.num_steps)

    def mean_loss(params: Mapping[str, Any]) -> tuple[Array, dict[str, Any]]:
        loss_sum, sums = loss_fn(params, batch, None)
        return loss_sum / sums["weight"], sums

    grads, sums = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    counts = jax.tree.map(jnp.add, state.counts, sums["codeword_counts"])
    params, counts = jax.lax.cond(
        (step % config.reset_every == 0) & (step <= last_reset),
        functools.partial(_move_unused_codewords, model, batch, reset_key),
        lambda params, counts: (params, counts),
        params,
        counts,
    )
    return RqVaeState(step, params, opt_state, counts), sums


def _move_unused_codewords(
    model: RqVae,
    batch: Mapping[str, Array],
    key: Array,
    params: Mapping[str, Any],
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
