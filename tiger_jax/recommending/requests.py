"""What is asked of a recommender, and what it answers."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int32

from tiger_jax.errors import InputError
from tiger_jax.recommending.catalogue import Catalogue
from tiger_jax.recommending.filters import check_filter, filter_key

MAX_IDS = 10_000
"""Items of a history, and excluded ones, that a request may name."""

Group = Literal["any", "known", "new"]


def places_for_new(k: int, epsilon: float) -> int:
    """Places of a list of k that are kept for new items, rounded up.

    Examples:
        >>> places_for_new(10, 0.05), places_for_new(100, 0.07), places_for_new(10, 0.0)
        (1, 7, 0)
    """
    return math.ceil(round(k * epsilon, 9))  # .07 * 100 is a little more than 7


@dataclasses.dataclass(frozen=True)
class Request:
    """One history to continue.

    Attributes:
        history: Item ids, oldest first.
        user: The user's id, for models that were trained with user tokens; users
            the training didn't know, and None, are nobody in particular.
        exclude: Item ids not to recommend.
        exclude_history: Nor those in the history.
        filter: See `filters`.
        prefix: Codewords that Semantic IDs must begin with; None leaves one free.
        temperature: Draw items at this temperature rather than take the best.
        seed: Of the draws: the same seed gives the same items.
        epsilon: Share of the list, in whole places rounded up, that is kept for items
            the training hasn't seen, and the most they get (Rajput et al. 2023, 4.3).
            None: all compete.
        exact: Score every item of the catalogue rather than search by beams.
    """

    history: Sequence[str]
    k: int = 10
    user: str | None = None
    exclude: Sequence[str] = ()
    exclude_history: bool = True
    filter: Any = None
    prefix: Sequence[int | None] = ()
    temperature: float | None = None
    seed: int = 0
    epsilon: float | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k is {self.k}: it must be positive")
        for name in ("history", "exclude"):
            ids = getattr(self, name)
            if isinstance(ids, str) or not all(isinstance(i, str) for i in ids):
                raise InputError(f"{name} must be a list of item ids (texts)")
            if len(ids) > MAX_IDS:
                raise InputError(f"{name} has {len(ids)} items; at most {MAX_IDS}")
        if self.temperature is not None and not 1e-3 <= self.temperature <= 1e3:
            raise InputError(
                f"temperature is {self.temperature}: it must lie in 0.001 … 1000"
            )
        if self.epsilon is not None and not 0 <= self.epsilon <= 1:
            raise InputError(f"epsilon is {self.epsilon}: it must lie in 0 … 1")
        if not 0 <= self.seed < 1 << 32:
            raise InputError(f"seed is {self.seed}: it must lie in 0 … 2^32 - 1")
        if self.exact and self.temperature is not None:
            raise InputError("exact and temperature exclude each other")

    @property
    def groups(self) -> tuple[Group, ...]:
        """The lists that the answer is made of."""
        if self.epsilon is None:
            return ("any",)
        known: tuple[Group, ...] = ("known",) if self.num_new < self.k else ()
        new: tuple[Group, ...] = ("new",) if self.num_new else ()
        return known + new

    @property
    def num_new(self) -> int:
        """Most new items in the list, where epsilon says so."""
        return places_for_new(self.k, self.epsilon or 0.0)

    def normalizes_groups(self, normalize: str) -> bool:
        """Whether each group's scores are shares of that group's own probability.

        Draws, and a search normalised over children, see the items that may be found.
        """
        is_searched = self.temperature is None and not self.exact
        return self.temperature is not None or (is_searched and normalize == "children")


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A request in the terms of one catalogue.

    Attributes:
        known: The history's items that the catalogue has, oldest first.
        unknown_items: The others' ids.
        exclude: Item numbers not to recommend.
        filter: Checked; None for none.
        prefix: One codeword per level; -1 leaves it free.
    """

    request: Request
    catalogue: Catalogue
    known: Int32[np.ndarray, " h"]
    unknown_items: tuple[str, ...]
    exclude: Int32[np.ndarray, " x"]
    filter: dict[str, Any] | None
    prefix: Int32[np.ndarray, " T"]

    @property
    def fits_prefix(self) -> Bool[np.ndarray, " N"]:
        """Items whose Semantic IDs begin as wanted."""
        prefix = self.prefix[None, :]
        return ((prefix < 0) | (self.catalogue.table.codes == prefix)).all(1)

    def mask_name(self, group: Group, *, too_many: bool) -> str:
        """Names what keeps items out in one of the groups; "" if nothing does."""
        parts: dict[str, Any] = {}
        if self.filter:
            parts["filter"] = filter_key(self.filter)
        if group != "any":
            parts["group"] = group
        if too_many:
            parts["exclude"] = np.unique(self.exclude).tolist()
        return filter_key(parts) if parts else ""


def resolve(request: Request, catalogue: Catalogue) -> Resolved:
    """Looks a request's items up; InputError if its filter or prefix doesn't fit."""
    number_of = catalogue.number_of
    known = [number_of[i] for i in request.history if i in number_of]
    unknown = tuple(i for i in request.history if i not in number_of)
    exclude = [number_of[i] for i in request.exclude if i in number_of]
    if request.exclude_history:
        exclude += known
    checked = check_filter(request.filter) if request.filter else None
    for field in checked or ():
        catalogue.check_field(field)
    sizes = catalogue.table.codebook_sizes
    if len(request.prefix) > len(sizes):
        raise InputError(
            f"prefix has {len(request.prefix)} codewords; Semantic IDs {len(sizes)}"
        )
    prefix = np.full(len(sizes), -1, np.int32)
    for level, codeword in enumerate(request.prefix):
        if codeword is not None and not 0 <= codeword < sizes[level]:
            raise InputError(
                f"prefix: codeword {codeword} at level {level}, whose codebook has "
                f"{sizes[level]}"
            )
        prefix[level] = -1 if codeword is None else codeword
    return Resolved(
        request,
        catalogue,
        np.array(known, np.int32),
        unknown,
        np.array(list(dict.fromkeys(exclude)), np.int32),
        checked,
        prefix,
    )


@dataclasses.dataclass(frozen=True)
class ShownItem:
    """An item as it is shown.

    Attributes:
        is_new: Whether the training has never seen it.
    """

    item_id: str
    title: str
    category: str
    semantic_id: tuple[int, ...]
    is_new: bool

    @classmethod
    def of(cls, catalogue: Catalogue, number: int, **more: Any) -> Any:
        """Shows a catalogue's item; `more` are the fields that a subclass adds."""
        return cls(
            item_id=catalogue.item_ids[number],
            title=catalogue.titles[number],
            category=catalogue.categories[number],
            semantic_id=tuple(catalogue.table.codes[number].tolist()),
            is_new=bool(catalogue.is_new[number]),
            **more,
        )


@dataclasses.dataclass(frozen=True)
class RecommendedItem(ShownItem):
    """One place of a list.

    Attributes:
        score: Log-probability of the item's Semantic ID given the history; with a
            dense head, what `searcher.DenseWeights` makes of it and log p(item); of
            the most popular items, their number of interactions.
    """

    score: float


@dataclasses.dataclass(frozen=True)
class SimilarItem(ShownItem):
    """An item like another one.

    Attributes:
        shared_levels: Leading codewords that the two Semantic IDs share.
        cosine: Of the two items' embeddings; None without embeddings.
    """

    shared_levels: int
    cosine: float | None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is recommended to one history, best (or first drawn) first.

    Attributes:
        unknown_items: Items of the history that the catalogue doesn't have; they
            are left out.
        by: "tiger", or "popularity" where nothing was left of the history.
        version: The catalogue's.
        merged: Of an epsilon's two groups: "score", or "share" where each group's
            probabilities sum to 1, so that their scores can't be compared: each is in
            its own order, and the new items are spread evenly through the list.
        model: The beginning of the bundle's hash; "" for parts of no bundle.
    """

    items: tuple[RecommendedItem, ...]
    unknown_items: tuple[str, ...]
    by: Literal["tiger", "popularity"]
    version: int
    merged: Literal["score", "share"] = "score"
    model: str = ""
