"""Codes made elsewhere: JSON of items' codes, in the forms that peers write.

An object of item id: codes, or a list of objects with an item_id and codes. Codes are
numbers from 0, `[13, 10, 8]` or `"13 10 8"`, or LC-Rec's words, `["<a_13>", "<b_10>"]`.
"""

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Int32

from tiger_jax.errors import InputError, flag
from tiger_jax.progress import say
from tiger_jax.vectors import to_unit_length

_QUERIES = 256  # rows of similarities held at once


@dataclasses.dataclass(frozen=True, eq=False)
class PeerCodes:
    """Codes for the catalogue's items, by item number.

    Attributes:
        codes: -1 in every column for an item that the file doesn't have.
        num_unknown: Entries of the file whose item the catalogue doesn't have.
    """

    codes: Int32[np.ndarray, "N C"]
    num_unknown: int
    first_unknown: str | None

    @property
    def missing(self) -> Int[np.ndarray, " M"]:
        return np.flatnonzero(self.codes[:, 0] < 0)


def take_peer_codes(
    path: Path,
    item_ids: Sequence[str],
    load_embeddings: Callable[[], Float[np.ndarray, "N E"]],
    *,
    num_levels: int | None,
    codebook_sizes: tuple[int, ...] | None,
    missing_items: str,
) -> tuple[Int32[np.ndarray, "N L"], Int32[np.ndarray, " N"] | None, tuple[int, ...]]:
    """Reads a file's codes as `assign_semantic_ids` takes them.

    Args:
        load_embeddings: Called where missing items get the nearest items' codes.
        num_levels: How many of the file's codes were learned; all if None.
        codebook_sizes: Of the learned levels; the largest code plus one if None.
        missing_items: "error" or "nearest", for items that the file lacks.

    Returns:
        Learned codes, collision codewords to keep (-1: none) if any, codebook sizes.

    Raises:
        InputError: As `load_peer_codes`; or the levels or sizes don't fit the file,
            or it lacks items.
    """
    peer = load_peer_codes(path, item_ids)
    if peer.num_unknown:
        say(
            f"assign_semantic_ids: {peer.num_unknown:,} items of {path} are not in the "
            f"catalogue (such as {peer.first_unknown!r}) and are left out"
        )
    length = peer.codes.shape[1]
    num_levels = length if num_levels is None else num_levels
    if not 1 <= num_levels <= length <= num_levels + 1:
        raise InputError(
            f"{path} has {length} codes per item, which can't be {num_levels} learned "
            "levels and at most one collision level: name the learned ones with "
            + flag("assign_semantic_ids.peer_num_levels", max(length - 1, 1))
        )
    codes = peer.codes[:, :num_levels]
    known = codes[codes[:, 0] >= 0]
    least, most = known.min(axis=0), known.max(axis=0)
    if num_levels > 1 and (least < most).all() and (least[1:] > most[:-1]).all():
        say(
            f"WARNING: assign_semantic_ids: {path}: each level's codes lie above the "
            "level's before, as if they were counted on: codebooks get larger than "
            "they are; take off each level's first code"
        )
    taken = peer.codes[:, num_levels] if length > num_levels else None
    missing = peer.missing
    if len(missing):
        what = (
            f"{path} has no codes for {len(missing):,} of {len(item_ids):,} items "
            f"(such as {item_ids[int(missing[0])]!r})"
        )
        if missing_items == "error":
            raise InputError(
                f"{what}: {flag('assign_semantic_ids.missing_items', 'nearest')} gives "
                "them the codes of the most similar items; or leave them out of the "
                "data"
            )
        say(f"WARNING: assign_semantic_ids: {what}: they get the most similar items'")
        codes = copy_from_nearest(codes, load_embeddings())
    sizes = codebook_sizes or tuple(int(m) + 1 for m in codes.max(axis=0))
    if len(sizes) != num_levels:
        raise InputError(
            f"assign_semantic_ids.peer_codebook_sizes has {len(sizes)} sizes for "
            f"{num_levels} levels"
        )
    return codes, taken, tuple(sizes)


def load_peer_codes(path: Path, item_ids: Sequence[str]) -> PeerCodes:
    """Reads codes and puts them in item-number order.

    Raises:
        InputError: The file is not such a JSON object, an id occurs twice in it, its
            codes differ in length or aren't whole numbers from 0, or it has none of
            the catalogue's items.
    """
    entries = _read_entries(Path(path))
    length = len(next(iter(entries.values())))
    number_of = {item_id: number for number, item_id in enumerate(item_ids)}
    codes = np.full((len(item_ids), length), -1, np.int32)
    unknown = []
    for item_id, code in entries.items():
        if item_id in number_of:
            codes[number_of[item_id]] = code
        else:
            unknown.append(item_id)
    if len(unknown) == len(entries):
        known, named = ({i.lstrip("0") for i in ids} for ids in (item_ids, entries))
        why = ""
        if known & named:
            why = ": one lost its leading zeros; write the ids the same way in both"
        elif {*entries} <= {*map(str, range(len(entries) + 1))}:
            why = ": these are numbers of rows; write the ids"
        raise InputError(
            f"{path}: none of its {len(entries):,} item ids (such as {unknown[0]!r}) "
            f"is in the catalogue, whose ids look like {item_ids[0]!r}{why}"
        )
    return PeerCodes(codes, len(unknown), unknown[0] if unknown else None)


def _read_entries(path: Path) -> dict[str, list[int]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            entries = json.load(file, object_pairs_hook=_refuse_twice)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {str(error)[:200]}") from error
    if isinstance(entries, list) and all(isinstance(e, dict) for e in entries):
        entries = _from_records(path, entries)
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{path} must hold one JSON object of item id: list of codes")
    codes: dict[str, list[int]] = {}
    first: list[str] = []
    for item_id, value in entries.items():
        words, code = _read_code(value)
        if not code:
            raise InputError(
                f"{path}: item {item_id[:60]!r} has {json.dumps(value)[:60]} instead "
                'of a list of whole numbers from 0 (or "13 10 8", or ["<a_13>", …])'
            )
        first = first or words
        if len(words) != len(first):
            raise InputError(
                f"{path}: item {item_id[:60]!r} has {len(words)} codes, others "
                f"{len(first)}"
            )
        if words != first:
            raise InputError(
                f"{path}: item {item_id[:60]!r} has codes of the levels "
                f"{' '.join(words)[:60]!r}, others {' '.join(first)[:60]!r}"
            )
        codes[item_id] = code
    return codes


def _from_records(path: Path, records: list[dict[str, object]]) -> dict[str, object]:
    """Makes an object of records with an item_id and one thing more, its codes."""
    pairs = []
    for place, record in enumerate(records, 1):
        item_id = record.get("item_id")
        others = [key for key in record if key != "item_id"]
        if not isinstance(item_id, str | int) or len(others) != 1:
            raise InputError(
                f"{path}: record {place} must have an item_id and its codes, and "
                f"nothing else: it has {', '.join(map(ascii, record))[:100]}"
            )
        pairs.append((str(item_id), record[others[0]]))
    try:
        return _refuse_twice(pairs)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


_WORD = re.compile(r"<?([A-Za-z]\w{0,20}?_)?(\d{1,10})>?")


def _read_code(value: object) -> tuple[list[str], list[int]]:
    """The names of the levels ("" for bare numbers) and the codes; nothing if bad."""
    if isinstance(value, str):
        value = re.sub(r">\s*<", "> <", value.strip("[]()")).replace(",", " ").split()
    words, code = [], []
    for one in value if isinstance(value, list) else []:
        if isinstance(one, float) and one.is_integer():
            one = int(one)
        found = _WORD.fullmatch(str(one)) if type(one) in (int, str) else None
        if found is None or int(found[2]) >= 2**31:
            return [], []
        words.append(found[1] or "")
        code.append(int(found[2]))
    return words, code


def _refuse_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        raise ValueError(f"item {counts.most_common(1)[0][0]!r} occurs twice")
    return result


def copy_from_nearest(
    codes: Int32[np.ndarray, "N C"], embeddings: Float[np.ndarray, "N E"]
) -> Int32[np.ndarray, "N C"]:
    """Gives items without codes those of the most similar item that has some.

    Args:
        codes: -1 in every column for an item without codes.
        embeddings: Compared by cosine; ties go to the smallest item number.
    """
    has_codes = codes[:, 0] >= 0
    known, missing = np.flatnonzero(has_codes), np.flatnonzero(~has_codes)
    directions = to_unit_length(embeddings[known])
    filled = codes.copy()
    for start in range(0, len(missing), _QUERIES):
        queries = missing[start : start + _QUERIES]
        similarity = to_unit_length(embeddings[queries]) @ directions.T
        filled[queries] = codes[known[similarity.argmax(axis=1)]]
    return filled
