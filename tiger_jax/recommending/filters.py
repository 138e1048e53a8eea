"""Which items a request allows: filters over fields, as masks and as bits of a trie.

A filter names fields and the values that pass:

    {"category": ["Shampoo", "Conditioner"], "in_stock": true, "price": {"max": 20}}

An item passes if it passes for every field named, and for a field if it has any of
the values. The trie's search knows single bits, of which a node has one if an item
under it has. So each distinct filter gets a bit of its own, for as long as there is
room, and whatever a mask over the items can say is exact in the search, too.
"""

import dataclasses
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, UInt32

from tiger_jax.decoding.trie import SortedPrefixes, Trie
from tiger_jax.decoding.trie.attributes import EVERY_ITEM, bits_of_items, bits_of_nodes
from tiger_jax.errors import InputError

NUM_SLOTS = 31  # bit 31 marks every item
MAX_FIELDS, MAX_VALUES = 8, 100
RANGE = {"min", "max"}


def check_filter(value: Any) -> dict[str, Any]:
    """Brings a filter into its one form, values or a range by field, or InputError."""
    if not isinstance(value, Mapping):
        raise InputError(
            'a filter is an object of fields, such as {"category": ["Shampoo"]}'
        )
    if len(value) > MAX_FIELDS:
        raise InputError(f"a filter has at most {MAX_FIELDS} fields, not {len(value)}")
    checked: dict[str, Any] = {}
    for field, wanted in value.items():
        if isinstance(wanted, Mapping):
            checked[field] = _check_range(field, wanted)
            continue
        values = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
        if not all(isinstance(v, str | bool | int | float) for v in values):
            raise InputError(
                f"filter {field!r}: values are texts, numbers or true and false"
            )
        if len(values) > MAX_VALUES:
            raise InputError(
                f"filter {field!r}: at most {MAX_VALUES} values, not {len(values)}"
            )
        checked[field] = sorted(dict.fromkeys(as_text(v) for v in values))
    return checked


def _check_range(field: str, wanted: Mapping[str, Any]) -> dict[str, float]:
    numbers = {
        key: float(number)
        for key, number in wanted.items()
        if isinstance(number, int | float) and not isinstance(number, bool)
    }
    if not wanted or set(numbers) != set(wanted) or not set(wanted) <= RANGE:
        raise InputError(f'filter {field!r}: a range is {{"min": 5, "max": 20}}')
    if not all(np.isfinite(number) for number in numbers.values()):
        raise InputError(f"filter {field!r}: a range's ends are finite numbers")
    return numbers


def as_text(value: Any) -> str:
    """One form for texts, numbers and truth values, so that 1 and "1" are equal."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def filter_key(checked: Mapping[str, Any]) -> str:
    """Names a checked filter: equal filters have equal names."""
    return json.dumps(checked, sort_keys=True, ensure_ascii=False)


class FilterSlots:
    """The bits of one catalogue's trie, given to masks as they are asked for."""

    def __init__(
        self, trie: Trie, prefixes: SortedPrefixes, sharding: jax.sharding.Sharding
    ) -> None:
        """Takes a trie that was built with one word of attributes an item."""
        self._prefixes, self._sharding = prefixes, sharding
        self._words = np.zeros((len(prefixes.order), 1), np.uint32)
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        self._trie = self._with_bits(jax.device_put(trie, sharding), self._words)

    def assign(
        self, masks: Mapping[str, Callable[[], Bool[np.ndarray, " N"]]]
    ) -> tuple[Trie, dict[str, np.uint32]]:
        """Gives each mask a bit, in place of those not asked for longest.

        The trie that is returned has these bits; later calls change another copy.

        Args:
            masks: What makes each mask, by its name; "" is no filter. At most
                `NUM_SLOTS` others.
        """
        with self._lock:
            slots, words, trie = self._slots.copy(), self._words, self._trie
            for name in filter(None, masks):
                if name in slots:
                    slots.move_to_end(name)
                    continue
                if words is self._words:
                    words = words.copy()
                slot = _take_slot(slots, masks)
                slots[name], bit = slot, np.uint32(1 << slot)
                words[:, 0] &= ~bit
                words[masks[name](), 0] |= bit
            if words is not self._words:
                trie = self._with_bits(trie, words)
            # Only now: what failed before this line has changed nothing.
            self._slots, self._words, self._trie = slots, words, trie
            bits = {n: np.uint32(1 << slots[n]) for n in masks if n}
            return trie, {"": EVERY_ITEM, **bits}

    def _with_bits(self, trie: Trie, words: UInt32[np.ndarray, "N 1"]) -> Trie:
        own = bits_of_items(words, None, len(words))
        bits = bits_of_nodes(own, self._prefixes, trie.plan)
        # A copy to the device that fails shows here, not in a later search.
        bits = jax.block_until_ready(jax.device_put(bits, self._sharding))
        return dataclasses.replace(trie, attributes=bits)


def _take_slot(slots: OrderedDict[str, int], needed: Mapping[str, Any]) -> int:
    """A free bit, or that of the mask not asked for longest."""
    if unused := set(range(NUM_SLOTS)) - set(slots.values()):
        return min(unused)
    return slots.pop(next(name for name in slots if name not in needed))
