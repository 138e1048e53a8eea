"""Small files that would take a machine's memory or a day, and names that lead away."""

import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from small_workdir import make_workdir

from faults.campaign import FINE, Fault, Outcome
from faults.readers import READERS, Reader
from tiger_jax.data.prepared import PreparedData
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.errors import InputError
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.export_recbole import export_recbole
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import load_array
from tiger_jax.workdir.json_files import read_json, write_json

_BY_NAME = {reader.name: reader for reader in READERS}
_MIB, _GIB = 1 << 20, 1 << 30


def _repeated(piece: bytes, num_bytes: int) -> Iterator[bytes]:
    block = piece * (_MIB // len(piece))
    for _ in range(num_bytes // len(block)):
        yield block


def _write(path: Path, pieces: Iterator[bytes], *, is_zipped: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb", 1) if is_zipped else open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)


def _read(reader: Reader, folder: Path) -> str:
    """What is wrong with how the reader takes what lies there, or ""."""
    reader.prepare(folder)
    try:
        reader.check(folder)
    except InputError as error:
        text = str(error)
        return "" if "\n" not in text and len(text) < 3000 else text[:200]
    return ""


def _zipped(name: str, piece: bytes) -> Callable[[Path], str]:
    def attempt(folder: Path) -> str:
        # The readers of Amazon's files, without the compression of `_plain`.
        from tiger_jax.data.readers import amazon

        path = folder / "bomb.json.gz"
        _write(path, _repeated(piece, _GIB // 2), is_zipped=True)
        try:
            if name == "reviews":
                amazon.read_reviews(path)
            else:
                amazon.read_metadata(path, {"B1"})
        except InputError:
            return ""
        return f"{path.stat().st_size:,} bytes were read to their end"

    return attempt


def _filled(name: str, pieces: Callable[[], Iterator[bytes]]) -> Callable[[Path], str]:
    def attempt(folder: Path) -> str:
        reader = _BY_NAME[name]
        reader.prepare(folder)
        _write(folder / reader.file, pieces())
        return _read(reader, folder)

    return attempt


def _digits(before: bytes, after: bytes, count: int) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        yield before
        yield from _repeated(b"7", count)
        yield after

    return pieces


def _many_rows(folder: Path) -> str:
    table = pa.table({"item_id": pa.array(["x"] * 1000).dictionary_encode()})
    reader = _BY_NAME["Parquet"]
    reader.prepare(folder)
    with pq.ParquetWriter(folder / reader.file, table.schema) as writer:
        for _ in range(300):
            many = pa.concat_tables([table] * 1000).combine_chunks()
            writer.write_table(many)
    return _read(reader, folder)


def _long_texts(folder: Path) -> str:
    texts = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(100_000, np.int32)), pa.array(["x" * _MIB])
    )
    ids = pa.array([str(number) for number in range(100_000)])
    table = pa.table({"item_id": ids, "title": texts})
    reader = _BY_NAME["Parquet"]
    reader.prepare(folder)
    pq.write_table(table, folder / reader.file)
    return _read(reader, folder)


def _huge_shape(folder: Path) -> str:
    sink = io.BytesIO()
    np.save(sink, np.ones((3, 4)))
    for shape in (b"(999999999, 4)", b"(10**9, 4)", b"(-3, 4)", b"(3, 4e9)"):
        header = sink.getvalue().replace(b"(3, 4)", shape)
        (folder / "vectors.npy").write_bytes(header)
        try:
            array = load_array(folder / "vectors.npy")
        except ValueError:
            continue
        return f"{shape!r} gave {array.shape}"
    return ""


def _archive(folder: Path) -> str:
    np.savez_compressed(folder / "bomb.npz", np.zeros(_GIB, np.uint8))
    (folder / "bomb.npz").rename(folder / "vectors.npy")
    return _read(_BY_NAME["ready-made .npy"], folder)


def _away(folder: Path) -> str:
    """A data set called ../../away, exported."""
    data = PreparedData.load(make_workdir(folder / "work", name="../../away") / "data")
    assert data.name == "../../away"
    export_recbole(RunContext(folder / "work"))
    inside = {"data", "rqvae", "semantic_ids", "recbole"}
    found = {path.name for path in (folder / "work").iterdir()}
    return "" if found == inside and not (folder / "away").exists() else str(found)


def _names_away(folder: Path) -> str:
    """Ids and categories that are paths, through the reader and back from disk."""
    ids = ["../../away", "/etc/passwd", "..", "C:\\x", "a/b", "$(id)", "`id`", "%n"]
    rows = [json.dumps({"item_id": i, "title": i, "categories": [[i]]}) for i in ids]
    (folder / "items.jsonl").write_text("\n".join(rows))
    events = [f"user,{i},{n}" for n, i in enumerate(ids)]
    text = "user_id,item_id,timestamp\n" + "\n".join(events) + "\n"
    (folder / "interactions.csv").write_text(text)
    shop = FilesConfig().read(folder)
    return "" if shop.items["item_id"].to_pylist() == ids else "other ids"


def _manifest_away(folder: Path) -> str:
    """A manifest that lists a file of somebody else's."""
    workdir = make_workdir(folder / "work")
    (folder / "secret").write_text("secret")
    path = workdir / "data" / artifacts.MANIFEST
    fields = read_json(path)
    fields["files"]["../../secret"] = {"sha256": "0", "bytes": 6}
    fields["seal"] = artifacts.seal(fields)
    write_json(path, fields)
    try:
        artifacts.load_manifest(workdir / "data")
    except InputError as error:
        return "" if "outside" in str(error) else str(error)
    return "taken"


BOMBS: dict[str, Callable[[Path], str]] = {
    "512 MiB in one line, zipped: reviews": _zipped("reviews", b"\0"),
    "512 MiB in one line, zipped: metadata": _zipped("metadata", b"["),
    "512 MiB of empty lines, zipped": _zipped("metadata", b"\n"),
    "300 million rows of Parquet": _many_rows,
    "100,000 texts of 1 MiB in Parquet": _long_texts,
    "shapes that no array has": _huge_shape,
    "an archive for an array": _archive,
    "a billion digits in JSON lines": _filled(
        "JSONL items", _digits(b'{"item_id": ', b"}\n", 10**9)
    ),
    "a billion digits in CSV": _filled(
        "CSV interactions", _digits(b"user_id,item_id,timestamp\nu,a,", b"\n", 10**9)
    ),
    "a billion digits in RecBole": _filled(
        "RecBole .inter",
        _digits(b"user_id:token\titem_id:token\ttimestamp:float\nu\ta\t", b"\n", 10**9),
    ),
    "a hundred million digits in a JSON of codes": _filled(
        "Semantic ID JSON", _digits(b'{"a": [', b"]}", 10**8)
    ),
    "a million digits in gin": _filled("gin files", _digits(b"SEED = ", b"\n", 10**6)),
    "a million brackets in gin": _filled(
        "gin files", lambda: iter([b"SEED = " + b"(" * 10**6])
    ),
    "256 MiB of null bytes in CSV": _filled(
        "CSV items", lambda: _repeated(b"\0", 1 << 28)
    ),
    "256 MiB of null bytes in JSON lines": _filled(
        "JSONL items", lambda: _repeated(b"\0", 1 << 28)
    ),
    "256 MiB of line ends in CSV": _filled(
        "CSV items", lambda: iter([b"item_id,title", *_repeated(b"\n", 1 << 28)])
    ),
    "a data set's name that leads away": _away,
    "items' names that lead away": _names_away,
    "a manifest that leads away": _manifest_away,
}


def _attempt(number: int, folder: Path) -> Outcome:
    name, make = list(BOMBS.items())[number % len(BOMBS)]
    own = folder / f"bomb_{number}"
    own.mkdir(parents=True, exist_ok=True)
    problem = make(own)
    for path in sorted(own.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return Outcome(wrong=1, note=f"{name}: {problem}") if problem else FINE


FAULTS = [
    Fault(
        "input: bombs, and names that lead away",
        len(BOMBS),
        _attempt,
        seconds=300,
        gigabytes=10,
    )
]
