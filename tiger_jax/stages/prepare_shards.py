"""Stage `prepare_shards`: raw items and interactions -> `shards/`, on Apache Beam."""

from typing import Any

import gin

from tiger_jax.beam.runner import RunnerConfig, require_beam
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.item_text import ItemTextConfig
from tiger_jax.data.readers.reader import Reader
from tiger_jax.data.splits import SplitsConfig
from tiger_jax.embedding.encoders import SentenceTransformerEncoder, TfidfEncoder
from tiger_jax.errors import InputError
from tiger_jax.stages.context import RunContext


@gin.configurable(module="stages")
def prepare_shards(
    context: RunContext,
    *,
    seed: int = 0,
    num_shards: int = 16,
    source: str = "auto",
    reader: Reader | None = None,
    interactions: InteractionsConfig | None = None,
    splits: SplitsConfig | None = None,
    text: ItemTextConfig | None = None,
    encoder: TfidfEncoder | SentenceTransformerEncoder | None = None,
    runner: RunnerConfig | None = None,
) -> None:
    """Does what `prepare_data` and `embed_items` do, with their configs, by workers.

    Writes `shards/data` and `shards/embedded`. A run that was interrupted writes
    only the shards that are missing.

    Args:
        context: The work directory, and the folder of raw data. A folder with
            `items/` and `interactions/` of Parquet files is read by the workers, a
            file each; any other is read here, and must fit in this machine's memory.
        num_shards: Files of each output.
    """
    require_beam()
    # Only here: Beam is slow to import, and other stages do without.
    from tiger_jax.beam.embed import embed
    from tiger_jax.beam.prepare import prepare
    from tiger_jax.beam.raw import open_raw

    if num_shards < 1:
        raise InputError("prepare_shards.num_shards must be at least 1")
    if context.embeddings is not None:
        raise InputError("prepare_shards embeds texts: leave out --embeddings")
    shards = context.workdir / "shards"
    how: Any = {"num_shards": num_shards, "runner": runner or RunnerConfig()}
    raw = open_raw(context.data_dir, shards / "raw", source, reader, **how)
    data = prepare(
        raw,
        shards / "data",
        interactions=interactions or InteractionsConfig(),
        splits=splits or SplitsConfig(),
        seed=seed,
        **how,
    )
    embed(
        data,
        shards / "embedded",
        text=text or ItemTextConfig(),
        encoder=encoder or TfidfEncoder(),
        seed=seed,
        **how,
    )
