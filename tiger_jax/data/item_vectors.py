"""The vectors of the items on disk: of their texts, and what a quantizer takes."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from tiger_jax.errors import InputError
from tiger_jax.vectors import to_unit_length
from tiger_jax.workdir.arrays import load_array
from tiger_jax.workdir.reading import reading

COLLABORATIVE = "collaborative.npy"  # in rqvae/, where vectors were joined to the text
# An item that nobody has bought yet is taken to be bought with what the items are that
# are nearest in text: so many, weighted by this power of their similarity.
_NEIGHBOURS, _POWER = 10, 4
_BLOCK = 512  # items whose neighbours are looked for at a time


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


def estimate_collaborative(
    text: Float[np.ndarray, "n E"],
    known_text: Float[np.ndarray, "N E"],
    known: Float32[np.ndarray, "N C"],
) -> Float32[np.ndarray, "n C"]:
    """What new items would be bought with, by the known items nearest in text.

    The mean of the ten nearest's vectors, weighted by the fourth power of the cosine of
    their texts; zeros where none is at all alike. Without it a new item has vectors
    such as no item of the training had.
    """
    estimated = np.zeros((len(text), known.shape[1]), np.float32)
    count = min(_NEIGHBOURS, len(known))
    known_unit = to_unit_length(known_text).T  # [E, N]
    for start in range(0, len(text) if count else 0, _BLOCK):
        rows = slice(start, start + _BLOCK)
        alike = np.maximum(to_unit_length(text[rows]) @ known_unit, 0.0)  # [b, N]
        nearest = np.argpartition(-alike, count - 1, axis=1)[:, :count]
        weights = np.take_along_axis(alike, nearest, axis=1) ** _POWER
        weights /= np.maximum(weights.sum(1, keepdims=True), 1e-12)
        estimated[rows] = np.einsum("bk,bkc->bc", weights, known[nearest])
    return estimated


def fill_collaborative(
    text: Float[np.ndarray, "N E"], collaborative: Float32[np.ndarray, "N C"]
) -> Float32[np.ndarray, "N C"]:
    """The same vectors, estimated for the items that no training history holds."""
    is_known = collaborative.any(axis=1)
    filled = collaborative.copy()
    filled[~is_known] = estimate_collaborative(
        text[~is_known], text[is_known], collaborative[is_known]
    )
    return filled


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
