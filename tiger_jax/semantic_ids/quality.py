"""How good a set of codes is: use, collisions, category purity, reconstruction."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Real

from tiger_jax.errors import InputError, flag
from tiger_jax.semantic_ids.collisions import group_rows

# The paper: "at least 80 % codebook usage" in RQ-VAE training (section 4).
MINIMUM_USE = 0.8
_SHUFFLES = 5


def describe_codes(
    codes: Int[np.ndarray, "N L"],
    codebook_sizes: Sequence[int],
    *,
    categories: Sequence[str] | None = None,
    reconstruction_errors: Sequence[float] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures learned codewords, without the collision level.

    Args:
        categories: One name per item, "" for unknown.
        reconstruction_errors: L of them.
        seed: Decides the shuffles that purity is compared with.

    Returns:
        ``num_items``; ``collision_rate``, 1 - distinct codes / items;
        ``colliding_items``, those that share all codewords with another one;
        ``largest_group`` of such; and ``levels``, for each level the codewords used,
        their perplexity, and for the prefixes that end there how many are distinct,
        and their category purity beside the same with categories shuffled.
    """
    levels = []
    for level, size in enumerate(codebook_sizes):
        groups = group_rows(codes[:, : level + 1])
        counts = np.bincount(codes[:, level], minlength=size)
        used = int(np.count_nonzero(counts))
        purity = shuffled = None
        if categories is not None:
            purity, shuffled = category_purity(groups, categories, seed=seed)
        error = None if reconstruction_errors is None else reconstruction_errors[level]
        levels.append(
            {
                "level": level,
                "codebook_size": int(size),
                "codewords_used": used,
                "use": used / size,
                "perplexity": perplexity(counts),
                "distinct_prefixes": int(groups.max(initial=-1)) + 1,
                "category_purity": purity,
                "category_purity_shuffled": shuffled,
                "reconstruction_error": error,
            }
        )
    group_sizes = np.bincount(groups)
    return {
        "num_items": len(codes),
        "collision_rate": 1 - len(group_sizes) / max(len(codes), 1),
        "colliding_items": int(group_sizes[group_sizes > 1].sum()),
        "largest_group": int(group_sizes.max(initial=0)),
        "levels": levels,
    }


def perplexity(counts: Real[np.ndarray, " K"]) -> float:
    """exp(entropy) of how often each codeword is used: K if all equally often.

    Examples:
        >>> perplexity(np.array([5, 5, 0, 0]))
        2.0
    """
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(share * np.log(share)).sum()).round(6))


def category_purity(
    groups: Int[np.ndarray, " N"], categories: Sequence[str], *, seed: int = 0
) -> tuple[float | None, float | None]:
    """Share of items in their group's most common category.

    Groups of one item are always pure, so the number means something only beside
    the same one with the categories shuffled over the items.

    Args:
        categories: One name per item; items named "" are left out.

    Returns:
        The purity and its mean over 5 shuffles; None where no category is known.

    Examples:
        >>> category_purity(np.array([0, 0, 0, 1]), ["a", "a", "b", "b"])[0]
        0.75
    """
    names, numbers = np.unique(np.asarray(categories, np.str_), return_inverse=True)
    is_known = names[numbers] != ""
    numbers, groups = numbers[is_known], groups[is_known]
    if not len(numbers):
        return None, None
    groups = group_rows(groups[:, None])
    rng = np.random.default_rng(seed)
    shuffled = [_purity(groups, rng.permutation(numbers)) for _ in range(_SHUFFLES)]
    return _purity(groups, numbers), float(np.mean(shuffled))


def _purity(groups: Int[np.ndarray, " N"], numbers: Int[np.ndarray, " N"]) -> float:
    width = int(numbers.max()) + 1
    pairs, counts = np.unique(groups * width + numbers, return_counts=True)
    largest = np.zeros(int(groups.max()) + 1, np.int64)
    np.maximum.at(largest, pairs // width, counts)
    return float(largest.sum() / len(groups))


def check_use(
    quality: dict[str, Any], *, accept: bool, minimum: float, sizes_name: str = ""
) -> str | None:
    """A warning, if there is reason and `accept` lets it pass; else an InputError.

    Args:
        sizes_name: What gin calls the codebooks' sizes, if they can be set there.
    """
    poor = [level for level in quality["levels"] if level["use"] < minimum]
    if not poor:
        return None
    parts = ", ".join(
        f"{level['codewords_used']} of {level['codebook_size']} codewords at level "
        f"{level['level']}"
        for level in poor
    )
    message = f"poor codebooks: only {parts} are used (less than {minimum:.0%})"
    if accept:
        return message
    used = min(level["codewords_used"] for level in quality["levels"])
    sizes = (1 << max(used, 2).bit_length() - 1,) * len(quality["levels"])
    smaller = f", as in {flag(sizes_name, sizes)}" if sizes_name else ""
    others = ""
    if sizes_name.startswith("rqvae."):
        others = (
            ", a smaller learning rate, more steps, or "
            "--gin.train_rqvae.quantizer='@quantizers.ResidualKMeans()'"
        )
    raise InputError(
        f"{message}: try smaller ones{smaller}{others}; or go on knowingly with "
        + flag("train_rqvae.accept_poor_codebooks", True)
    )


def format_quality(quality: dict[str, Any]) -> str:
    """The report as a block of text."""
    lines = [
        f"{'level':>5} {'used':>11} {'perplexity':>10} {'prefixes':>9} "
        f"{'purity (shuffled)':>18} {'error':>6}"
    ]
    for level in quality["levels"]:
        used = f"{level['codewords_used']}/{level['codebook_size']}"
        purity, shuffled = level["category_purity"], level["category_purity_shuffled"]
        pure = "-" if purity is None else f"{purity:.3f} ({shuffled:.3f})"
        error = level["reconstruction_error"]
        lines.append(
            f"{level['level']:>5} {used:>11} {level['perplexity']:>10.1f} "
            f"{level['distinct_prefixes']:>9,} {pure:>18} "
            f"{'-' if error is None else f'{error:.3f}':>6}"
        )
    lines.append(
        f"{quality['collision_rate']:.2%} collisions: {quality['colliding_items']:,} "
        f"of {quality['num_items']:,} items share all learned codewords with another, "
        f"at most {quality['largest_group']} the same"
    )
    return "\n".join(lines)
