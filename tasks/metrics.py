"""Metric functions of the tasks: how high the target stands among the beams."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from tiger_jax.evaluation.metrics import compute_metrics
from tiger_jax.input_pipeline.vocabulary import TigerVocabulary

CUTOFFS = (1, 5, 10, 20)
MetricFn = Callable[..., dict[str, float]]


def make_beam_metric_fn(
    vocabulary: TigerVocabulary, cutoffs: Sequence[int] = CUTOFFS
) -> MetricFn:
    """Makes a seqio metric function of a model's beams.

    The model hands its beams over as the auxiliary value ``beams[n, M, T]``: tokens
    of M Semantic IDs, best first; a beam that reached no item is all padding. Seqio
    recognises the kind of metric by the names of the three arguments.

    It gives ``recall@k`` for every cutoff and ``ndcg@k`` for those above 1, averaged
    over examples. A cutoff beyond the number of beams is left out: nobody was ranked
    that low.
    """

    def beam_metrics(
        targets: Sequence[str],
        predictions: Sequence[str],
        aux_values: Mapping[str, Any],
    ) -> dict[str, float]:
        del predictions  # the first beam's text; it is among the beams
        wanted = np.array([vocabulary.encode(target) for target in targets])  # [n, T]
        return ranking_metrics(np.asarray(aux_values["beams"]), wanted, cutoffs)

    return beam_metrics


def ranking_metrics(
    beams: Int[np.ndarray, "n M T"],
    targets: Int[np.ndarray, "n T"],
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[str, float]:
    """Recall and NDCG of one target an example, by `evaluation.metrics`.

    Examples:
        >>> beams = np.array([[[1, 3], [2, 4]], [[2, 3], [1, 4]]])
        >>> found = ranking_metrics(beams, np.array([[2, 4], [2, 4]]), (1, 2))
        >>> {name: round(value, 4) for name, value in found.items()}
        {'recall@1': 0.0, 'recall@2': 0.5, 'ndcg@2': 0.3155}
    """
    is_hit = (beams == targets[:, None, :]).all(-1)  # [n, M]
    num_beams = beams.shape[1]
    rank = np.where(is_hit.any(-1), is_hit.argmax(-1), num_beams).astype(np.int32)
    known = sorted(k for k in cutoffs if k <= num_beams)
    names = [
        f"{m}@{k}" for k in known for m in ("recall", "ndcg") if (m, k) != ("ndcg", 1)
    ]
    return compute_metrics(rank, tuple(names))
