"""Items that join a catalogue: as they are given, and as rows of its table."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tiger_jax.data.readers.columns import clean_paths
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.tables.parquet_files import parquet_parts
from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.recommending.catalogue import ALL_ITEMS
from tiger_jax.recommending.filters import as_text
from tiger_jax.workdir.arrays import load_array
from tiger_jax.workdir.reading import path_of

Scalar = str | bool | int | float
MAX_CHARACTERS = 20_000
MAX_ATTRIBUTES = 50

_FIELDS = ("item_id", "title", "brand", "price", "categories", "embedding")


@dataclasses.dataclass(frozen=True, eq=False)
class NewItem:
    """One item to add; InputError names the item if a field holds something else.

    Attributes:
        item_id: Not yet in the catalogue.
        title: Shown, searched and, by most templates, embedded; so are the next.
        categories: Paths, root first.
        attributes: Further fields: texts, numbers, or true and false.
        embedding: The item's own vector, of the kind that the catalogue's items
            have; None lets the bundle's encoder read the fields.
    """

    item_id: str
    title: str = ""
    brand: str = ""
    price: float | int | None = None
    categories: Sequence[Sequence[str]] = ()
    attributes: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    embedding: Any = None

    def __post_init__(self) -> None:
        _check_fields(vars(self))

    @classmethod
    def from_json(cls, record: Any) -> "NewItem":
        """Reads an object such as {"item_id": "a7", "title": "Red soap"}.

        "category" stands for "categories" with a single name; what is no field is
        an attribute, and null counts as absent. InputError if it is no such object.
        """
        if not isinstance(record, Mapping) or "item_id" not in record:
            raise InputError(
                'a new item is an object such as {"item_id": "a7", "title": "Red soap"}'
            )
        given = {name: value for name, value in record.items() if value is not None}
        if isinstance(category := given.pop("category", None), str):
            given.setdefault("categories", [[category]])
        fields = {name: given.pop(name) for name in _FIELDS if name in given}
        _check_fields({**fields, "attributes": given})
        return cls(**fields, attributes=given)


def _check_fields(fields: Mapping[str, Any]) -> None:
    item_id = fields["item_id"]
    check_text("item_id", item_id)
    if not item_id or item_id == ALL_ITEMS:
        raise InputError(f"item_id is {item_id!r}, which is no name for an item")
    for field in ("title", "brand", "price", "categories"):
        if field in fields:
            check_attribute(item_id, field, fields[field])
    for field, value in fields["attributes"].items():
        if field in _FIELDS:
            raise InputError(
                f"item {item_id!r}: {field!r} is a field of its own, no further "
                "attribute"
            )
        check_attribute(item_id, field, value)


def check_attribute(item_id: str, field: Any, value: Any) -> None:
    """Refuses a value that a field can't have: InputError names item and field."""
    where = f"item {item_id[:80]!r}"
    check_text("a field's name", field)
    if not field or len(field) > 100:
        raise InputError(f"{where}: a field's name has 1 … 100 characters")
    if field in ("item_id", "embedding"):
        raise InputError(
            f"{where}: {field!r} can't be changed; remove the item and add it anew"
        )
    if field == "categories":
        if not _is_list(value) or not all(map(_is_list, value)):
            raise InputError(
                f'{where}: categories are paths, such as [["Beauty", "Hair"]]'
            )
        for name in (name for path in value for name in path):
            check_text(f"{where}: a category", name)
    elif field in ("title", "brand", "category"):
        check_text(f"{where}: {field}", value)
    elif field == "price":
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and _is_finite(value) and value > 0):
            raise InputError(f"{where}: a price is a positive number, not {value!r}")
    elif isinstance(value, str):
        check_text(f"{where}: {field}", value)
    elif not isinstance(value, bool | int | float) or not _is_finite(value):
        raise InputError(
            f"{where}: {field!r} must be a text, a finite number, or true or false"
        )


def check_text(what: str, value: Any) -> None:
    """Refuses what is no text, or none that a file could hold, by an InputError."""
    if not isinstance(value, str):
        raise InputError(f"{what} must be a text, not {type(value).__name__}")
    if len(value) > MAX_CHARACTERS:
        raise InputError(
            f"{what} has {len(value)} characters; at most {MAX_CHARACTERS}"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} is no whole Unicode text ({error.reason})") from error


def to_table(items: Sequence[NewItem], schema: pa.Schema) -> pa.Table:
    """The items as rows of a catalogue's table; what it has no column for is left out.

    Unknown texts are "", unknown prices null, unknown categories empty.
    """
    columns = []
    for field in schema:
        match field.name:
            case "item_id" | "title" | "brand" | "price":
                values: list[Any] = [getattr(item, field.name) for item in items]
            case "categories":
                values = [clean_paths([[*p] for p in i.categories]) for i in items]
            case name:
                values = [as_text(item.attributes.get(name, "")) for item in items]
        columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _is_finite(value: float | int) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float reaches
        return False


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def read_new_items(
    file: str, files: FilesConfig, embeddings: Path | None
) -> list[NewItem]:
    """Reads items to add, and their vectors if there are any."""
    table, notes = read_items(file, files)
    for note in notes:
        say(f"  note: {note}")
    rows = table.to_pylist()
    vectors: Any = [None] * len(rows)
    if embeddings is not None:
        try:
            vectors = load_array(embeddings)
        except (OSError, ValueError) as error:
            raise InputError(f"--embeddings={embeddings}: {error}") from error
        if vectors.ndim != 2 or len(vectors) != len(rows):
            raise InputError(
                f"--embeddings={embeddings} has the shape {vectors.shape}, and {file} "
                f"has {len(rows)} items: give one row per item, in the file's order"
            )
    return [
        NewItem.from_json({**row, "embedding": vector})
        for row, vector in zip(rows, vectors, strict=True)
    ]


def read_items(file: str, files: FilesConfig) -> tuple[pa.Table, list[str]]:
    """Reads a file of items as a shop's own; and notes on how it was read."""
    path = path_of(file)
    if not parquet_parts(path):
        raise InputError(f"update_catalogue: {path} is not a file")
    return files.read_items(path)
