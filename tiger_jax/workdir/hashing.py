"""Hashes that name content: the same on every machine, whatever wrote the bytes."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tiger_jax.workdir.arrays import load_array
from tiger_jax.workdir.json_files import canonical, read_json


def hash_arrays(arrays: Mapping[str, Any]) -> str:
    """Hashes named arrays by sorted (name, dtype, shape, values).

    Values may be arrays, or nested mappings and sequences of them.

    Examples:
        >>> a, b = np.arange(3), np.ones(2)
        >>> hash_arrays({"a": a, "b": b}) == hash_arrays({"b": b, "a": a})
        True
        >>> hash_arrays({"a": a}) == hash_arrays({"a": a.astype(np.int32)})
        False
    """
    digest = hashlib.sha256()
    for name, array in sorted(_leaves(arrays)):
        array = np.asarray(array)
        header = f"{name}|{array.dtype.str}|{array.shape}|".encode()
        digest.update(len(header).to_bytes(8, "little") + header)
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """The SHA-256 of a value's canonical JSON."""
    text = json.dumps(canonical(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hash_values(path: Path) -> str:
    """Hashes what a file says rather than how its bytes say it, where known."""
    if path.suffix == ".npy":
        return hash_arrays({"": load_array(path, is_mapped=True)})
    if path.suffix == ".json":
        return hash_json(read_json(path))
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(path).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
            writer.write_table(table.replace_schema_metadata(None))
        return hashlib.sha256(sink.getvalue()).hexdigest()
    return hash_file(path)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, inner in tree.items():
            yield from _leaves(inner, f"{prefix}/{key}")
    elif isinstance(tree, list | tuple):
        for index, inner in enumerate(tree):
            yield from _leaves(inner, f"{prefix}/{index}")
    else:
        yield prefix, tree
