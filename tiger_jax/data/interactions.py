"""From raw interactions to histories: k-core, item numbers, chronological order."""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int, Int64

from tiger_jax.config import config
from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.text_numbers import number_texts
from tiger_jax.errors import InputError, flag
from tiger_jax.histories import Histories, offsets_of
from tiger_jax.workdir.json_files import ADDED_LATER

PAPER_K_CORE = 5
TIE_ORDERS = ("data", "item", "shuffle")
MIN_HISTORY = 3
"""One interaction each to train on, to validate on and to test on."""
# Interactions that are put in order at a time, about.
_BLOCK_ROWS = 1 << 14


@config("interactions")
class InteractionsConfig:
    """Which interactions count, and in which order.

    Attributes:
        k_core: Users and items keep at least this many interactions each: those with
            fewer go, until none has fewer. Repeated interactions of a user with an
            item all count, and all stay. 0 filters nothing. None is 5, as in the paper;
            but a generated shop stays whole, since its ceiling holds for the whole.
        tie_order: Order of a user's interactions at the same time. "data": as they
            stand in the file. "item": by item identifier, as in preprocessings that
            sorted the raw Amazon files. "shuffle": at random, by the seed.
        keep_all_items: Keep items without interactions in the catalogue, where they
            can still be recommended. A generated shop keeps them where k_core is None.
        duplicates: "keep" interactions of the same user and item at the same time, or
            "drop" all but the first.
    """

    k_core: int | None = None
    tie_order: str = "data"
    keep_all_items: bool = False
    duplicates: Literal["keep", "drop"] = field(default="keep", metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        if self.tie_order not in TIE_ORDERS:
            raise InputError(
                f"InteractionsConfig.tie_order is {self.tie_order!r}: choose one of "
                f"{', '.join(TIE_ORDERS)}"
            )
        if self.k_core is not None and self.k_core < 0:
            raise InputError(
                f"InteractionsConfig.k_core is {self.k_core}: it can't be negative"
            )

    def resolved(self, *, is_generated: bool) -> "InteractionsConfig":
        """Fills in the k_core that None stands for."""
        if self.k_core is not None:
            return self
        if is_generated:
            return replace(self, k_core=0, keep_all_items=True)
        return replace(self, k_core=PAPER_K_CORE)


@dataclass(frozen=True)
class NumberedShop:
    """A catalogue by item number, users by user number, and their histories.

    Attributes:
        items_file_rows: Row in the raw items of each item number.
        user_ids: Identifier of each user number, in order of first appearance.
        notes: What the user should know about the interactions.
    """

    items_file_rows: Int64[np.ndarray, " N"]
    user_ids: pa.Array
    histories: Histories
    counts: dict[str, int]
    notes: tuple[str, ...] = ()


def build_histories(
    shop: RawShop, config: InteractionsConfig, *, seed: int
) -> NumberedShop:
    """Filters a shop's interactions, numbers its items and orders its histories.

    Item numbers are a random permutation, so that no number tells anything about
    its item; raw files are often sorted, and a model or a tie rule could use it.

    Raises:
        InputError: Too little is left to train on.
    """
    config = config.resolved(is_generated=shop.is_generated)
    k = config.k_core
    assert k is not None
    users, user_ids = number_texts(shop.interactions["user_id"])
    item_ids = shop.items["item_id"].combine_chunks()
    rows = pc.index_in(shop.interactions["item_id"], value_set=item_ids)
    items = rows.to_numpy().astype(np.int64)
    times = shop.interactions["timestamp"].to_numpy()

    num_raw = len(users)
    is_repeated = find_repeated(users, items, times)
    notes = []
    if is_repeated.any():
        what = (
            f"{is_repeated.sum():,} of {num_raw:,} interactions repeat an earlier one"
        )
        drop = flag("interactions.InteractionsConfig.duplicates", "drop")
        notes.append(
            f"{what} (same user, item and time) "
            + (
                "and are left out"
                if config.duplicates == "drop"
                else f"and count; leave them out with {drop}"
            )
        )
    if config.duplicates == "drop":
        users, items, times = (v[~is_repeated] for v in (users, items, times))

    is_kept = k_core(users, items, min_user=k, min_item=k)
    # Users whose history is too short to split go too, and what only they held up.
    num_in_core = len(_distinct(users[is_kept]))
    if k < MIN_HISTORY:
        is_kept = k_core(users, items, min_user=MIN_HISTORY, min_item=k)
    num_users = len(_distinct(users[is_kept]))
    counts = {
        "raw_users": len(user_ids),
        "raw_items": shop.items.num_rows,
        "raw_interactions": num_raw,
        "users_with_too_short_history": num_in_core - num_users,
    }
    _refuse_too_little(is_kept, users, k, counts)

    kept_users, kept_items = users[is_kept], items[is_kept]
    ties = _tie_keys(shop, kept_items, config.tie_order, seed)
    order = chronological_order(kept_users, times[is_kept], ties)
    user_numbers = _distinct(kept_users)
    lengths = np.bincount(kept_users, minlength=len(user_ids))[user_numbers]
    if config.keep_all_items:
        in_catalogue = np.arange(shop.items.num_rows)
    else:
        in_catalogue = _distinct(kept_items)
    items_file_rows = shuffle_rows(in_catalogue, seed)
    number_of_row = np.full(shop.items.num_rows, -1, np.int32)
    number_of_row[items_file_rows] = np.arange(len(items_file_rows), dtype=np.int32)
    histories = Histories(number_of_row[kept_items[order]], offsets_of(lengths))
    kept_ids = user_ids.take(pa.array(user_numbers))
    return NumberedShop(items_file_rows, kept_ids, histories, counts, tuple(notes))


def k_core(
    users: Int64[np.ndarray, " total"],
    items: Int64[np.ndarray, " total"],
    *,
    min_user: int,
    min_item: int,
) -> Bool[np.ndarray, " total"]:
    """Marks the largest set of interactions in which no user or item has too few.

    Removing the users and items with too few, again and again, ends in the same
    set whatever the order; here all of them go at once.

    Examples:
        >>> users, items = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 1])
        >>> k_core(users, items, min_user=2, min_item=2).tolist()
        [True, True, True, True, False]
    """
    rows = np.arange(len(users))
    while len(rows):
        kept_users, kept_items = users[rows], items[rows]
        has_enough = np.bincount(kept_users) >= min_user
        is_kept = has_enough[kept_users]
        has_enough = np.bincount(kept_items) >= min_item
        is_kept &= has_enough[kept_items]
        if is_kept.all():
            break
        rows = rows[is_kept]
    mask = np.zeros(len(users), bool)
    mask[rows] = True
    return mask


def find_repeated(
    users: Int64[np.ndarray, " total"],
    items: Int64[np.ndarray, " total"],
    times: np.ndarray,
) -> Bool[np.ndarray, " total"]:
    """Marks the interactions that equal an earlier one in user, item and time."""
    order = chronological_order(users, times, items)
    is_same = np.ones(max(len(order) - 1, 0), bool)
    for values in (users, items, times):
        is_same &= values[order[1:]] == values[order[:-1]]
    is_repeated = np.zeros(len(users), bool)
    is_repeated[order[1:][is_same]] = True
    return is_repeated


def chronological_order(
    users: Int64[np.ndarray, " total"],
    times: np.ndarray,
    ties: Int[np.ndarray, " total"] | None,
) -> Int64[np.ndarray, " total"]:
    """Orders interactions by user, then time, then `ties`, then as they stand.

    Sorts blocks of users one after the other, each small enough for a core's cache.
    """
    if not len(users):
        return np.empty(0, np.int64)
    num_users = int(users.max()) + 1
    # A block's number and a user's place in it fit 16 bits, which numpy sorts by
    # radix: 2^bits users a block.
    bits = (num_users * _BLOCK_ROWS // len(users)).bit_length()
    bits = max(min(bits, 16), num_users.bit_length() - 16, 0)
    blocks = (users >> bits).astype(np.uint16)
    within = users & ((1 << bits) - 1)
    if bits <= 16:
        within = within.astype(np.uint16)
    order = np.argsort(blocks, kind="stable")
    start = 0
    for end in np.cumsum(np.bincount(blocks)).tolist():
        rows = order[start:end]
        keys = [] if ties is None else [ties[rows]]
        keys += [times[rows], within[rows]]
        rows[:] = rows[np.lexsort(keys)]  # stable; the last key counts first
        start = end
    return order


def shuffle_rows(rows: Int64[np.ndarray, " N"], seed: int) -> Int64[np.ndarray, " N"]:
    """The item numbering: which row gets number 0, 1, 2, ..."""
    return np.random.default_rng([seed, 0]).permutation(rows)


def _tie_keys(
    shop: RawShop, items: Int64[np.ndarray, " total"], tie_order: str, seed: int
) -> Int64[np.ndarray, " total"] | None:
    if tie_order == "data":
        return None
    if tie_order == "shuffle":
        return np.random.default_rng([seed, 1]).permutation(len(items))
    return pc.rank(shop.items["item_id"]).to_numpy().astype(np.int64)[items]


def _refuse_too_little(
    is_kept: Bool[np.ndarray, " total"],
    users: Int64[np.ndarray, " total"],
    k: int,
    counts: dict[str, int],
) -> None:
    there = (
        f"{counts['raw_interactions']:,} interactions of {counts['raw_users']:,} users "
        f"with {counts['raw_items']:,} items"
    )
    if np.bincount(users[is_kept]).max(initial=0) > MIN_HISTORY:
        return
    if is_kept.any():
        problem = (
            f"no user has more than {MIN_HISTORY} after filtering, so that there is no "
            "next item to learn from: bring longer histories"
        )
    elif counts["users_with_too_short_history"]:
        problem = (
            f"no user has the {MIN_HISTORY} that training, validation and test need "
            f"(k_core={k}): bring longer histories"
        )
    else:
        problem = (
            f"none are left when each user and item must have {k}: lower it with "
            "--gin.interactions.InteractionsConfig.k_core=2, or bring more data"
        )
    raise InputError(f"of {there}, {problem}")


def _distinct(numbers: Int64[np.ndarray, " total"]) -> Int64[np.ndarray, " distinct"]:
    """np.unique of small numbers, ten times faster."""
    return np.flatnonzero(np.bincount(numbers))
