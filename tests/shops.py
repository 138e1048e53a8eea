"""Small shops for the data room's tests, as files and as tables."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from tiger_jax.data.raw_shop import INTERACTION_COLUMNS, ITEM_COLUMNS, RawShop


def shop_of(
    events: Iterable[tuple[str, str, float]], item_ids: Sequence[str] | None = None
) -> RawShop:
    """A shop of (user, item, time); items in order of first appearance by default."""
    events = list(events)
    ids = list(item_ids or dict.fromkeys(item for _, item, _ in events))
    items = {
        "item_id": ids,
        "title": [f"Title of {i}" for i in ids],
        "brand": ["" for _ in ids],
        "price": [None for _ in ids],
        "categories": [[["Shop", f"Shelf {n % 3}"]] for n in range(len(ids))],
    }
    users, event_items, times = zip(*events, strict=True) if events else ((), (), ())
    interactions = {
        "user_id": list(users),
        "item_id": list(event_items),
        "timestamp": [float(t) for t in times],
    }
    return RawShop(
        "small shop",
        pa.table({c: pa.array(items[c], t) for c, t in ITEM_COLUMNS.items()}),
        pa.table(
            {c: pa.array(interactions[c], t) for c, t in INTERACTION_COLUMNS.items()}
        ),
    )


def write(path: Path, text: str | bytes) -> Path:
    """Writes a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def json_lines(rows: Iterable[object]) -> str:
    """One JSON value a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


ITEMS_CSV = """item_id,title,brand,price,categories,colour
a,"Red polish, shiny",OPI,$4.50,Beauty > Nails,red
b,Blue polish,,"1,299.00",Beauty > Nails | Gifts,blue
c,,Essie,,,
"""
INTERACTIONS_CSV = """user_id,item_id,timestamp
u1,a,3
u1,b,1
u2,c,2
"""


def write_csv_shop(
    folder: Path,
    items: str | bytes = ITEMS_CSV,
    interactions: str | bytes = INTERACTIONS_CSV,
) -> Path:
    """A folder with items.csv and interactions.csv."""
    write(folder / "items.csv", items)
    write(folder / "interactions.csv", interactions)
    return folder
