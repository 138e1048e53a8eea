"""Who wants recommendations: histories from a file, from titles, or test users."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from tiger_jax.data.csv_files import CsvFormat, read_csv
from tiger_jax.data.prepared import PreparedData
from tiger_jax.data.text_files import check_encoding, open_text, raise_for_encoding
from tiger_jax.errors import InputError

FORMS = (
    'JSON lines such as {"user": "u1", "history": ["item 1", "item 2"]} or '
    '["item 1", "item 2"], or a CSV file with the columns item_id and, if there are '
    "several users, user_id"
)


@dataclasses.dataclass(frozen=True)
class Request:
    """One history to continue.

    Attributes:
        user: What to call the user in the output.
        user_number: Row in the users table; -1 for somebody unknown.
        item_numbers: The history's known items, oldest first.
        unknown_items: Ids that are no items of the catalogue; they are left out.
        target: The item that really came next, where that is known.
        notes: What a reader should know about how the history came about.
    """

    user: str
    user_number: int
    item_numbers: tuple[int, ...]
    unknown_items: tuple[str, ...] = ()
    target: int | None = None
    notes: tuple[str, ...] = ()


def read_requests(path: Path, data: PreparedData) -> list[Request]:
    """Reads histories of item ids, oldest first, from a JSON lines or CSV file.

    Raises:
        InputError: The file is missing, empty or malformed; names the line.
    """
    if not path.is_file():
        raise InputError(f"recommend.histories = {str(path)!r} is not a file")
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        found = _read_json_lines(path)
    elif path.suffix in (".csv", ".tsv"):
        found = _read_csv(path)
    else:
        raise InputError(
            f"{path}: the ending must be .jsonl or .csv; histories come as {FORMS}"
        )
    if not found:
        raise InputError(f"{path} holds no history: write {FORMS}")
    numbers = {item_id: number for number, item_id in enumerate(data.item_ids)}
    users = {user_id: number for number, user_id in enumerate(data.user_ids)}
    return [
        Request(
            user=user,
            user_number=users.get(user, -1),
            item_numbers=tuple(numbers[i] for i in items if i in numbers),
            unknown_items=tuple(i for i in items if i not in numbers),
        )
        for user, items in found
    ]


def search_titles(text: str, data: PreparedData) -> Request:
    """Makes a history of the best match for each title, separated by semicolons.

    An item matches if in its title and brand there is, for every word given, one
    that starts with it, whatever the case.
    Of several, the one with the most interactions is taken, and the next are named.

    Raises:
        InputError: Nothing matches.
    """
    haystack = [
        " ".join(part or "" for part in parts).casefold()
        for parts in zip(
            data.items["title"].to_pylist(),
            data.items["brand"].to_pylist(),
            strict=True,
        )
    ]
    counts = np.bincount(data.histories.items, minlength=data.num_items)
    chosen, notes = [], []
    for wanted in filter(None, (part.strip() for part in text.split(";"))):
        starts = [
            re.compile(rf"(?<!\w){re.escape(word)}")
            for word in wanted.casefold().split()
        ]
        matches = [
            number
            for number, title in enumerate(haystack)
            if all(start.search(title) for start in starts)
        ]
        if not matches:
            raise InputError(
                f"recommend.title: no item's title holds all of {wanted!r}: use fewer "
                "or shorter words"
            )
        matches.sort(key=lambda number: -counts[number])
        chosen.append(matches[0])
        if len(matches) > 1:
            ids = ", ".join(data.item_ids[number] for number in matches[1:4])
            notes.append(
                f"{len(matches):,} items match {wanted!r}; the most popular one is "
                f"taken, before {ids}"
            )
    if not chosen:
        raise InputError("recommend.title is empty: give words of an item's title")
    return Request("somebody new", -1, tuple(chosen), notes=tuple(notes))


def draw_test_users(data: PreparedData, num_users: int, seed: int) -> list[Request]:
    """Takes a few test users at random, with the item that really came next."""
    test = data.test
    rows = np.random.default_rng(seed).permutation(len(test.targets))[:num_users]
    return [
        Request(
            user=data.user_ids[int(test.user_numbers[row])],
            user_number=int(test.user_numbers[row]),
            item_numbers=tuple(test.histories.of(row).tolist()),
            target=int(test.targets[row]),
        )
        for row in rows.tolist()
    ]


def _read_json_lines(path: Path) -> list[tuple[str, list[str]]]:
    check_encoding(path, "utf-8")
    raise_for_encoding(path, "utf-8")
    found = []
    with open_text(path, "utf-8") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                value: Any = json.loads(text)
            except ValueError as error:
                raise InputError(f"{path}, line {line}: not JSON ({error})") from error
            user, items = f"line {line}", value
            if isinstance(value, dict):
                user = str(value.get("user", value.get("user_id", user)))
                items = value.get("history")
            is_list = isinstance(items, list) and all(
                isinstance(i, str | int) and not isinstance(i, bool) for i in items
            )
            if not is_list:
                raise InputError(
                    f"{path}, line {line}: no list of item ids; write {FORMS}"
                )
            found.append((user, [str(i) for i in items]))
    return found


def _read_csv(path: Path) -> list[tuple[str, list[str]]]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    table = read_csv(path, None, CsvFormat(delimiter=delimiter))
    if "item_id" not in table.column_names:
        raise InputError(
            f"{path} has no column item_id (it has {', '.join(table.column_names)}): "
            f"write {FORMS}"
        )
    items = table["item_id"].to_pylist()
    users = (
        table["user_id"].to_pylist()
        if "user_id" in table.column_names
        else ["somebody new"] * len(items)
    )
    found: dict[str, list[str]] = {}
    for user, item in zip(users, items, strict=True):
        found.setdefault(user, []).append(item)
    return list(found.items())
