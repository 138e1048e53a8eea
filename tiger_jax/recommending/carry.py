"""What a shop did to a catalogue, done again to that of a newly trained model.

Items that joined get their codes anew, by the new quantizer; those that the new
training knows are its own by now. What was removed stays removed, and values set by
hand stay set, where the new catalogue has the item.
"""

from typing import Any

import numpy as np

from tiger_jax.recommending.catalogue import ALL_ITEMS, Catalogue
from tiger_jax.recommending.new_items import NewItem
from tiger_jax.recommending.updates import UpdateReport
from tiger_jax.recommending.versions import CatalogueVersions

CARRIED = "carried over from"


def carry_over(
    source: CatalogueVersions, target: CatalogueVersions
) -> UpdateReport | None:
    """Writes a version of the target with what the source's newest one changed.

    Returns:
        What was done; None if there was nothing to carry, or the target's catalogue has
        had changes of its own.

    Raises:
        InputError: An item can't join: there is no room for it, or no vector.
    """
    old, exported = source.load(), target.load(0)
    own = [info.what for info in target.kept()[1:]]
    if not old.version or any(not what.startswith(CARRIED) for what in own):
        return None
    add = _joined(old, exported, _is_same_space(source, target))
    gone = set(source.bundle.parts.table.item_ids) - old.number_of.keys()
    remove = sorted(gone & exported.number_of.keys())
    stays = {ALL_ITEMS, *exported.number_of, *(i.item_id for i in add)} - {*remove}
    attributes: dict[str, dict[str, Any]] = {}
    for field, values in old.attributes.items():
        for item_id in values.keys() & stays:
            attributes.setdefault(item_id, {})[field] = values[item_id]
    if not (add or remove or attributes):
        return None
    name = f"{source.bundle.content_hash[:12]}, version {old.version}"
    return target.start_from(
        exported,
        f"{CARRIED} {name}",
        add=add,
        remove=remove,
        attributes=attributes,
    )


def _joined(old: Catalogue, exported: Catalogue, is_same_space: bool) -> list[NewItem]:
    """Items that joined and that the new training doesn't know."""
    rows = [
        n
        for n in np.flatnonzero(old.joined).tolist()
        if old.item_ids[n] not in exported.number_of
    ]
    items = []
    for number, row in zip(rows, old.items.take(rows).to_pylist(), strict=True):
        if is_same_space and old.embeddings is not None:
            row["embedding"] = old.embeddings[number]
        given = {name: value for name, value in row.items() if not _is_unknown(value)}
        items.append(NewItem.from_json(given))
    return items


def _is_unknown(value: Any) -> bool:
    return value is None or (isinstance(value, str | list) and not value)


def _is_same_space(source: CatalogueVersions, target: CatalogueVersions) -> bool:
    """Whether vectors of one bundle are vectors of the other; else texts are read."""
    one, other = source.bundle.parts, target.bundle.parts
    if one.embeddings is None or other.embeddings is None:
        return False
    is_alike = one.part_hashes.get("encoder") == other.part_hashes.get("encoder")
    return is_alike and one.embeddings.shape[1] == other.embeddings.shape[1]
