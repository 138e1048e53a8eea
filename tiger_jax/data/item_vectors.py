"""The vectors of the items on disk: of their texts, and what a quantizer takes."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from tiger_jax.errors import InputError
from tiger_jax.vectors import to_unit_length
from tiger_jax.workdir.arrays import load_array
from tiger_jax.workdir.reading import reading

COLLABORATIVE = "collaborative.npy"  # in rqvae/, where vectors were joined to the text


def load_embeddings(folder: Path, num_items: int) -> Float[np.ndarray, "N E"]:
    """Reads `embeddings.npy`: a finite vector per item, or else an InputError."""
    path = folder / "embeddings.npy"
    with reading(path):
        embeddings = load_array(path)
    if embeddings.ndim != 2 or len(embeddings) != num_items:
        problem = f"has shape {embeddings.shape}, but there are {num_items} items"
    elif not (is_finite := np.isfinite(embeddings).all(axis=1)).all():
        problem = f"can't be used: row {int(is_finite.argmin())} is not finite"
    else:
        return embeddings
    raise InputError(f"{path} {problem}: run --stage=embed_items again")


def load_quantized_vectors(
    embeddings: Float[np.ndarray, "N E"], folder: Path
) -> Float[np.ndarray, "N joined"]:
    """What the quantizer in `folder` takes: text, and what was joined to it."""
    collaborative = load_collaborative(folder)
    return embeddings if collaborative is None else join_text(embeddings, collaborative)


def load_collaborative(folder: Path) -> Float32[np.ndarray, "N C"] | None:
    """What was joined to the text for the quantizer in `folder`; None if nothing."""
    path = folder / COLLABORATIVE
    return load_array(path) if path.exists() else None


def make_content(
    text: Float[np.ndarray, "N E"], collaborative: Float32[np.ndarray, "N C"] | None
) -> Float32[np.ndarray, "N content"]:
    """What a recommender reads as an item's content: what its codes were made of.

    Brought to a mean square of 1, as a network's inputs should have.
    """
    vectors = text if collaborative is None else join_text(text, collaborative)
    return (to_unit_length(vectors) * vectors.shape[1] ** 0.5).astype(np.float32)


def join_text(
    text: Float[np.ndarray, "N E"], vectors: Float32[np.ndarray, "N C"]
) -> Float32[np.ndarray, "N joined"]:
    """Puts text vectors, brought to length 1, and weighted others side by side."""
    return np.concatenate([to_unit_length(text), vectors], axis=1)
