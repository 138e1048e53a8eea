"""Bootstrap intervals over users, without drawing a single user."""

import numpy as np
from jaxtyping import Float64, Int32

from tiger_jax.evaluation import metrics

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
PERCENTILES = ((1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2)


def resampled_means(
    values: Float64[np.ndarray, "U R"], *, num_resamples: int, seed: int
) -> Float64[np.ndarray, "Q R"]:
    """Draws the means that Q resamples of the U users would have.

    A resample takes U users with replacement. Only how often each *distinct* row
    of values turns up matters, and those counts are one multinomial draw. A
    metric at cutoff 20 has at most 21 distinct values, so Q x U draws become
    Q x 21: the same distribution, a thousand times sooner.
    """
    rows, counts = np.unique(values, axis=0, return_counts=True)  # [D, R], [D]
    num_users = len(values)
    drawn = np.random.default_rng(seed).multinomial(
        num_users, counts / num_users, size=num_resamples
    )  # [Q, D]
    return drawn @ rows / num_users


def metric_intervals(
    ranks: Int32[np.ndarray, " U"],
    names: tuple[str, ...] = metrics.REPORTED,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the mean of each metric, over users.

    All metrics see the same resamples. The interval says how much the number
    would move with other users from the same population; it says nothing about
    the seed of the training run.
    """
    values = np.stack([metrics.values_per_user(name, ranks) for name in names], 1)
    means = resampled_means(values, num_resamples=num_resamples, seed=seed)
    low, high = np.quantile(means, PERCENTILES, axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}


def paired_difference(
    ranks: Int32[np.ndarray, " U"],
    other: Int32[np.ndarray, " U"],
    name: str,
    *,
    seed: int = 0,
) -> tuple[float, float, float]:
    """How much better `ranks` does than `other` on the same users.

    Pairing by user removes what makes both easy or hard, so the interval is much
    narrower than two separate ones suggest. An interval that holds 0 is a draw.

    Returns:
        The mean difference, and the two ends of its interval.
    """
    ours, theirs = (metrics.values_per_user(name, r) for r in (ranks, other))
    gain = (ours - theirs)[:, None]
    means = resampled_means(gain, num_resamples=NUM_RESAMPLES, seed=seed)
    low, high = np.quantile(means, PERCENTILES)
    return float(gain.mean()), float(low), float(high)
