"""The sequences that P5, S3-Rec and GRID share: the split this literature compares on.

`sequential_data.txt` has a line per user: the user's number, then the items' numbers,
oldest first. `datamaps.json` names the numbers (`id2user`, `id2item`), and
`meta.json.gz` is Amazon's metadata of the items. Times are places in the history.
"""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from tiger_jax.config import config
from tiger_jax.data.raw_shop import INTERACTION_COLUMNS, RawShop
from tiger_jax.data.readers import amazon
from tiger_jax.data.readers.reader import match_files, required_files
from tiger_jax.data.tables import text_files
from tiger_jax.data.tables.text_files import one_line
from tiger_jax.errors import InputError


@config("p5")
class P5Config:
    """How to read P5's folders; there are no options.

    Items are in the order of their numbers. Nothing needs filtering: these are
    5-cores already.
    """

    kind: ClassVar = "p5"
    looks_for: ClassVar = (
        "sequential_data.txt, datamaps.json and meta.json.gz (P5, S3-Rec, GRID)"
    )

    def find(self, folder: Path) -> tuple[Path | None, ...]:
        return match_files(
            folder,
            r"sequential_data\.txt(\.gz)?",
            r"datamaps\.json(\.gz)?",
            r"meta\.json(\.gz)?",
        )

    def read(self, folder: Path) -> RawShop:
        sequences, maps, metadata = required_files(self, folder)
        user_of, item_of = read_datamaps(maps)
        users, items, places = [], [], []
        for user, history in read_sequences(sequences, user_of, item_of):
            users += [user] * len(history)
            items += history
            places += range(len(history))
        events = {
            "user_id": users,
            "item_id": items,
            "timestamp": np.asarray(places, np.float64),
        }
        table, notes = amazon.describe_items(metadata, list(item_of.values()))
        return RawShop(
            folder.resolve().name,
            table,
            pa.table(events, schema=pa.schema(INTERACTION_COLUMNS)),
            tuple(notes),
        )


def read_datamaps(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Reads what the numbers of users and of items stand for.

    Raises:
        InputError: The file is no JSON object of such maps, or two numbers stand for
            one item.
    """
    try:
        with text_files.open_text(path, "utf-8") as file:
            found: Any = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {one_line(error)}") from error
    maps = []
    for name in ("id2user", "id2item"):
        one = found.get(name) if isinstance(found, dict) else None
        if not isinstance(one, dict) or not one:
            raise InputError(f"{path} has no map {name!r} of numbers to identifiers")
        one = {n: str(i) if type(i) is int else i for n, i in one.items()}
        for number, known in one.items():
            if not amazon.is_id(known):
                raise InputError(
                    f"{path}: {name} has {str(known)[:60]!a} for {number[:60]!a}, "
                    "which is no identifier"
                )
        if len(set(one.values())) < len(one):
            raise InputError(f"{path}: two numbers of {name} have one identifier")
        maps.append(one)
    return maps[0], maps[1]


def read_sequences(
    path: Path, user_of: dict[str, str], item_of: dict[str, str]
) -> list[tuple[str, list[str]]]:
    """Reads histories, and names their users and items.

    Raises:
        InputError: A number stands for nothing, or a user comes twice: names the line.
    """
    found: dict[str, list[str]] = {}
    with text_files.open_bytes(path) as file:
        for line, data in enumerate(file, 1):
            numbers = data.decode("utf-8-sig", errors="replace").split()
            if not numbers:
                continue
            user, *items = numbers
            unknown = [i for i in items if i not in item_of]
            if user not in user_of or unknown:
                what = f"item {unknown[0][:60]!r}" if unknown else f"user {user[:60]!r}"
                raise InputError(
                    f"{path}, line {line}: {what} is not in datamaps.json: each line "
                    "is a user's number and the items' numbers"
                )
            if user_of[user] in found:
                raise InputError(f"{path}, line {line}: user {user!r} comes twice")
            found[user_of[user]] = [item_of[i] for i in items]
    if not any(found.values()):
        raise InputError(f"{path} holds no sequences")
    return list(found.items())
