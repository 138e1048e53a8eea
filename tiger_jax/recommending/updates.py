"""The catalogue changes; the model doesn't.

New items get their Semantic IDs from the frozen quantizer and the smallest collision
codewords that are free, so nobody else's ID changes. The trie is built anew within
the shapes that the programs were compiled for, so nothing compiles.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int32

from tiger_jax.data.item_vectors import estimate_collaborative
from tiger_jax.errors import InputError, flag
from tiger_jax.recommending import new_items
from tiger_jax.recommending.catalogue import ALL_ITEMS, Catalogue
from tiger_jax.recommending.item_encoder import ItemCoder
from tiger_jax.recommending.new_items import NewItem
from tiger_jax.semantic_ids.collisions import add_collision_level, group_rows
from tiger_jax.semantic_ids.table import SemanticIdTable

_BY_TEXT = (
    "the quantizer also reads what an item is bought with; new items are bought with "
    "nothing yet, and "
)
_ESTIMATED = _BY_TEXT + "take that of the items nearest in text"
_TEXT_ALONE = _BY_TEXT + "their codes rest on their text alone"


@dataclasses.dataclass(frozen=True)
class AddedItem:
    """An item that joined, and its Semantic ID."""

    item_id: str
    title: str
    semantic_id: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class UpdateReport:
    """What an update did, and what a user should know about how."""

    version: int
    num_items: int
    capacity: int
    added: tuple[AddedItem, ...] = ()
    removed: tuple[str, ...] = ()
    attributes_set: int = 0
    notes: tuple[str, ...] = ()


def update(
    catalogue: Catalogue,
    coder: ItemCoder,
    *,
    add: Sequence[NewItem | Mapping[str, Any]] = (),
    remove: Sequence[str] = (),
    attributes: Mapping[str, Any] | None = None,
) -> tuple[Catalogue, UpdateReport]:
    """Makes the next version of a catalogue; the one given stays as it is.

    First items are removed, then added, then attributes are set; so an item that is
    removed and added in one update is replaced. All is done, or nothing.

    Args:
        coder: What gives new items their codes; `Parts.coder` of a bundle.
        add: New items, or objects as `NewItem.from_json` takes them.
        remove: Ids. The items are unknown from then on, in histories too; to keep
            reading them there, set an attribute such as in_stock instead.
        attributes: {item id: {field: value}}; None as the value takes back what was
            set before. The item id "*" stands for all items without a value.
            Title, brand, price, category and categories change what is shown,
            searched and filtered, not the Semantic ID.

    Raises:
        InputError: Something makes no sense, or doesn't fit; nothing has changed then.

    Examples:
        catalogue, report = update(recommender.catalogue, coder, remove=["item 7"])
        recommender.swap(catalogue)
    """
    items = [i if isinstance(i, NewItem) else NewItem.from_json(i) for i in add]
    leaving = list(dict.fromkeys(remove))
    wanted = attributes or {}
    if not (items or leaving or wanted):
        raise InputError("nothing to change: give items to add, ids to remove, or both")
    _check_ids(catalogue, items, leaving)
    kept = np.ones(catalogue.num_items, bool)
    kept[[catalogue.number_of[item_id] for item_id in leaving]] = False
    rows = _make_rows(items, catalogue, kept, coder)
    changed = change_rows(
        catalogue,
        kept,
        rows,
        attributes=_change_attributes(catalogue, items, leaving, wanted),
        version=catalogue.version + 1,
    )
    joined = zip(items, changed.table.codes[kept.sum() :].tolist(), strict=True)
    added = tuple(AddedItem(i.item_id, i.title, tuple(codes)) for i, codes in joined)
    # A bundle of before estimates were kept says of no item how often it occurred.
    is_estimated = rows.collaborative is not None and rows.collaborative.any()
    note = _ESTIMATED if is_estimated else _TEXT_ALONE
    report = UpdateReport(
        changed.version,
        changed.num_items,
        changed.capacity,
        added=added,
        removed=tuple(leaving),
        attributes_set=sum(map(len, wanted.values())),
        notes=(note,) if items and coder.collaborative_dims else (),
    )
    return changed, report


@dataclasses.dataclass(frozen=True, eq=False)
class JoinedRows:
    """Items that have joined a catalogue since its export.

    Attributes:
        embeddings: Used if the catalogue has some.
        joined: The version in which each came.
        collaborative: As the embeddings; None if it came before these were estimated.
    """

    items: pa.Table
    codes: Int32[np.ndarray, "n T"]
    embeddings: Float32[np.ndarray, "n E"]
    joined: Int32[np.ndarray, " n"]
    collaborative: Float32[np.ndarray, "n C"] | None = None

    @classmethod
    def none(cls, catalogue: Catalogue) -> "JoinedRows":
        """No items, in a catalogue's form."""
        dims = 0 if catalogue.embeddings is None else catalogue.embeddings.shape[1]
        return cls(
            catalogue.items.slice(0, 0),
            np.empty((0, catalogue.table.semantic_id_length), np.int32),
            np.empty((0, dims), np.float32),
            np.empty(0, np.int32),
        )


def change_rows(
    catalogue: Catalogue,
    kept: Bool[np.ndarray, " N"],
    rows: JoinedRows,
    *,
    attributes: Mapping[str, Mapping[str, Any]],
    version: int,
) -> Catalogue:
    """The items kept, then those joined; InputError if none, too many or alike."""
    old = catalogue.table
    num_new = rows.items.num_rows
    num_items = int(kept.sum()) + num_new
    if not num_items:
        raise InputError("this would remove every item: a catalogue needs at least one")
    if num_items > catalogue.capacity:
        raise InputError(
            f"{num_items:,} items exceed the {catalogue.capacity:,} that this bundle "
            "has room for: remove some, or export it again with "
            + flag("export.room", round(1.5 * num_items / len(old.codes) + 0.5, 1))
        )
    ids = np.flatnonzero(kept).tolist()
    table = SemanticIdTable(
        np.concatenate([old.codes[kept], rows.codes]),
        old.codebook_sizes,
        old.num_levels,
        (*(old.item_ids[i] for i in ids), *rows.items["item_id"].to_pylist()),
    )
    none_yet = np.zeros(num_new, np.int64)
    embeddings = catalogue.embeddings
    if embeddings is not None:
        embeddings = np.concatenate([embeddings[kept], rows.embeddings])
    collaborative = catalogue.collaborative
    if collaborative is not None:
        estimated = rows.collaborative
        if estimated is None:
            estimated = np.zeros((num_new, collaborative.shape[1]), np.float32)
        collaborative = np.concatenate([collaborative[kept], estimated])
    return Catalogue(
        table,
        pa.concat_tables([catalogue.items.filter(pa.array(kept)), rows.items]),
        popularity=np.concatenate([catalogue.popularity[kept], none_yet]),
        occurrences=np.concatenate([catalogue.occurrences[kept], none_yet]),
        numbers=np.append(catalogue.numbers[kept], np.full(num_new, -1, np.int32)),
        is_new=np.concatenate([catalogue.is_new[kept], np.ones(num_new, bool)]),
        joined=np.concatenate([catalogue.joined[kept], rows.joined]),
        version=version,
        attributes=attributes,
        embeddings=embeddings,
        collaborative=collaborative,
        plan=catalogue.host_trie.plan,
        sharding=catalogue.sharding,
    )


def _make_rows(
    items: Sequence[NewItem],
    catalogue: Catalogue,
    kept: Bool[np.ndarray, " N"],
    coder: ItemCoder,
) -> JoinedRows:
    """New items' codes, made unique among all that stay."""
    if not items:
        return JoinedRows.none(catalogue)
    own, rows = catalogue.table, new_items.to_table(items, catalogue.items.schema)
    joined = np.full(len(items), catalogue.version + 1, np.int32)
    vectors = coder.embed(items, rows)
    stays, estimated = own.codes[kept], None
    if catalogue.collaborative is not None and catalogue.embeddings is not None:
        is_known = kept & (catalogue.occurrences > 0)
        estimated = estimate_collaborative(
            vectors, catalogue.embeddings[is_known], catalogue.collaborative[is_known]
        )
    learned = np.concatenate([stays[:, :-1], coder.encode(vectors, estimated)])
    size = own.codebook_sizes[-1]
    groups = group_rows(learned)
    crowded = np.bincount(groups)[groups[len(stays) :]] > size
    if crowded.any():
        first = int(crowded.argmax())
        codewords = learned[len(stays) + first].tolist()
        raise InputError(
            f"item {items[first].item_id!r} would be one of more than {size} "
            f"items with the codewords {codewords}, which the collision level can't "
            "tell apart: leave it out, or train with "
            + flag("assign_semantic_ids.collision_level_size", 2 * size)
        )
    taken = np.concatenate([stays[:, -1], np.full(len(items), -1)])
    ids = [own.item_ids[i] for i in np.flatnonzero(kept)]
    full = add_collision_level(
        learned,
        ids + [item.item_id for item in items],
        collision_level_size=size,
        taken=taken,
    )
    return JoinedRows(rows, full[len(stays) :], vectors, joined, estimated)


def _check_ids(
    catalogue: Catalogue, items: Sequence[NewItem], leaving: Sequence[str]
) -> None:
    for item_id in leaving:
        new_items.check_text("an id to remove", item_id)
    unknown = [item_id for item_id in leaving if item_id not in catalogue.number_of]
    if unknown:
        raise InputError(
            f"there is no item {unknown[0][:80]!r} to remove"
            + (f", nor {len(unknown) - 1} others" if len(unknown) > 1 else "")
        )
    staying = catalogue.number_of.keys() - set(leaving)
    seen: set[str] = set()
    for item in items:
        if item.item_id in staying:
            raise InputError(
                f"item {item.item_id!r} is in the catalogue already: remove it in the "
                "same update to replace it, or set its attributes"
            )
        if item.item_id in seen:
            raise InputError(f"item {item.item_id!r} is given twice")
        seen.add(item.item_id)


def _change_attributes(
    catalogue: Catalogue,
    items: Sequence[NewItem],
    leaving: Sequence[str],
    wanted: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """The attributes after an update, by field and item id."""
    gone, joining = set(leaving), {item.item_id for item in items}
    values = {
        field: {i: v for i, v in own.items() if i not in gone}
        for field, own in catalogue.attributes.items()
    }
    for item in items:
        for field, value in item.attributes.items():
            if field not in catalogue.items.column_names:
                values.setdefault(field, {})[item.item_id] = value
    for item_id, fields in wanted.items():
        new_items.check_text("an id in attributes", item_id)
        is_there = item_id in joining or (
            item_id in catalogue.number_of and item_id not in gone
        )
        if item_id != ALL_ITEMS and not is_there:
            raise InputError(f"there is no item {item_id[:80]!r} to set attributes of")
        if not isinstance(fields, Mapping):
            raise InputError(
                f"item {item_id[:80]!r}: attributes are an object of fields, such as "
                '{"in_stock": false}'
            )
        for field, value in fields.items():
            if value is not None:
                new_items.check_attribute(item_id, field, value)
            name, kept = field, value
            if field == "category":
                name, kept = "categories", [[value]]
            if value is None:
                values.get(name, {}).pop(item_id, None)
            else:
                values.setdefault(name, {})[item_id] = kept
    values = {field: own for field, own in values.items() if own}
    if len(values) > new_items.MAX_ATTRIBUTES:
        raise InputError(
            f"{len(values)} fields have values set by hand; at most "
            f"{new_items.MAX_ATTRIBUTES}"
        )
    return values
