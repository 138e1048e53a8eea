"""Makes prepared data of a raw shop: the whole room in one function."""

import dataclasses
from collections import Counter

import numpy as np

from tiger_jax.data import interactions as histories_of
from tiger_jax.data.interactions import InteractionsConfig, NumberedShop
from tiger_jax.data.prepared import PreparedData, hash_user_ids
from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.splits import (
    Splits,
    SplitsConfig,
    choose_unseen_items,
    leave_out_newest,
)
from tiger_jax.data.statistics import compute_statistics


def prepare_shop(
    shop: RawShop, interactions: InteractionsConfig, splits: SplitsConfig, *, seed: int
) -> PreparedData:
    """Filters, numbers, orders and splits a shop; InputError if too little is left."""
    interactions = interactions.resolved(is_generated=shop.is_generated)
    numbered = histories_of.build_histories(shop, interactions, seed=seed)
    histories = leave_out_newest(numbered.histories, splits.left_out)
    unseen = choose_unseen_items(histories, splits.unseen_share, seed=seed)
    split = Splits.leave_one_out(histories, unseen)
    items = shop.items.take(numbered.items_file_rows)
    user_ids = numbered.user_ids.to_pylist()
    numbered = dataclasses.replace(numbered, histories=histories)
    ceiling, notes = _average_ceiling(shop, numbered, items["item_id"].to_pylist())
    statistics = {
        **compute_statistics(histories, split, num_items=items.num_rows),
        **numbered.counts,
        "k_core": interactions.k_core,
        "tie_order": interactions.tie_order,
        "unseen_items": len(unseen),
        **({"left_out": splits.left_out} if splits.left_out else {}),
        "notes": [*shop.columns, *shop.notes, *numbered.notes, *notes],
    }
    return PreparedData(
        name=shop.name,
        items=items,
        user_ids=tuple(user_ids),
        user_hashes=hash_user_ids(user_ids),
        histories=histories,
        items_file_rows=numbered.items_file_rows,
        unseen_items=unseen,
        statistics=statistics,
        ceiling=ceiling,
    )


def _average_ceiling(
    shop: RawShop, numbered: NumberedShop, item_ids: list[str]
) -> tuple[dict[str, float] | None, list[str]]:
    """Averages the best possible results over the users, if they still hold.

    They speak of each user's last interaction given all earlier ones. Averaging
    over those that a filter happened to spare would be too low: it spares targets
    that are easy to guess.
    """
    if shop.ceiling_by_user is None:
        return None, []
    order = np.argsort(shop.interactions["timestamp"].to_numpy(), kind="stable")
    users, items, _ = shop.interactions.take(order).to_pydict().values()
    raw_lengths = Counter(users)
    raw_targets = dict(zip(users, items, strict=True))
    histories = numbered.histories
    targets = [item_ids[i] for i in histories.items[histories.offsets[1:] - 1]]
    user_ids = numbered.user_ids.to_pylist()
    found = zip(user_ids, histories.lengths, targets, strict=True)
    if any((raw_lengths[u], raw_targets[u]) != (n, last) for u, n, last in found):
        return None, [
            "the best possible results are known for the whole shop only, in its own "
            "order and length: k_core=None, tie_order='data' and left_out=0 keep them"
        ]
    rows = [shop.ceiling_by_user[user] for user in user_ids]
    return {metric: float(np.mean([r[metric] for r in rows])) for metric in rows[0]}, []
