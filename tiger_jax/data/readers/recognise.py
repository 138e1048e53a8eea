"""Tells from the files in a folder which reader it is for."""

import re
from dataclasses import dataclass
from pathlib import Path

from tiger_jax.errors import InputError

# Kind of folder, what its file of items is called, and that of interactions.
_SHAPES = (
    ("files", r"items\.(csv|jsonl|parquet)", r"interactions\.(csv|jsonl|parquet)"),
    ("recbole", r".+\.item", r".+\.inter"),
    ("movielens", r"movies\.(csv|dat)", r"ratings\.(csv|dat)"),
    ("amazon", r"meta_.+\.json\.gz", r"reviews_.+_5\.json\.gz"),
)
_LOOKED_FOR = (
    "items.csv and interactions.csv (or .jsonl, .parquet); NAME.item and NAME.inter "
    "(RecBole); movies.csv and ratings.csv, or .dat (MovieLens); meta_NAME.json.gz "
    "and reviews_NAME_5.json.gz (Amazon 2014)"
)


@dataclass(frozen=True)
class DataFolder:
    """A folder of raw data that a reader knows.

    Attributes:
      kind: "files", "recbole", "movielens" or "amazon".
      items: The file of items in it.
      interactions: The file of interactions in it.
    """

    kind: str
    items: Path
    interactions: Path


def recognise(folder: Path) -> DataFolder:
    """Finds the two files that make a shop; others may lie beside them.

    Raises:
      InputError: The folder doesn't exist, lacks one of the two files or has two
        to choose from, or holds nothing known: says what is looked for.
    """
    try:
        names = sorted(p.name for p in folder.iterdir() if p.is_file())
    except NotADirectoryError as error:
        raise InputError(
            f"{folder} is a file: give --data_dir the folder that holds it"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{folder} can't be read ({reason}): give --data_dir the folder of a "
            "shop's data"
        ) from error
    halves = []
    for kind, items_pattern, interactions_pattern in _SHAPES:
        items = [n for n in names if re.fullmatch(items_pattern, n)]
        interactions = [n for n in names if re.fullmatch(interactions_pattern, n)]
        for found in (items, interactions):
            if len(found) > 1 and items and interactions:
                raise InputError(
                    f"{folder} holds {' and '.join(found)}: leave only one of them"
                )
        if items and interactions:
            return DataFolder(kind, folder / items[0], folder / interactions[0])
        halves += items + interactions
    if halves:
        raise InputError(
            f"{folder} holds {halves[0]} but not what belongs to it; looked for "
            f"{_LOOKED_FOR}"
        )
    raise InputError(f"{folder} holds no data that is known; looked for {_LOOKED_FOR}")
