"""One state of a shop's catalogue, ready to be searched; it never changes."""

import bisect
import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int32, Int64

from tiger_jax.data.prepared import choose_categories
from tiger_jax.decoding.search import CatalogueWalk
from tiger_jax.decoding.trie import Trie, TriePlan, sort_prefixes
from tiger_jax.errors import InputError
from tiger_jax.recommending.filters import FilterSlots, as_text
from tiger_jax.semantic_ids.table import SemanticIdTable

# Columns of the items that no filter reads under their own names.
_NO_FIELDS = ("item_id", "title", "categories", "price")
ALL_ITEMS = "*"
"""Stands for an item id where attributes are set: all items without a value."""
MAX_VALUES_SHOWN = 200


class Catalogue:
    """Items with their Semantic IDs, texts, attributes, and the trie over them.

    Attributes:
        version: 0 as exported; each change of the catalogue has the next number.
        items: The columns of `PreparedData.items`, by item number.
        popularity: How often each item occurs in the training shop's histories.
        occurrences: The same in the histories that the recommender was trained on.
        numbers: The items' in the exported catalogue, -1 for those that joined.
        is_new: Items that the recommender has never seen in training.
        joined: The version in which each item came; 0 for the exported ones.
        attributes: Values set by hand, by field and item id (or `ALL_ITEMS`). They
            stand over those of `items`; read both through `column`.
        embeddings: For similar items and for titles to show; None if there are none.
        collaborative: What is joined to them as the items' content, if anything.
    """

    def __init__(
        self,
        table: SemanticIdTable,
        items: pa.Table,
        *,
        popularity: Int64[np.ndarray, " N"],
        occurrences: Int64[np.ndarray, " N"],
        is_new: Bool[np.ndarray, " N"],
        numbers: Int32[np.ndarray, " N"] | None = None,
        joined: Int32[np.ndarray, " N"] | None = None,
        version: int = 0,
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
        embeddings: Float32[np.ndarray, "N E"] | None = None,
        collaborative: Float32[np.ndarray, "N C"] | None = None,
        plan: TriePlan | None = None,
        sharding: jax.sharding.Sharding | None = None,
    ) -> None:
        """Builds the trie on the host; InputError if it doesn't fit the plan.

        Args:
            plan: The shapes that the programs were compiled for; the catalogue's
                own if None.
            sharding: Where the trie goes; the first local device by default.
        """
        self.version, self.table, self.items = version, table, items
        self.popularity, self.occurrences = popularity, occurrences
        exported = np.arange(len(is_new), dtype=np.int32)
        self.numbers = exported if numbers is None else numbers
        self.is_new = is_new
        self.joined = np.zeros(len(is_new), np.int32) if joined is None else joined
        self.attributes = attributes or {}
        self.embeddings, self.collaborative = embeddings, collaborative
        self.item_ids = table.item_ids
        self.number_of = {item_id: n for n, item_id in enumerate(table.item_ids)}
        self.host_trie = Trie.build(
            table.codes,
            table.codebook_sizes,
            plan=plan,
            attributes=np.zeros(table.num_items, np.uint32),
        )
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        self.sharding = sharding or device
        self._indexes: dict[str, dict[str, list[int]]] = {}
        self._numbers: dict[str, np.ndarray] = {}
        self.slots = FilterSlots(
            self.host_trie,
            sort_prefixes(table.codes, table.codebook_sizes),
            self.sharding,
        )

    @property
    def num_items(self) -> int:
        """N."""
        return self.table.num_items

    @property
    def capacity(self) -> int:
        """Most items that the trie has room for."""
        return self.host_trie.plan.item_capacity

    @functools.cached_property
    def walk(self) -> CatalogueWalk:
        """For scoring every item; its shapes follow from the plan alone."""
        walk = CatalogueWalk.build(self.host_trie, fills_plan=True)
        return jax.device_put(walk, self.sharding)

    @functools.cached_property
    def by_popularity(self) -> list[int]:
        """All items, the best known first."""
        return (-self.popularity).argsort(kind="stable").tolist()

    @functools.cached_property
    def lengths(self) -> Float32[np.ndarray, " N"]:
        """Of the embeddings."""
        return np.linalg.norm(self.embeddings, axis=1)

    @functools.cached_property
    def titles(self) -> list[str]:
        """What to show for each item."""
        return [
            title or f"(no title) {item_id}"
            for title, item_id in zip(self.column("title"), self.item_ids, strict=True)
        ]

    @functools.cached_property
    def categories(self) -> list[str]:
        """One telling category per item."""
        return choose_categories([paths or [] for paths in self.column("categories")])

    def search(self, text: str) -> list[int]:
        """Items in whose title and brand every word given begins one; best known first.

        "red sham" finds "Shampoo for red hair".
        """
        found: list[set[int]] = []
        for word in _words(text):
            start = bisect.bisect_left(self._words, word)
            end = bisect.bisect_left(self._words, word + "\U0010ffff")
            items = (self._items_with[own] for own in self._words[start:end])
            found.append(set().union(*items))
        numbers = np.array(sorted(set.intersection(*found) if found else ()), np.int64)
        order = np.argsort(-self.popularity[numbers], kind="stable")
        return numbers[order].tolist()

    def near_words(self, text: str) -> list[str]:
        """Words of titles and brands that are nearly those that none begins with."""
        near = [
            difflib.get_close_matches(word, self._words, 2, 0.7)
            for word in _words(text)
            if not self.search(word)
        ]
        return [word for words in near for word in words]

    @functools.cached_property
    def _items_with(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        texts = zip(self.titles, self.column("brand"), strict=True)
        for number, parts in enumerate(texts):
            for word in set(_words(" ".join(part or "" for part in parts))):
                found.setdefault(word, []).append(number)
        return found

    @functools.cached_property
    def _words(self) -> list[str]:
        return sorted(self._items_with)

    @property
    def fields(self) -> tuple[str, ...]:
        """What filters can name."""
        names = dict.fromkeys((*self.items.column_names, *self.attributes))
        return ("category", "price", *(n for n in names if n not in _NO_FIELDS))

    def values_of(self, field: str) -> dict[str, int]:
        """The most frequent values of a field, and how many items have each."""
        counts = {v: len(rows) for v, rows in self._index(field).items() if v}
        frequent = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return dict(frequent[:MAX_VALUES_SHOWN])

    def mask(self, checked: Mapping[str, Any]) -> Bool[np.ndarray, " N"]:
        """Which items pass a checked filter; InputError if a field is unknown."""
        passes = np.ones(self.num_items, bool)
        for field, wanted in checked.items():
            self.check_field(field)
            if isinstance(wanted, Mapping):
                passes &= self._in_range(field, wanted)
                continue
            own = np.zeros(self.num_items, bool)
            for value in wanted:
                own[self._index(field).get(value, [])] = True
            passes &= own
        return passes

    def check_field(self, field: str) -> None:
        """Refuses, by an InputError, a field that filters can't name."""
        if field not in self.fields:
            known = ", ".join(self.fields[:20])
            raise InputError(f"filter: no field {field[:60]!r}; there are {known}")

    def _in_range(
        self, field: str, ends: Mapping[str, float]
    ) -> Bool[np.ndarray, " N"]:
        if field not in self._numbers:
            values = [_as_number(v) for v in self.column(field)]
            self._numbers[field] = np.array(values)
        numbers = self._numbers[field]
        low, high = ends.get("min", -np.inf), ends.get("max", np.inf)
        return (numbers >= low) & (numbers <= high)  # unknown (NaN) never passes

    def column(self, field: str) -> list[Any]:
        """A field of every item: what was set by hand, or else what `items` says."""
        own: list[Any] = [None] * self.num_items
        if field in self.items.column_names:
            own = self.items[field].to_pylist()
        values = self.attributes.get(field, {})
        if ALL_ITEMS in values:
            own = [values[ALL_ITEMS] if v in (None, "", []) else v for v in own]
        for item_id, value in values.items():
            if item_id != ALL_ITEMS:
                own[self.number_of[item_id]] = value
        return own

    def _index(self, field: str) -> dict[str, list[int]]:
        """The items that have each value."""
        if field not in self._indexes:
            self._indexes[field] = self._build_index(field)
        return self._indexes[field]

    def _build_index(self, field: str) -> dict[str, list[int]]:
        if field == "category":
            paths = self.column("categories")
            values = [{name for path in own or () for name in path} for own in paths]
        else:
            own_values = self.column(field)
            values = [set() if v is None else {as_text(v)} for v in own_values]
        found: dict[str, list[int]] = {}
        for number, own in enumerate(values):
            for value in own:
                found.setdefault(value, []).append(number)
        return found


def _as_number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _words(text: str) -> Sequence[str]:
    return re.findall(r"\w+", text.casefold())
