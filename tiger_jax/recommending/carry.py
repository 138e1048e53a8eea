"""What a shop did to a catalogue, done again to that of a newly trained model.

Items that joined get their codes anew, by the new quantizer; those that the new
training knows are its own by now. What was removed stays removed, and values set by
hand stay set, where the new catalogue has the item.
"""

from contextlib import suppress
from typing import Any

import numpy as np

from tiger_jax.errors import InputError, LockedError
from tiger_jax.recommending.catalogue import ALL_ITEMS, Catalogue
from tiger_jax.recommending.new_items import NewItem
from tiger_jax.recommending.trust import ANY, Trust
from tiger_jax.recommending.updates import UpdateReport
from tiger_jax.recommending.versions import CatalogueVersions, folder_of, numbers_in
from tiger_jax.workdir import artifacts

CARRIED = "carried over from"
BEFORE = "before"
"""In the summary of a bundle's manifest: the hash of the one whose place it took."""


class Predecessor:
    """The bundle before, which others may serve, and change, for a while yet."""

    def __init__(self, versions: CatalogueVersions, trust: Trust = ANY) -> None:
        """Takes the versions of the bundle after it."""
        self._after, self._trust, self._seen = versions, trust, 0
        self._hash, bundle = "", versions.bundle.folder
        with suppress(InputError):  # one that doesn't lie on disk
            manifest = artifacts.load_manifest(bundle, verify=False)
            self._hash = manifest.summary.get(BEFORE, "")
        self._folder = bundle.with_name(f"{bundle.name}-{self._hash[:12]}")

    def catch_up(self) -> UpdateReport | None:
        """Carries over what came since the last time, unless there is nothing.

        Raises:
            InputError: It can't be read, or see `carry_over`; not tried again.
            OSError: The disk failed, or LockedError; tried again the next time.
        """
        if not self._hash or not self._folder.is_dir():
            return None
        newest = max(numbers_in(folder_of(self._folder, self._hash)), default=0)
        if newest <= self._seen:
            return None
        notes = _carried(self._after)
        self._seen = newest
        if notes is None or _note(self._hash, newest) in notes:
            return None
        try:
            old = CatalogueVersions.open(self._folder, trust=self._trust)
            return carry_over(old, self._after)
        except (OSError, LockedError):
            self._seen = 0
            raise


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
    if not old.version or _carried(target) is None:
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
    return target.start_from(
        exported,
        _note(source.bundle.content_hash, old.version),
        add=add,
        remove=remove,
        attributes=attributes,
    )


def _note(content_hash: str, version: int) -> str:
    return f"{CARRIED} {content_hash[:12]}, version {version}"


def _carried(target: CatalogueVersions) -> list[str] | None:
    """What was carried to a catalogue; None where it had changes of its own."""
    notes = [info.what for info in target.kept()[1:]]
    return notes if all(note.startswith(CARRIED) for note in notes) else None


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
