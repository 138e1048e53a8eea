"""A trie in a folder: plain arrays, and a JSON file that says what they are."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tiger_jax.decoding.trie.exclusion_index import AncestorBits, ExclusionIndex
from tiger_jax.decoding.trie.levels import BitmapLevel, BitsetLevel, CsrLevel, LevelPlan
from tiger_jax.decoding.trie.packed import PackedNumbers, RisingNumbers
from tiger_jax.decoding.trie.planner import TriePlan
from tiger_jax.errors import InputError
from tiger_jax.workdir.arrays import load_arrays, save_arrays
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.reading import reading

_FACTS = "trie.json"
_LEVELS = {"bitset": BitsetLevel, "bitmap": BitmapLevel, "csr": CsrLevel}


def save(
    folder: Path,
    parts: dict[str, Any],
    plan: TriePlan,
    has_unseen: bool,
    content_hash: str,
) -> None:
    """Writes one file an array, and ``trie.json`` when they are all there."""
    folder = Path(folder)
    arrays = dict(_flatten(parts, ""))
    save_arrays(folder, arrays)
    facts = {
        "content_hash": content_hash,
        "arrays": {name: str(array.dtype) for name, array in arrays.items()},
        "has_unseen": has_unseen,
        "levels": [dataclasses.asdict(level) for level in plan.levels],
    }
    write_json(folder / _FACTS, facts)


def load(folder: Path, content_hash: str) -> tuple[dict[str, Any], TriePlan, bool]:
    """Reads what `save` wrote.

    Raises:
        InputError: A file is missing or damaged, or the hash is another one.
    """
    folder = Path(folder)
    with reading(folder, "build and save it again"):
        facts = read_json(folder / _FACTS)
        found = facts["content_hash"]
        plan = TriePlan(tuple(LevelPlan(**level) for level in facts["levels"]))
        arrays = load_arrays(folder, list(facts["arrays"]))
        has_unseen = facts["has_unseen"]
        parts = _unflatten({k: jnp.asarray(v) for k, v in arrays.items()}, plan)
    if found != content_hash:
        raise InputError(
            f"{folder} is the trie of Semantic IDs {found[:12]}, not of "
            f"{content_hash[:12]}: build and save it again"
        )
    return parts, plan, has_unseen


def _flatten(value: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    if value is None or isinstance(value, LevelPlan):
        return
    inner: Iterable[tuple[str, Any]]
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, tuple):
        inner = ((str(i), v) for i, v in enumerate(value))
    elif dataclasses.is_dataclass(value):
        inner = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    else:
        yield name, np.asarray(value)
        return
    for key, item in inner:
        yield from _flatten(item, f"{name}.{key}" if name else key)


def _unflatten(arrays: dict[str, Any], plan: TriePlan) -> dict[str, Any]:
    def part(kind: type, name: str) -> Any:
        names = [field.name for field in dataclasses.fields(kind)]
        return kind(**{key: arrays.get(f"{name}.{key}") for key in names})

    levels = []
    for number, level in enumerate(plan.levels):
        name = f"levels.{number}"
        own: dict[str, Any] = {"plan": level}
        if level.kind == "csr":
            own["tokens"] = arrays[f"{name}.tokens"]
        else:
            own["words"] = arrays[f"{name}.words"]
        if level.kind == "bitmap":
            own["summaries"] = arrays[f"{name}.summaries"]
            own["pointer"] = part(RisingNumbers, f"{name}.pointer")
        own["first"] = part(RisingNumbers, f"{name}.first")
        levels.append(_LEVELS[level.kind](**own))
    exclusion = None
    if "exclusion.leaves.low" in arrays:
        exclusion = ExclusionIndex(
            part(PackedNumbers, "exclusion.leaves"),
            tuple(
                part(AncestorBits, f"exclusion.ancestors.{depth}")
                for depth in range(len(plan.levels) - 1)
            ),
        )
    depths = range(len(plan.levels))
    return {
        "levels": tuple(levels),
        "items": part(PackedNumbers, "items"),
        "num_items": arrays["num_items"],
        "exclusion": exclusion,
        "attributes": tuple(
            arrays[f"attributes.{d}"] for d in depths if f"attributes.{d}" in arrays
        ),
    }
