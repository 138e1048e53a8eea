"""Who wants recommendations: histories from a file, from titles, or test users."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiger_jax.data.prepared import PreparedData
from tiger_jax.data.readers.assemble import EXAMPLES, same_but_for_writing
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.tables import text_files
from tiger_jax.errors import InputError
from tiger_jax.recommending.catalogue import Catalogue

FORMS = (
    'JSON lines such as {"user": "u1", "history": ["item 1", "item 2"]} or '
    '["item 1", "item 2"], or a CSV or Parquet file with a column item_id and, if '
    "there are several users, user_id"
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One history to continue.

    Attributes:
        user: What to call the user in the output.
        history: Item ids, oldest first; some may be unknown.
        user_id: The shop's own id of the user; None for somebody unknown.
        target: The item that really came next, where that is known.
        notes: What a reader should know about how the history came about.
    """

    user: str
    history: tuple[str, ...]
    user_id: str | None = None
    target: str | None = None
    notes: tuple[str, ...] = ()


def read_histories(path: Path, files: FilesConfig | None = None) -> list[Wanted]:
    """Reads histories from JSON lines or a table of interactions.

    InputError names the malformed line.
    """
    if not path.exists():
        raise InputError(f"recommend.histories: {str(path)!r} is not a file")
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    notes: list[str] = []
    if suffix in (".jsonl", ".json", ".ndjson"):
        found = _read_json_lines(path)
    elif suffix in (".csv", ".tsv", ".parquet"):
        histories, notes = (files or FilesConfig()).read_histories(path)
        found = [(user or "somebody new", items) for user, items in histories.items()]
    else:
        raise InputError(
            f"{path}: the ending must be .jsonl, .csv or .parquet; histories come as "
            f"{FORMS}"
        )
    if not found:
        raise InputError(f"{path} holds no history: write {FORMS}")
    wanted = [Wanted(user, tuple(items), user_id=user) for user, items in found]
    return [dataclasses.replace(wanted[0], notes=tuple(notes)), *wanted[1:]]


def tell_unknown(wanted: Sequence[Wanted], catalogue: Catalogue) -> list[str]:
    """A note of how many items the catalogue lacks, with one and the likely cause."""
    given = [item for one in wanted for item in one.history]
    unknown = [item for item in given if item not in catalogue.number_of]
    if not unknown:
        return []
    examples = list(dict.fromkeys(unknown))[:EXAMPLES]
    found = same_but_for_writing(examples, catalogue.item_ids)
    example = examples[0] if found is None else found[1]
    note = (
        f"{len(unknown):,} of {len(given):,} items in the histories are not in the "
        f"catalogue, such as {ascii(example[:60])}"
    )
    if found is not None:
        note += f"; it has {ascii(found[2][:60])}: {found[0]}"
    return [note]


def search_titles(text: str, catalogue: Catalogue) -> Wanted:
    """Makes a history of the best match for each title, separated by semicolons.

    Of several matches (see `Catalogue.search`) the one with the most interactions
    is taken, and the next are named. InputError if nothing matches.
    """
    chosen, notes = [], []
    for wanted in filter(None, (part.strip() for part in text.split(";"))):
        matches = [catalogue.item_ids[n] for n in catalogue.search(wanted)]
        if not matches:
            near = ", ".join(map(repr, catalogue.near_words(wanted)))
            advice = f"did you mean {near}?" if near else "use fewer or shorter words"
            raise InputError(
                f"recommend.title: no item's title holds all of {wanted!r}: {advice}"
            )
        chosen.append(matches[0])
        if len(matches) > 1:
            notes.append(
                f"{len(matches):,} items match {wanted!r}; the most popular one is "
                f"taken, before {', '.join(matches[1:4])}"
            )
    if not chosen:
        raise InputError("recommend.title is empty: give words of an item's title")
    return Wanted("somebody new", tuple(chosen), notes=tuple(notes))


def draw_test_users(data: PreparedData, num_users: int, seed: int) -> list[Wanted]:
    """Takes a few test users at random, with the item that really came next."""
    test = data.test
    rows = np.random.default_rng(seed).permutation(len(test.targets))[:num_users]
    user_ids = [data.user_ids[n] for n in test.user_numbers[rows].tolist()]
    return [
        Wanted(
            user=user_id,
            history=tuple(data.item_ids[i] for i in test.histories.of(row).tolist()),
            user_id=user_id,
            target=data.item_ids[test.targets[row]],
        )
        for user_id, row in zip(user_ids, rows.tolist(), strict=True)
    ]


def _read_json_lines(path: Path) -> list[tuple[str, list[str]]]:
    encoding = text_files.find_encoding(path, "utf-8")
    text_files.raise_for_encoding(path, encoding)
    found = []
    with text_files.open_text(path, encoding) as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                value: Any = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{path}, line {line}: not JSON ({error}): each line must be a "
                    "history of its own"
                ) from error
            user, items = f"line {line}", value
            if isinstance(value, dict):
                named = value.get("user", value.get("user_id"))
                user = user if named is None else str(named)
                items = value.get("history")
            if not isinstance(items, list) or {*map(type, items)} - {str, int}:
                raise InputError(
                    f"{path}, line {line}: no list of item ids; write {FORMS}"
                )
            items = [str(i) for i in items]
            try:
                "".join([user, *items]).encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{path}, line {line}: half a surrogate pair, which is no "
                    "character: remove it"
                ) from error
            found.append((user, items))
    return found
