"""Lists of recommendations for other programs: JSON, Parquet and RecBole's files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tiger_jax.errors import InputError
from tiger_jax.recommending.histories_wanted import Wanted
from tiger_jax.recommending.requests import Answer

SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "rank": pa.int32(),
        "item_id": pa.string(),
        "score": pa.float32(),
        "title": pa.string(),
        "category": pa.string(),
        "semantic_id": pa.list_(pa.int32()),
        "is_new": pa.bool_(),
        "by": pa.string(),
    }
)


def write_recommendations(
    path: Path, wanted: Sequence[Wanted], answers: Sequence[Answer]
) -> None:
    """Writes one row a place of a list, by the path's ending.

    *   ``.parquet``: the columns of `SCHEMA`, ranks from 1.
    *   ``.inter``: RecBole's atomic file with `user_id:token`, `item_id:token`,
        `score:float` and `rank:float`.

    InputError if the file can't be written, or an id can't stand in it.
    """
    rows = [
        (one.user, rank, item, answer.by)
        for one, answer in zip(wanted, answers, strict=True)
        for rank, item in enumerate(answer.items, 1)
    ]
    beside = path.with_name(path.name + ".tmp")
    try:
        if path.suffix == ".parquet":
            records = [
                {**vars(item), "user_id": user, "rank": rank, "by": by}
                for user, rank, item, by in rows
            ]
            pa.parquet.write_table(pa.Table.from_pylist(records, SCHEMA), beside)
        else:
            atomic = {
                "user_id:token": [user for user, *_ in rows],
                "item_id:token": [item.item_id for _, _, item, _ in rows],
                "score:float": [f"{item.score:.6g}" for _, _, item, _ in rows],
                "rank:float": [str(rank) for _, rank, *_ in rows],
            }
            write_atomic_file(beside, atomic)
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}") from error


def to_json(wanted: Wanted, answer: Answer) -> dict[str, Any]:
    """One list as a JSON object; scores have four decimals."""
    unknown = set(answer.unknown_items)
    line: dict[str, Any] = {
        "user": wanted.user,
        "history": [item_id for item_id in wanted.history if item_id not in unknown],
        "recommended": [
            {
                "item_id": item.item_id,
                "title": item.title,
                "score": round(item.score, 4),
                "semantic_id": item.semantic_id,
            }
            for item in answer.items
        ],
        "unknown_items": list(answer.unknown_items),
        "by": answer.by,
        "merged": answer.merged,
        "version": answer.version,
    }
    if wanted.target is not None:
        line["target"] = wanted.target
    return line


def write_atomic_file(path: Path, columns: dict[str, list[str]]) -> None:
    """Writes a RecBole atomic file: tabs between columns, nothing quoted.

    InputError if an identifier holds a tab or line break; elsewhere they become spaces.
    """
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(columns) + "\n")
        plain = [_plain(name, values) for name, values in columns.items()]
        file.writelines("\t".join(row) + "\n" for row in zip(*plain, strict=True))


def _plain(name: str, values: list[str]) -> list[str]:
    if not name.endswith(":token"):
        return [" ".join(value.split()) for value in values]
    for value in values:
        if any(mark in value for mark in "\t\n\r"):
            raise InputError(
                f"RecBole's files can't hold the identifier {value[:60]!r}, which has "
                "a tab or line break in it"
            )
    return values
