"""k-means that gives the same centroids on every run, however many cores there are."""

import warnings

import numpy as np
from jaxtyping import Float, Float32

from tiger_jax.errors import InputError


def fit_kmeans(
    points: Float[np.ndarray, "N Z"],
    num_centroids: int,
    *,
    seed: int,
    max_iterations: int = 25,
    max_points: int = 131_072,
) -> Float32[np.ndarray, "K Z"]:
    """Finds centroids by scikit-learn's k-means.

    scikit-learn sums each thread's share of a centroid in the order in which the
    threads finish, so with many threads two runs differ in their last bits. One
    thread is used here: an interrupted fit that starts again ends the same.

    Args:
        seed: Decides k-means++ seeding, and which points are used if there are many.
        max_points: Points that are used; of more, a random part.

    Raises:
        InputError: There are fewer points than centroids.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    if len(points) < num_centroids:
        raise InputError(
            f"a codebook of {num_centroids} codewords can't be fitted to "
            f"{len(points)} items: leave the sizes out, and they follow the number of "
            "items"
        )
    if len(points) > max_points:
        rng = np.random.default_rng(seed)
        points = points[np.sort(rng.choice(len(points), max_points, replace=False))]
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Fewer distinct points than centroids; the report on use will say so.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = KMeans(
            num_centroids, n_init=1, max_iter=max_iterations, random_state=seed
        )
        kmeans.fit(np.asarray(points, np.float32))
    return kmeans.cluster_centers_.astype(np.float32)
