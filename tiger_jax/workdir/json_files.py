"""JSON files of configs and facts, written whole."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON beside the file, then renames it into place."""
    text = json.dumps(canonical(value), indent=1, ensure_ascii=False) + "\n"
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_json(path: Path) -> Any:
    """Reads a JSON file that this package wrote; a ValueError if it can't be."""
    with open(path, encoding="utf-8", errors="surrogatepass") as file:
        try:
            return json.load(file)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error


# The metadata of a config's field that came later: at its default it stays out of
# `canonical`, so that what was made without the field is still up to date.
ADDED_LATER = {"added_later": True}


def canonical(value: Any) -> Any:
    """Turns configs into plain JSON values; dataclasses keep their class's name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: getattr(value, f.name)
            for f in dataclasses.fields(value)
            if f.metadata != ADDED_LATER or getattr(value, f.name) != f.default
        }
        return {"class": type(value).__name__, **canonical(fields)}
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [canonical(v) for v in items]
    if isinstance(value, np.generic):
        return canonical(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a config may not hold a {type(value).__name__}: {value!r}")
