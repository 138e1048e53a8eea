"""Shows prepared data as text: python -m tiger_jax.data.show --workdir=DIR.

--user=U shows a user's history, and --item=I an item and who had it; both take a
number or an identifier. Without either, a summary and a few users.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiger_jax.data.item_text import ItemTextConfig, build_item_texts
from tiger_jax.data.prepared import PreparedData
from tiger_jax.data.statistics import describe_statistics
from tiger_jax.errors import InputError, UserFacingError
from tiger_jax.progress import outlive_readers, say

_USERS_IN_SUMMARY = 3
_USERS_OF_ITEM = 10


def describe_user(data: PreparedData, user: int) -> str:
    """A user's history, oldest first, with the part each interaction plays."""
    history = data.histories.of(user)
    roles = ["train"] * (len(history) - 2) + ["validate", "test"]
    lines = [f"user {user} ({data.user_ids[user]}), {len(history)} interactions"]
    for item, role in zip(history.tolist(), roles, strict=True):
        unseen = " (unseen)" if item in data.unseen_items else ""
        lines.append(f"  {role:9}{_describe_item(data, item)}{unseen}")
    return "\n".join(lines)


def describe_item(data: PreparedData, item: int) -> str:
    """An item's fields, the text that is embedded by default, and its users."""
    fields = data.items.slice(item, 1)
    lines = [f"item {item}, row {data.items_file_rows[item]} of the raw items"]
    for column, value in fields.to_pylist()[0].items():
        if column == "categories":
            value = " | ".join(" > ".join(path) for path in value)
        if value not in ("", None):
            lines.append(f"  {column:12} {value}")
    lines.append(f"  text         {build_item_texts(fields, ItemTextConfig())[0]}")
    positions = np.flatnonzero(data.histories.items == item)
    users = np.searchsorted(data.histories.offsets, positions, side="right") - 1
    users = np.unique(users)
    shown = ", ".join(str(u) for u in users[:_USERS_OF_ITEM])
    more = ", …" if len(users) > _USERS_OF_ITEM else ""
    lines.append(
        f"  {len(positions):,} interactions of {len(users):,} users: {shown}{more}"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tiger_jax.data.show", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--user", help="a user's number or identifier")
    parser.add_argument("--item", help="an item's number or identifier")
    options = parser.parse_args(arguments)
    data = PreparedData.load(options.workdir / "data")
    if options.user is not None:
        say(describe_user(data, _find("user", options.user, data.user_ids)))
    if options.item is not None:
        say(describe_item(data, _find("item", options.item, data.item_ids)))
    if options.user is None and options.item is None:
        say(describe_statistics(data.statistics))
        for user in range(min(_USERS_IN_SUMMARY, data.num_users)):
            say("\n" + describe_user(data, user))


def _describe_item(data: PreparedData, item: int) -> str:
    row = data.items.slice(item, 1).to_pylist()[0]
    title = row["title"] or "(no title)"
    brand = f", {row['brand']}" if row["brand"] else ""
    path = f"  [{' > '.join(row['categories'][0])}]" if row["categories"] else ""
    return f"{title}{brand}{path}  #{item} {row['item_id']}"


def _find(kind: str, wanted: str, ids: tuple[str, ...]) -> int:
    """An identifier goes before a number, which could be one too."""
    if wanted in ids:
        return ids.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(ids):
        return int(wanted)
    raise InputError(
        f"there is no {kind} {wanted!r}: give an identifier, such as {ids[0]!r}, or a "
        f"number below {len(ids):,}"
    )


if __name__ == "__main__":
    outlive_readers()
    try:
        main()
    except UserFacingError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
