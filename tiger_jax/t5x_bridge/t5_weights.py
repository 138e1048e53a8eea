"""TIGER's parameters under the names and shapes of Hugging Face's T5 (v1.0).

Both hold the same numbers: T5's `Linear` stores its matrix transposed, and a
stack's position bias belongs to its first block there.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Float

from tiger_jax.models.layers import RelativePositionBias, RmsNorm
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.semantic_ids.token_ids import PADDING, TokenLayout

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_MLP = {"wi": "wi", "wo": "wo"}
# Our names of a block's part and of the norm before it, and T5's of the part.
_MLP_PART = ("mlp", "mlp_norm", "DenseReluDense")
_ENCODER_PARTS = (("attention", "attention_norm", "SelfAttention"), _MLP_PART)
_DECODER_PARTS = (
    ("self_attention", "self_norm", "SelfAttention"),
    ("cross_attention", "cross_norm", "EncDecAttention"),
    _MLP_PART,
)


def t5_config(config: TigerConfig, layout: TokenLayout) -> dict[str, Any]:
    """The fields of ``config.json`` that give T5 the same shapes and arithmetic."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": layout.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": RelativePositionBias.num_buckets,
        "relative_attention_max_distance": RelativePositionBias.max_distance,
        "dropout_rate": config.dropout_rate,
        "layer_norm_epsilon": RmsNorm.epsilon,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": config.is_tied,
        "scale_decoder_outputs": config.is_tied,
        "pad_token_id": PADDING,
        "decoder_start_token_id": PADDING,
        "eos_token_id": None,  # every Semantic ID has the same length
    }


def to_t5_weights(
    params: Mapping[str, Any], config: TigerConfig
) -> dict[str, Float[np.ndarray, "..."]]:
    """Renames parameters to the state dict of `T5ForConditionalGeneration`.

    With a tied head, T5 scales the decoder's states by d_model^-0.5, as we scale
    the logits; an untied head is stored as it is.

    The parameters of `Tiger` may be boxed; ValueError if it has some that T5 hasn't.
    """
    flat = traverse_util.flatten_dict(nn.unbox(params), sep="/")
    names = t5_names(config)
    if set(flat) != set(names):
        raise ValueError(f"T5 has no name for {sorted(set(flat) ^ set(names))}")
    weights = {}
    for path, (name, is_transposed) in names.items():
        value = np.asarray(flat[path], np.float32)
        weights[name] = np.ascontiguousarray(value.T if is_transposed else value)
    # The same table under the two names that T5's stacks use for it.
    for stack in ("encoder", "decoder"):
        weights[f"{stack}.embed_tokens.weight"] = weights["shared.weight"]
    if config.is_tied:
        weights["lm_head.weight"] = weights["shared.weight"]
    return weights


def t5_names(config: TigerConfig) -> dict[str, tuple[str, bool]]:
    """Maps each parameter's path to T5's name, and whether it is transposed."""
    names = {"token_embeddings": ("shared.weight", False)}
    if not config.is_tied:
        names["output_head"] = ("lm_head.weight", False)
    for stack, parts, num_blocks in (
        ("encoder", _ENCODER_PARTS, config.num_encoder_layers),
        ("decoder", _DECODER_PARTS, config.num_decoder_layers),
    ):
        for i, (j, (part, norm, module)) in itertools.product(
            range(num_blocks), enumerate(parts)
        ):
            ours, theirs = f"{stack}/block_{i}", f"{stack}.block.{i}.layer.{j}"
            names[f"{ours}/{norm}/scale"] = (f"{theirs}.layer_norm.weight", False)
            for matrix, letter in (_MLP if part == "mlp" else _ATTENTION).items():
                name = f"{theirs}.{module}.{letter}.weight"
                names[f"{ours}/{part}/{matrix}"] = (name, True)
        bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names[f"{stack}/position_bias/relative_bias"] = (f"{stack}.{bias}", False)
        names[f"{stack}/final_norm/scale"] = (f"{stack}.final_layer_norm.weight", False)
    return names
