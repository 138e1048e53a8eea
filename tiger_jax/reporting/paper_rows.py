"""Published numbers, as data: what others report on the data sets we can recognise.

A row is only shown beside a run whose data has the very statistics of the paper's
(users, items, interactions). That a number is shown doesn't make it comparable in
every respect: whether seen items were masked, how same-day ties were ordered and
which seed was chosen is unstated in most sources.
"""

import csv
import dataclasses
from pathlib import Path

from tiger_jax.data.prepared import PreparedData

METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")


@dataclasses.dataclass(frozen=True)
class KnownData:
    """A public data set, by its statistics after preprocessing."""

    name: str
    title: str
    num_users: int
    num_items: int
    num_interactions: int


@dataclasses.dataclass(frozen=True)
class PublishedRow:
    """One method's published result.

    Attributes:
        metrics: Those of `METRICS` that are published.
        is_masked: Seen items were masked, as far as is said; else nothing is.
    """

    method: str
    metrics: dict[str, float]
    source: str
    is_tiger: bool = False
    is_masked: bool = False


KNOWN_DATA = (
    KnownData("beauty", "Amazon 2014 Beauty", 22_363, 12_101, 198_502),
    KnownData("sports", "Amazon 2014 Sports and Outdoors", 35_598, 18_357, 296_337),
    KnownData("toys", "Amazon 2014 Toys and Games", 19_412, 11_924, 167_597),
)


def _read_published() -> dict[str, tuple[PublishedRow, ...]]:
    with open(Path(__file__).with_name("published.csv"), encoding="utf-8") as file:
        found: dict[str, tuple[PublishedRow, ...]] = {}
        for line in csv.DictReader(file):
            row = PublishedRow(
                method=line["method"],
                metrics={m: float(line[m]) for m in METRICS if line[m]},
                source=line["source"],
                is_tiger=line["is_tiger"] == "yes",
                is_masked=line["is_masked"] == "yes",
            )
            found[line["data"]] = (*found.get(line["data"], ()), row)
    return found


# By data set. Rows that aren't in the paper and are above it (a SASRec on Beauty) are
# among them: leaving these out would mislead.
PUBLISHED = _read_published()


def recognise(
    num_users: int, num_items: int, num_interactions: int
) -> KnownData | None:
    """Finds the public data set with exactly these statistics, if there is one."""
    found = (num_users, num_items, num_interactions)
    return next((k for k in KNOWN_DATA if dataclasses.astuple(k)[2:] == found), None)


def recognise_data(
    data: PreparedData | None,
) -> tuple[KnownData | None, tuple[PublishedRow, ...]]:
    """The public data set that this is, if any, and what is published on it."""
    if data is None:
        return None, ()
    known = recognise(data.num_users, data.num_items, len(data.histories.items))
    return known, PUBLISHED[known.name] if known else ()
