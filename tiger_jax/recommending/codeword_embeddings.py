"""Token embeddings that start from the quantizer's codewords, as an option."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from tiger_jax.errors import InputError, flag
from tiger_jax.quantizers.store import load_quantizer
from tiger_jax.semantic_ids.table import SemanticIdTable


def load_codebooks(folder: Path, table: SemanticIdTable) -> list[Float[Array, "_ Z"]]:
    """Each learned level's codebook; InputError if the quantizer hasn't just those."""
    arrays = load_quantizer(folder).to_arrays()
    by_level = {name.rpartition(".")[2]: array for name, array in arrays.items()}
    names = [f"codebook_{level}" for level in range(table.num_levels)]
    codebooks = [jnp.asarray(by_level[name]) for name in names if name in by_level]
    sizes = tuple(len(codebook) for codebook in codebooks)
    if sizes != table.codebook_sizes[:-1]:
        raise InputError(
            f"train_recommender.codeword_embeddings: the quantizer in {folder} has "
            f"codebooks of {sizes} codewords, and the Semantic IDs need "
            f"{table.codebook_sizes[:-1]}: do without, with "
            + flag("train_recommender.codeword_embeddings", False)
        )
    return codebooks


def init_token_embeddings(
    params: Mapping[str, Any],
    codebooks: Sequence[Float[Array, "_ Z"]],
    key: Array,
    stds: Mapping[str, float] = MappingProxyType({"token_embeddings": 1.0}),
) -> dict[str, Any]:
    """Starts tables of the learned levels' tokens from a quantizer's codewords.

    Codewords that are close in the latent space get embeddings that are close, so
    that what is learned about one item helps its neighbours from the first step.
    One random projection with orthonormal rows (or columns, where Z > D) takes
    all levels from Z to D dimensions; each level is centred and scaled to the
    standard deviation that the table starts with. The rows of the padding, the
    collision level and the users stay as they are. ValueError if there are more
    codewords than tokens.

    Args:
        params: Parameters of a generator, boxed or not.
        key: Draws the projection.
        stds: The tables, and the standard deviation that each starts with.
    """
    latent_dim = codebooks[0].shape[1]
    d_model = nn.unbox(params[next(iter(stds))]).shape[1]
    gaussian = jax.random.normal(key, (latent_dim, d_model))
    projection, _ = jnp.linalg.qr(gaussian.T if latent_dim < d_model else gaussian)
    projection = projection.T if latent_dim < d_model else projection  # [Z, D]
    rows = []
    for codebook in codebooks:
        centred = codebook - codebook.mean(0, keepdims=True)
        embeddings = centred @ projection
        rows.append(embeddings / jnp.maximum(embeddings.std(), 1e-6))
    started, unit_rows = dict(params), jnp.concatenate(rows)
    for name, std in stds.items():
        boxed = params[name]
        table = nn.unbox(boxed)
        if len(unit_rows) >= len(table):
            raise ValueError(
                f"{len(unit_rows)} codewords do not fit a table of {len(table)} tokens"
            )
        new_rows = (unit_rows * std).astype(table.dtype)
        table = table.at[1 : 1 + len(new_rows)].set(new_rows)
        is_boxed = isinstance(boxed, nn.meta.AxisMetadata)
        started[name] = boxed.replace_boxed(table) if is_boxed else table
    return started
