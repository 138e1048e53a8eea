"""Published numbers, as data: what others report on the data sets we can recognise.

A row is only shown beside a run whose data has the very statistics of the paper's
(users, items, interactions). That a number is shown doesn't make it comparable in
every respect: whether seen items were masked, how same-day ties were ordered and
which seed was chosen is unstated in most sources.
"""

import dataclasses

METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


@dataclasses.dataclass(frozen=True)
class KnownData:
    """A public data set, by its statistics after preprocessing.

    Attributes:
        name: Key of the published rows.
        title: What to call it.
        num_users: Users.
        num_items: Items.
        num_interactions: Interactions.
        caveat: What differs between the paper's copy and the public one, if a
          reader should know.
    """

    name: str
    title: str
    num_users: int
    num_items: int
    num_interactions: int
    caveat: str = ""


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """One method's published result: Recall@5, NDCG@5, Recall@10, NDCG@10.

    Attributes:
        method: As its authors call it.
        values: In the order of `METRICS`.
        source: Where it was published.
        is_tiger: Whether it is the method of this code.
    """

    method: str
    values: tuple[float, float, float, float]
    source: str
    is_tiger: bool = False

    @property
    def metrics(self) -> dict[str, float]:
        """The values by metric name."""
        return dict(zip(METRICS, self.values, strict=True))


KNOWN_DATA = (
    KnownData("beauty", "Amazon 2014 Beauty", 22_363, 12_101, 198_502),
    KnownData("sports", "Amazon 2014 Sports and Outdoors", 35_598, 18_357, 296_337),
    KnownData("toys", "Amazon 2014 Toys and Games", 19_412, 11_924, 167_597),
)

_TABLE_1 = "Rajput et al. 2023, table 1"
_SEEDS = "Rajput et al. 2023, mean of 3 seeds"
_SASREC = "an open reproduction, 3 seeds"
_BEST = "best open reproduction known to us"


def _table_1(
    sasrec: tuple[float, float, float, float],
    s3_rec: tuple[float, float, float, float],
    tiger: tuple[float, float, float, float],
    tiger_mean: tuple[float, float, float, float],
) -> tuple[PublishedRow, ...]:
    return (
        PublishedRow("SASRec", sasrec, _TABLE_1),
        PublishedRow("S3-Rec", s3_rec, _TABLE_1),
        PublishedRow("TIGER", tiger, _TABLE_1, is_tiger=True),
        PublishedRow("TIGER, mean", tiger_mean, _SEEDS, is_tiger=True),
    )


PUBLISHED: dict[str, tuple[PublishedRow, ...]] = {
    "beauty": (
        *_table_1(
            sasrec=(0.0387, 0.0249, 0.0605, 0.0318),
            s3_rec=(0.0387, 0.0244, 0.0647, 0.0327),
            tiger=(0.0454, 0.0321, 0.0648, 0.0384),
            tiger_mean=(0.0441, 0.0309, 0.0642, 0.0374),
        ),
        PublishedRow(
            "TIGER, reproduced", (0.0414, 0.0270, 0.0651, 0.0346), _BEST, is_tiger=True
        ),
        # Not in the paper, and above it: leaving it out would mislead.
        PublishedRow("SASRec, full softmax", (0.0601, 0.0420, 0.0859, 0.0503), _SASREC),
    ),
    "sports": (
        *_table_1(
            sasrec=(0.0233, 0.0154, 0.0350, 0.0192),
            s3_rec=(0.0251, 0.0161, 0.0385, 0.0204),
            tiger=(0.0264, 0.0181, 0.0400, 0.0225),
            tiger_mean=(0.0278, 0.0189, 0.0419, 0.0234),
        ),
        PublishedRow(
            "TIGER, reproduced", (0.0240, 0.0155, 0.0394, 0.0204), _BEST, is_tiger=True
        ),
    ),
    "toys": (
        *_table_1(
            sasrec=(0.0463, 0.0306, 0.0675, 0.0374),
            s3_rec=(0.0443, 0.0294, 0.0700, 0.0376),
            tiger=(0.0521, 0.0371, 0.0712, 0.0432),
            tiger_mean=(0.0518, 0.0375, 0.0698, 0.0433),
        ),
        PublishedRow(
            "TIGER, reproduced", (0.0396, 0.0270, 0.0583, 0.0328), _BEST, is_tiger=True
        ),
    ),
}


def recognise(
    num_users: int, num_items: int, num_interactions: int
) -> KnownData | None:
    """Finds the public data set with exactly these statistics, if there is one."""
    found = (num_users, num_items, num_interactions)
    for known in KNOWN_DATA:
        if found == (known.num_users, known.num_items, known.num_interactions):
            return known
    return None
