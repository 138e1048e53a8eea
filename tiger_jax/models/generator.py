"""What every generator is: a module that spells the next item's Semantic ID.

A generator is a hashable Flax module with `config` and `layout`, and the methods

    __call__(encoder_input_tokens, decoder_input_tokens, *, is_training) -> logits
    init_decode(encoder_input_tokens) -> cache
    decode_step(cache, codewords, parents, level) -> (logits, cache)

Its config has `normalize`, `label_smoothing` and `z_loss`, and `build(layout)` makes
the module. `tiger` is the paper's, `two_level` its successor; one loss trains both.

A config whose `needs_content` is true is built with `content_shape` too, and its module
also reads, or ranks by, the items' content vectors: it has the methods

    embed_items(content[N E], numbers[N]) -> ItemVectors
    logits_and_states(inputs, decoder_input_tokens, *, is_training)
    item_logits(states, ranked[N D]) -> logits

and takes `ItemInputs` in place of the encoder's tokens.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from tiger_jax.errors import InputError
from tiger_jax.semantic_ids.encoder_inputs import ItemInputs
from tiger_jax.semantic_ids.token_ids import TokenLayout

Params = Mapping[str, Any]
Batch = Mapping[str, Array]
Sums = dict[str, Float[Array, ""]]
LossFn = Callable[[Params, Batch, Array | None], tuple[Float[Array, ""], Sums]]


@runtime_checkable
class GeneratorConfig(Protocol):
    """What is asked of any generator's config."""

    @property
    def label_smoothing(self) -> float:
        """Share of a target spread evenly over all classes."""
        ...

    @property
    def z_loss(self) -> float:
        """Weight of log(Z)^2."""
        ...

    @property
    def normalize(self) -> Literal["level", "given"]:
        """What makes a level's logits log-probabilities in a search."""
        ...

    @property
    def embedding_std(self) -> float:
        """The standard deviation that the table of token embeddings starts with."""
        ...

    def build(self, layout: TokenLayout) -> nn.Module:
        """Makes the module for a catalogue's codebooks and the user tokens."""
        ...


class ItemVectors(NamedTuple):
    """What a model makes of the items' content, once for a catalogue.

    Attributes:
        read: float32 [N D]; added where the encoder reads an item.
        ranked: float32 [N D]; what the dense head compares a state with.
    """

    read: Any
    ranked: Any


def needs_content(config: GeneratorConfig) -> bool:
    """Whether the model takes the items' content vectors."""
    return bool(getattr(config, "needs_content", False))


def has_dense_head(config: GeneratorConfig) -> bool:
    """Whether the model also ranks items by their content."""
    return bool(getattr(config, "dense_head", False))


def build_model(
    config: GeneratorConfig,
    layout: TokenLayout,
    content_shape: tuple[int, int] = (0, 0),
) -> nn.Module:
    """Builds the module; InputError if its content vectors are missing.

    Args:
        content_shape: Items of the training catalogue, and dimensions of their content
            vectors.
    """
    if not needs_content(config):
        return config.build(layout)
    if not content_shape[1]:
        raise InputError(
            f"{type(config).__name__} reads the items' content vectors, and there are "
            "none: run --stage=embed_items, or turn reads_content and dense_head off"
        )
    return config.build(layout, content_shape)  # type: ignore[call-arg]


def stack_levels(
    logits: Sequence[Float[Array, "*batch _"]],
) -> Float[Array, "*batch T K_max"]:
    """Stacks the levels' logits, -inf beyond a codebook if another one is larger."""
    width = max(own.shape[-1] for own in logits)
    padded = [
        jnp.pad(
            own,
            [(0, 0)] * (own.ndim - 1) + [(0, width - own.shape[-1])],
            constant_values=-jnp.inf,
        )
        for own in logits
    ]
    return jnp.stack(padded, axis=-2)


@functools.partial(jax.jit, static_argnums=0)
def init_params(model: nn.Module, key: Array) -> Params:
    """Draws parameters, boxed with their logical axis names.

    No parameter's shape depends on the length of the inputs.
    """
    layout = model.layout
    num_users = min(layout.num_user_tokens, 1)
    history = jnp.ones((1, num_users + layout.semantic_id_length), jnp.int32)
    target = jnp.ones((1, layout.semantic_id_length), jnp.int32)
    inputs: Any = history
    if needs_content(model.config):
        inputs = ItemInputs(history, jnp.zeros((1, 1, model.config.d_model)))
    return model.init(key, inputs, target, is_training=False)["params"]


def make_loss_fn(model: nn.Module) -> LossFn:
    """Makes the training loss: the cross entropy of the target codewords.

    The loss is a sum over target tokens, not a mean, so that sums over length
    buckets, accumulated batches and devices are exact; divide by
    `sums["weight"]`. A row has one target item, or P of them at P positions of its
    history. Per target token, with the smoothed target distribution q:

        - sum_c q_c log p_c + z_loss * log(Z)^2

    Where the batch has the content of the items that a dense head ranks, the cross
    entropy of the target items among these is added, `dense_loss_weight` times.

    Returns:
      loss_fn(params, batch, dropout_key) -> (loss_sum, sums). A `dropout_key` of
      None turns dropout off. The sums are `weight`, `loss`, `nll` (without
      smoothing and z-loss), `correct` (the likeliest codeword is the target, given
      the true prefix), and `correct_level_<l>`, which counts T times, so that
      divided by `weight` it is the accuracy at that level.
    """
    config, layout = model.config, model.layout
    length = layout.semantic_id_length
    offsets = layout.level_offsets if config.normalize == "level" else (0,) * length

    def loss_fn(
        params: Params, batch: Batch, dropout_key: Array | None
    ) -> tuple[Float[Array, ""], Sums]:
        variables = {"params": params}
        inputs: Any = batch["encoder_input_tokens"]
        read, windows = batch.get("read"), batch.get("windows")
        if "content" in batch:  # [B, P, E], of the items that the tokens spell
            numbers = _leave_out(model, dropout_key)
            read = model.apply(
                variables,
                batch["content"],
                numbers(batch["read_items"]),
                method="read_content",
            )
        if read is not None or windows is not None:
            inputs = ItemInputs(inputs, read, windows)
        is_dense = "ranked_content" in batch
        found = model.apply(
            variables,
            inputs,
            batch["decoder_input_tokens"],
            is_training=dropout_key is not None,
            rngs={} if dropout_key is None else {"dropout": dropout_key},
            method="logits_and_states" if is_dense else None,
        )
        logits, states = found if is_dense else (found, found)  # [B, P * T, classes]
        targets = batch["decoder_target_tokens"]  # [B, P * T]
        targets -= jnp.array(offsets * (targets.shape[1] // length))[None]
        weights = batch["decoder_loss_weights"].astype(jnp.float32)
        log_z = jax.nn.logsumexp(logits, -1)
        is_target = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
        target_log_probs = jnp.where(is_target, logits, 0.0).sum(-1) - log_z
        is_class = jnp.isfinite(logits)
        mean_log_probs = (
            jnp.where(is_class, logits, 0.0).sum(-1) / is_class.sum(-1) - log_z
        )
        smoothing = config.label_smoothing
        losses = -(1 - smoothing) * target_log_probs - smoothing * mean_log_probs
        losses += config.z_loss * log_z**2
        is_correct = logits.argmax(-1) == targets
        loss = (losses * weights).sum()
        correct = (is_correct * weights).sum(0).reshape(-1, length).sum(0)  # [T]
        sums = {
            "weight": weights.sum(),
            "loss": loss,
            "nll": -(target_log_probs * weights).sum(),
            "correct": correct.sum(),
        }
        for level in range(length):
            sums[f"correct_level_{level}"] = correct[level] * length
        if is_dense:
            dense, item_sums = _item_loss(model, variables, states, batch, numbers)
            loss, sums = loss + config.dense_loss_weight * dense, {**sums, **item_sums}
            sums["loss"] = loss
        return loss, sums

    return loss_fn


def _leave_out(
    model: nn.Module, dropout_key: Array | None
) -> Callable[[Int[Array, "*batch"]], Int[Array, "*batch"]]:
    """Makes the items that an update takes for new ones -1."""
    config = model.config
    has_own = getattr(config, "item_embeddings", False)
    rate = config.item_dropout_rate if has_own else 0.0
    if dropout_key is None or not rate:
        return lambda numbers: numbers
    key = jax.random.fold_in(dropout_key, 1)
    is_kept = jax.random.bernoulli(key, 1 - rate, model.content_shape[:1])
    return lambda numbers: jnp.where(is_kept[jnp.maximum(numbers, 0)], numbers, -1)


def _item_loss(
    model: nn.Module,
    variables: Any,
    states: Float[Array, "B P D"],
    batch: Batch,
    numbers: Callable[[Int[Array, "*batch"]], Int[Array, "*batch"]],
) -> tuple[Float[Array, ""], Sums]:
    """The dense head's cross entropy of each target item among those to be ranked.

    These are the whole catalogue, or n of its N items, drawn evenly: then each counts
    for N / n of them (sampled softmax; Jean et al. 2015, 3.1).
    """
    targets, ranked = batch["target_items"], batch["ranked_items"]  # [B, P], [n]

    def vectors(name: str) -> Float[Array, "*batch D"]:
        content, items = batch[f"{name}_content"], numbers(batch[f"{name}_items"])
        return model.apply(variables, content, items, method="rank_content")

    def logits(vectors: Float[Array, "n D"]) -> Float[Array, "B P n"]:
        return model.apply(variables, states, vectors, method="item_logits")

    own = model.apply(
        variables, states, vectors("target"), method="own_logits"
    )  # [B, P]
    others = logits(vectors("ranked")) + batch["log_share"]
    others = jnp.where(ranked[None, None] == targets[..., None], -jnp.inf, others)
    log_z = jnp.logaddexp(own, jax.nn.logsumexp(others, -1))
    is_target = (targets >= 0).astype(jnp.float32)
    nll = ((log_z - own) * is_target).sum()
    correct = ((own > others.max(-1)) * is_target).sum()
    length = model.layout.semantic_id_length  # times T, as the levels' sums
    return nll, {"item_nll": nll * length, "item_correct": correct * length}


def make_decode_fns(
    model: nn.Module,
) -> tuple[Callable[..., Any], Callable[..., tuple[Array, Any]]]:
    """Makes the two functions that a search drives, of a model with these methods.

    Returns:
      init_decode(params, encoder_input_tokens[B S] or ItemInputs) -> cache, and
      decode_step(params, cache, codewords[B M], parents[B M], level) ->
      (logits[B M K], cache). `level` is a Python int and rises by one a call.
      `codewords` are those that the beams took at the level before; at level 0
      there is one beam, and they are ignored. Beam m continues the previous
      call's beam `parents[:, m]`. The logits are those of the level's own
      codewords; with output="vocabulary" they are log-probabilities, normalised
      over all tokens.
    """

    def init_decode(params: Params, inputs: Any) -> Any:
        return model.apply({"params": params}, inputs, method="init_decode")

    def decode_step(
        params: Params,
        cache: Any,
        codewords: Int[Array, "B M"],
        parents: Int[Array, "B M"],
        level: int,
    ) -> tuple[Float[Array, "B M K"], Any]:
        return model.apply(
            {"params": params}, cache, codewords, parents, level, method="decode_step"
        )

    return init_decode, decode_step
