"""What more than one room does with vectors."""

import numpy as np
from jaxtyping import Float, Float32


def to_unit_length(vectors: Float[np.ndarray, "N E"]) -> Float32[np.ndarray, "N E"]:
    """Divides each vector by its length; one of length 0 stays."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
