"""Every stage: the only place that lists them.

To add a stage, add a line here, a function of its name in ``tiger_jax/stages/NAME.py``
and, where gin configures it, ``gin_configs/base/NAME.gin``.
"""

from typing import Literal, NamedTuple

Kind = Literal["pipeline", "comparison", "request"]
# A report shows the folders in the order of `_SHOWN`.
_TRAINED = "data embeddings semantic_ids recommender"
_SHOWN = (
    "data embeddings rqvae semantic_ids recommender sasrec evaluation candidates "
    "fusion bundle t5 recbole"
)


class Stage(NamedTuple):
    """A stage, as the command line and the messages know it.

    Attributes:
        kind: Whether a whole run has it ("pipeline"); the others run when they are
            named, to compare recommenders or to answer a request.
        writes: Its folder in the work directory; None for a stage without.
        reads: Folders that it needs, or takes in where they are there.
    """

    name: str
    kind: Kind
    writes: str | None
    reads: tuple[str, ...]


# Each after those whose folders it reads.
_TABLE: tuple[tuple[str, Kind, str | None, str], ...] = (
    ("prepare_data", "pipeline", "data", ""),
    ("embed_items", "pipeline", "embeddings", "data"),
    ("train_rqvae", "pipeline", "rqvae", "data embeddings"),
    ("assign_semantic_ids", "pipeline", "semantic_ids", "data embeddings rqvae"),
    ("train_recommender", "pipeline", "recommender", "data semantic_ids rqvae"),
    ("train_sasrec", "comparison", "sasrec", "data"),
    ("evaluate", "pipeline", "evaluation", f"{_TRAINED} sasrec"),
    ("list_candidates", "comparison", "candidates", f"{_TRAINED} evaluation"),
    ("fuse", "comparison", "fusion", f"{_TRAINED} rqvae sasrec candidates evaluation"),
    ("report", "pipeline", "report", _SHOWN),
    ("compare", "request", "compare", ""),
    ("recommend", "request", None, f"{_TRAINED} bundle"),
    ("export", "request", "bundle", f"{_TRAINED} rqvae"),
    ("update_catalogue", "request", "bundle.catalogue", "bundle"),
    ("serve", "request", None, "bundle"),
    ("prepare_shards", "request", None, ""),
    ("assign_shards", "request", None, "rqvae"),
    ("compile_for", "request", None, ""),
    ("export_t5", "request", "t5", "semantic_ids recommender"),
    ("export_recbole", "request", "recbole", "data semantic_ids"),
)
STAGES = {row[0]: Stage(*row[:3], tuple(row[3].split())) for row in _TABLE}


def names(*kinds: Kind) -> tuple[str, ...]:
    """Names of the stages of some kinds, in order."""
    return tuple(stage.name for stage in STAGES.values() if stage.kind in kinds)


PIPELINE = names("pipeline")
ON_REQUEST = names("comparison", "request")
# Which stage makes which folder, in order.
MADE_BY = {stage.writes: stage.name for stage in STAGES.values() if stage.writes}
