"""The baselines that can be named by a string; one of one's own is named by itself."""

from collections.abc import Sequence

from tiger_jax.evaluation.baselines.baseline import Baseline
from tiger_jax.evaluation.baselines.item_cooccurrence import ItemCooccurrence
from tiger_jax.evaluation.baselines.popularity import Popularity
from tiger_jax.evaluation.baselines.sasrec import TrainedSasRec
from tiger_jax.evaluation.baselines.semantic_knn import DenseKnn, SemanticKnn

KNOWN: dict[str, type[Baseline]] = {
    baseline.name: baseline
    for baseline in (Popularity, ItemCooccurrence, SemanticKnn, DenseKnn, TrainedSasRec)
}
TITLES = {name: baseline.title for name, baseline in KNOWN.items()}
_RESERVED = ("tiger", "fusion")  # their rows stand beside those of the baselines


def resolve(baselines: Sequence[str | Baseline]) -> tuple[Baseline, ...]:
    """Turns names into baselines.

    Raises:
        ValueError: A name is unknown, taken or there twice, or something is no
            baseline; the message says which.
    """
    found = []
    for one in baselines:
        if isinstance(one, str):
            if one not in KNOWN:
                raise ValueError(
                    f"{one!r} is no baseline: known are {', '.join(KNOWN)}; name one "
                    "of your own as @my_module.MyBaseline()"
                )
            one = KNOWN[one]()
        elif not isinstance(one, Baseline):
            raise ValueError(f"{one!r} is neither a baseline's name nor a Baseline")
        if one.name in (*_RESERVED, *(other.name for other in found)):
            raise ValueError(f"the name {one.name!r} is taken: give each its own")
        found.append(one)
    return tuple(found)
