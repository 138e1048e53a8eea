"""Stage `embed_items`: the catalogue's texts -> `embeddings/`."""

import shutil
from typing import Any

import gin
import pyarrow as pa
import pyarrow.parquet

from tiger_jax.data import item_text, prepared
from tiger_jax.embedding import embed, encoders, ready_made
from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import arrays, artifacts, hashing, json_files


@gin.configurable(module="stages")
def embed_items(
    context: RunContext,
    *,
    seed: int = 0,
    text: item_text.ItemTextConfig = item_text.ItemTextConfig(),
    encoder: encoders.Encoder = encoders.TfidfEncoder(),
) -> None:
    """Writes one vector per item, from its text or from a file of ready vectors.

    Writes `embeddings.npy` (float32[N E] by item number), `encoder.json` (what made
    it), and, where texts were embedded, `texts.parquet`.

    Args:
        context: The work directory; `context.embeddings`, if given, is the file of
            ready vectors, in items-file order, and `text` and `encoder` don't count.
        seed: Decides TF-IDF's random projections.
    """
    config: dict[str, Any] = {"text": text, "encoder": encoder, "seed": seed}
    external = {} if context.embeddings else encoder.hashes()
    if context.embeddings is not None:
        if not context.embeddings.is_file():
            raise InputError(
                f"{context.embeddings} is no file: give --embeddings a .npy file"
            )
        config = {"encoder": "ready-made"}
        external = {"embeddings": hashing.hash_file(context.embeddings)}
    run = artifacts.begin(
        context.workdir,
        "embeddings",
        stage="embed_items",
        inputs=("data",),
        config=config,
        external=external,
        resumable=True,
    )
    if run.is_current:
        return
    data = prepared.PreparedData.load(context.workdir / "data")
    made_by: dict[str, Any] = {"kind": "ready-made", "text": None, **external}
    if context.embeddings is not None:
        say(f"embed_items: ready-made embeddings from {context.embeddings}")
        embeddings = ready_made.load_ready_made(
            context.embeddings, data.statistics["raw_items"], data.items_file_rows
        )
        arrays.save_whole(run.folder / "embeddings.npy", embeddings)
    else:
        say(
            f"embed_items: no --embeddings, so texts are embedded: {encoder.describe()}"
        )
        texts = item_text.build_item_texts(data.items, text)
        num_distinct = len(set(texts))
        if num_empty := texts.count(""):
            say(f"embed_items: {num_empty:,} of {len(texts):,} items have no text")
        made_by = {
            **encoders.encoder_facts(encoder),
            "encoder": encoder,
            "text": text,
            "distinct_texts": num_distinct,
            **external,
        }
        pa.parquet.write_table(
            pa.table({"item_id": data.items["item_id"], "text": texts}),
            run.folder / "texts.parquet",
        )
        chunks = run.folder / "chunks"
        # The chunks go when all is written; killed after that, nothing is redone.
        if chunks.exists() or not (run.folder / "embeddings.npy").exists():
            embeddings = embed.embed_texts(texts, encoder, chunks, seed=seed)
            arrays.save_whole(run.folder / "embeddings.npy", embeddings)
        shutil.rmtree(chunks, ignore_errors=True)
        embeddings = arrays.load_array(run.folder / "embeddings.npy")
    dims = embeddings.shape[1]
    json_files.write_json(
        run.folder / "encoder.json", {**made_by, "embedding_dim": dims, "seed": seed}
    )
    run.commit(summary={"items": data.num_items, "embedding_dim": dims, **made_by})
    say(f"embed_items: {data.num_items:,} items, {dims} dimensions")
