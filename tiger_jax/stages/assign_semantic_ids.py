"""Stage `assign_semantic_ids`: `rqvae/` or a peer's codes -> `semantic_ids/`."""

from typing import Any

import gin

from tiger_jax.data.item_vectors import load_embeddings, load_quantized_vectors
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.quantizers.store import load_quantizer
from tiger_jax.semantic_ids.collisions import (
    MAX_COLLISION_LEVEL_SIZE,
    add_collision_level,
    collision_level_size_for,
)
from tiger_jax.semantic_ids.peer_codes import take_peer_codes
from tiger_jax.semantic_ids.quality import format_quality
from tiger_jax.semantic_ids.table import SemanticIdTable, commit_table
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.hashing import hash_file
from tiger_jax.workdir.reading import path_of

# With more collisions than this, the collision level decides much of what a
# recommender can tell apart, and it means nothing.
_MANY_COLLISIONS = 0.1


@gin.configurable(module="stages")
def assign_semantic_ids(
    context: RunContext,
    *,
    seed: int = 0,
    collision_level_size: int | None = None,
    peer_codes: str | None = None,
    peer_num_levels: int | None = None,
    peer_codebook_sizes: tuple[int, ...] | None = None,
    missing_items: str = "error",
) -> None:
    """Gives every item its Semantic ID: learned codewords and a collision codeword.

    Writes the `SemanticIdTable`'s files and `quality.json`. Among items with equal
    learned codewords, the collision codeword counts up in the order of a hash of their
    ids.

    Args:
        seed: Decides the shuffles that category purity is compared with.
        collision_level_size: Codewords at the collision level: at least as many as
            the most items that share their learned codewords. None is 256, or the
            power of two that leaves these an eighth to grow.
        peer_codes: A JSON file of item id: list of codes, made elsewhere; the
            quantizer is not used then.
        peer_num_levels: How many of the file's codes were learned. One more after
            them is the file's own collision level, and is kept. All, if None.
        peer_codebook_sizes: Codewords per learned level; the largest code in the file
            plus one if None.
        missing_items: What to do about items that the file lacks: "error", or
            "nearest" to give them the codes of the item with the nearest embedding.
    """
    if missing_items not in ("error", "nearest"):
        raise InputError(
            f"assign_semantic_ids.missing_items is {missing_items!r}: use 'error' or "
            "'nearest'"
        )
    config: dict[str, Any] = {
        "collision_level_size": collision_level_size,
        "seed": seed,
    }
    inputs, external = ["data", "embeddings", "rqvae"], {}
    if peer_codes is not None:
        path = path_of(peer_codes)
        if not path.is_file():
            raise InputError(f"assign_semantic_ids.peer_codes: {path} is no file")
        inputs = ["data"] + ["embeddings"] * (missing_items == "nearest")
        external = {"peer_codes": hash_file(path)}
        config |= {
            "peer_num_levels": peer_num_levels,
            "peer_codebook_sizes": peer_codebook_sizes,
            "missing_items": missing_items,
        }
    run = artifacts.begin(
        context.workdir,
        "semantic_ids",
        stage="assign_semantic_ids",
        inputs=inputs,
        config=config,
        external=external,
    )
    if run.is_current:
        return
    data = PreparedData.load(context.workdir / "data")
    taken = None
    if peer_codes is None:
        quantizer = load_quantizer(context.workdir / "rqvae")
        embeddings = load_embeddings(context.workdir / "embeddings", data.num_items)
        embeddings = load_quantized_vectors(embeddings, context.workdir / "rqvae")
        codes, sizes = quantizer.encode(embeddings), quantizer.codebook_sizes
    else:
        codes, taken, sizes = take_peer_codes(
            path,
            data.item_ids,
            lambda: load_embeddings(context.workdir / "embeddings", data.num_items),
            num_levels=peer_num_levels,
            codebook_sizes=peer_codebook_sizes,
            missing_items=missing_items,
        )
    full = add_collision_level(
        codes,
        data.item_ids,
        collision_level_size=collision_level_size or MAX_COLLISION_LEVEL_SIZE,
        taken=taken,
    )
    sizes = (*sizes, collision_level_size or collision_level_size_for(full))
    table = SemanticIdTable(full, sizes, len(sizes) - 1, data.item_ids)
    quality = commit_table(
        run,
        table,
        source="a peer's codes" if peer_codes else "rqvae",
        categories=data.category_of_items(),
        seed=seed,
    )
    if peer_codes is not None:  # of a quantizer, `train_rqvae` has shown it
        say(format_quality(quality))
    say(
        f"assign_semantic_ids: {table.num_items:,} items, each with its own Semantic "
        f"ID of {table.semantic_id_length} codewords"
    )
    if table.num_levels > 1 and quality["collision_rate"] > _MANY_COLLISIONS:
        say(
            f"WARNING: assign_semantic_ids: {quality['collision_rate']:.1%} of the "
            "learned codes collide, and only the collision level, which says nothing "
            "about an item, tells those items apart: more levels or larger codebooks "
            "would"
        )
