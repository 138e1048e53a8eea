"""What the stage `train_rqvae` reads: embeddings, whole or in shards."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tiger_jax.data.item_vectors import (
    COLLABORATIVE,
    fill_collaborative,
    load_embeddings,
    load_quantized_vectors,
)
from tiger_jax.data.prepared import PreparedData
from tiger_jax.embedding.collaborative import CollaborativeConfig, embed_cooccurrence
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.shuffled_rows import ShuffleConfig, ShuffledRows
from tiger_jax.progress import say
from tiger_jax.quantizers.fitting import Corpus
from tiger_jax.workdir.arrays import load_array, save_whole
from tiger_jax.workdir.reading import reading
from tiger_jax.workdir.shards import Shards
from tiger_jax.workdir.vector_shards import VectorRows


def each_embedding(
    workdir: Path, shards: Shards | None
) -> Iterator[Float[np.ndarray, " E"]]:
    """One embedding after the other, of shards or of `embeddings/`."""
    if shards is not None:
        for block in VectorRows(shards).blocks():
            yield from block
    else:
        path = workdir / "embeddings" / "embeddings.npy"
        with reading(path):
            yield from load_array(path, is_mapped=True)


def open_shards(shards: Shards, stream: ShuffleConfig, seed: int) -> Corpus:
    """A stream of all embeddings, and a sample that is held."""
    rows = VectorRows(shards)
    sample = rows.sample(stream.sample_rows, seed)
    say(
        f"train_rqvae: {rows.num_rows:,} embeddings in {shards.num_shards} shards, "
        f"k-means on {len(sample):,}"
    )
    draw = ShuffledRows(rows, stream, seed=seed).draw
    return Corpus(sample, rows.blocks, draw=draw)


def read_embeddings(
    workdir: Path,
    folder: Path,
    collaborative: CollaborativeConfig | None,
    others: Sequence[Path],
    seed: int,
) -> Corpus:
    """Reads this shop's embeddings, and what is joined to or fitted with them."""
    data = PreparedData.load(workdir / "data")
    embeddings = load_embeddings(workdir / "embeddings", data.num_items)
    if collaborative is not None:
        say(
            f"train_rqvae: {collaborative.dims} collaborative dimensions from "
            f"{len(data.train.items):,} training interactions"
        )
        vectors = embed_cooccurrence(
            data.train, data.num_items, collaborative, seed=seed
        )
        filled = fill_collaborative(embeddings, collaborative.weight * vectors)
        save_whole(folder / COLLABORATIVE, filled)
        embeddings = load_quantized_vectors(embeddings, folder)
    found = [embeddings]
    for other in others:
        theirs = PreparedData.load(other / "data")
        found.append(load_embeddings(other / "embeddings", theirs.num_items))
        if found[-1].shape[1] != embeddings.shape[1]:
            raise InputError(
                f"{other / 'embeddings'} has {found[-1].shape[1]} dimensions, this "
                f"shop's embeddings have {embeddings.shape[1]}: embed both with one "
                "encoder"
            )
        say(f"train_rqvae: also fitted to {theirs.num_items:,} items of {theirs.name}")
    categories = data.category_of_items()
    return Corpus(np.concatenate(found), lambda: iter([embeddings]), categories)
