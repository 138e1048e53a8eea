"""Stage `export_t5`: the trained model as a Hugging Face T5 -> `t5/`."""

import jax
import numpy as np

from tiger_jax.errors import InputError
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.progress import say
from tiger_jax.recommending.trained_model import load_recommender
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stages.context import RunContext
from tiger_jax.t5x_bridge.t5_weights import t5_config, to_t5_weights
from tiger_jax.workdir import artifacts, json_files

FOLDER = "t5"


def export_t5(context: RunContext) -> None:
    """Writes what `T5ForConditionalGeneration.from_pretrained` reads.

    `model.safetensors` and `config.json` are T5's own; `generation_config.json` has
    an item be as many tokens as a Semantic ID; `tokens.json` says which tokens stand
    for which item, and where the user tokens begin. Logits are over the whole
    vocabulary there; a model that was trained with output="level" looks at those of
    each position's level alone.
    """
    run = artifacts.begin(
        context.workdir,
        FOLDER,
        stage="export_t5",
        inputs=("semantic_ids", "recommender"),
        config={},
    )
    if run.is_current:
        return
    from safetensors.numpy import save

    config, layout, _, params = load_recommender(context.workdir / "recommender")
    if not isinstance(config, TigerConfig):
        raise InputError(
            f"this recommender is a {type(config).__name__}, and no T5: export_t5 is "
            "for tiger.TigerConfig"
        )
    try:
        weights = to_t5_weights(jax.device_get(params), config)
    except ValueError as error:
        raise InputError(
            f"this recommender is no T5: {error}; TigerConfig's plain encoder, as in "
            "experiments/beauty_paper.gin, is one"
        ) from error
    # Tables that T5 ties are stored once, under the first of their names.
    tied = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    tied += ["lm_head.weight"] if config.is_tied else []
    stored: dict[str, np.ndarray] = {k: v for k, v in weights.items() if k not in tied}
    path = run.folder / "model.safetensors"
    path.write_bytes(save(stored, metadata={"format": "pt"}))
    settings = t5_config(config, layout)
    special = ("pad_token_id", "decoder_start_token_id", "eos_token_id")
    json_files.write_json(run.folder / "config.json", settings)
    json_files.write_json(
        run.folder / "generation_config.json",
        {
            **{name: settings[name] for name in special},
            "max_new_tokens": layout.semantic_id_length,
        },
    )
    table = SemanticIdTable.load(context.workdir / "semantic_ids")
    tokens = layout.tokens_of(table.codes).tolist()
    json_files.write_json(
        run.folder / "tokens.json",
        {
            **layout.to_json(),
            "level_offsets": layout.level_offsets,
            "first_user_token": layout.first_user_token,
            "output": config.output,
            "items": dict(zip(table.item_ids, tokens, strict=True)),
        },
    )
    run.commit(summary={"parameters": sum(array.size for array in stored.values())})
    say(f"export_t5: {run.final} for T5ForConditionalGeneration.from_pretrained")
