"""The catalogue's versions on disk, beside the bundle that they belong to.

``BUNDLE.catalogue/version_000007/`` holds all that tells version 7 from the
catalogue that the bundle was exported with, so any version can be read alone and its
size is that of the changes:

    version.json      the bundle's hash, the Semantic IDs', and the numbers
    removed.parquet   ids of the bundle's items that are gone
    items.parquet     the items that have joined, with the bundle's columns
    codes.npy         their Semantic IDs
    embeddings.npy    their vectors
    joined.npy        the version in which each came
    attributes.json   values set by hand, by field and item id

Each folder has a manifest with the SHA-256 of every file; it is written beside and
renamed, so a version is there whole or not at all. The newest one is in force. To go
back is to write an old one's content as the next version: numbers never come twice.
"""

import dataclasses
import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tiger_jax.errors import InputError
from tiger_jax.recommending.bundle import Bundle
from tiger_jax.recommending.catalogue import Catalogue
from tiger_jax.recommending.updates import JoinedRows, UpdateReport, change_rows, update
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import load_arrays, save_arrays
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.reading import reading

SUFFIX = ".catalogue"
KEEP = 10
_FORMAT = 1
_FACTS, _ATTRIBUTES = "version.json", "attributes.json"
_REMOVED, _ITEMS = "removed.parquet", "items.parquet"
_ARRAYS = ("codes", "embeddings", "joined")


@dataclasses.dataclass(frozen=True)
class VersionInfo:
    """A version that is kept.

    Attributes:
        made: When, as ISO 8601; "" for the bundle's own.
        what: How it came about.
    """

    version: int
    num_items: int
    made: str
    what: str


class CatalogueVersions:
    """Reads and writes the versions of one bundle's catalogue.

    Example:
        versions = CatalogueVersions.open(Path("runs/my_shop/bundle"))
        recommender = Recommender.load(versions)
        recommender.update(versions, add=[{"item_id": "a7", "title": "Red soap"}])
        recommender.roll_back(versions, 0)
    """

    def __init__(
        self, bundle: Bundle, folder: Path | None = None, *, keep: int = KEEP
    ) -> None:
        """Takes a bundle that has been read; InputError if no version would be kept.

        Args:
            folder: Where the versions lie; beside the bundle by default.
            keep: Newest versions that stay on disk.
        """
        if keep < 1:
            raise InputError(f"at least one version must be kept, not {keep}")
        own = bundle.folder.resolve()
        self.folder = folder or own.with_name(own.name + SUFFIX)
        self.bundle, self._keep = bundle, keep

    @classmethod
    def open(
        cls, bundle: str | Path, folder: Path | None = None, *, keep: int = KEEP
    ) -> "CatalogueVersions":
        """Reads a bundle's folder, or raises InputError, and finds its versions."""
        return cls(Bundle.load(bundle), folder, keep=keep)

    @property
    def newest(self) -> int:
        """The version in force; 0, the bundle's own, if there is no other."""
        return max(self._numbers(), default=0)

    def load(self, version: int | None = None) -> Catalogue:
        """Reads a version, by default the newest; InputError if it isn't kept whole."""
        version = self.newest if version is None else version
        exported = self.bundle.parts.catalogue()
        if version == 0:
            return exported
        if version not in self._numbers():
            kept = ", ".join(map(str, [0, *sorted(self._numbers())]))
            raise InputError(f"version {version} is not kept; there are {kept}")
        return _read_version(self._path(version), exported, self.bundle.content_hash)

    def kept(self) -> list[VersionInfo]:
        """What is kept, the bundle's own first; InputError if a version is damaged."""
        parts = self.bundle.parts
        found = [VersionInfo(0, parts.table.num_items, "", "as exported")]
        for number in sorted(self._numbers()):
            manifest = artifacts.load_manifest(self._path(number), verify=False)
            num_items, what = manifest.summary["items"], manifest.summary["what"]
            made = manifest.made["finished"]
            found.append(VersionInfo(number, num_items, made, what))
        return found

    def change(
        self, catalogue: Catalogue, **changes: Any
    ) -> tuple[Catalogue, UpdateReport]:
        """Writes the version after `catalogue`, the newest one; see `updates.update`.

        InputError if the change makes no sense, or `catalogue` isn't the newest
        version by now; nothing is written.
        """
        changed, report = update(catalogue, self.bundle.parts.coder(), **changes)
        numbers = len(report.added), len(report.removed), report.attributes_set
        counts = zip(numbers, ("added", "removed", "set"), strict=True)
        self._save(changed, ", ".join(f"{n} {what}" for n, what in counts if n))
        return changed, report

    def roll_back(
        self, catalogue: Catalogue, version: int
    ) -> tuple[Catalogue, UpdateReport]:
        """Writes an earlier version's content as the version after `catalogue`.

        InputError as of `load`, or if `catalogue` isn't the newest version by now.
        """
        old = self.load(version)
        number = catalogue.version + 1
        again = change_rows(
            old,
            np.ones(old.num_items, bool),
            JoinedRows.none(old),
            attributes=old.attributes,
            version=number,
        )
        what = f"back to version {version}"
        self._save(again, what)
        report = UpdateReport(number, again.num_items, again.capacity, notes=(what,))
        return again, report

    def _save(self, catalogue: Catalogue, what: str) -> None:
        """Writes a version; the one before it must be the newest on disk."""
        with _hold(self.folder):
            if catalogue.version != self.newest + 1:
                raise InputError(
                    f"{self.folder} has version {self.newest} by now, so another "
                    f"process changes it too: version {catalogue.version} was not "
                    "written; load the newest and try again"
                )
            path = self._path(catalogue.version)
            # What was killed before its renaming has never been in force.
            shutil.rmtree(path.with_name(path.name + ".partial"), ignore_errors=True)
            run = artifacts.begin(
                self.folder,
                path.name,
                stage="update_catalogue",
                config={"version": catalogue.version},
                external={"bundle": self.bundle.content_hash},
            )
            _write_parts(run.folder, catalogue, self.bundle)
            run.commit(summary={"items": catalogue.num_items, "what": what})
            for number in sorted(self._numbers())[: -self._keep]:
                shutil.rmtree(self._path(number))

    def _path(self, version: int) -> Path:
        return self.folder / f"version_{version:06d}"

    def _numbers(self) -> set[int]:
        if not self.folder.is_dir():
            return set()
        paths = self.folder.iterdir()
        found = (re.fullmatch(r"version_(\d{6,})", path.name) for path in paths)
        return {int(number[1]) for number in found if number}


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """Lets one process write at a time; the kernel lets go of a dead one's lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_parts(folder: Path, catalogue: Catalogue, bundle: Bundle) -> None:
    has_joined = catalogue.joined > 0
    old = {catalogue.item_ids[i] for i in np.flatnonzero(~has_joined).tolist()}
    removed = [i for i in bundle.parts.table.item_ids if i not in old]
    ids = pa.table({"item_id": pa.array(removed, pa.string())})
    pa.parquet.write_table(ids, folder / _REMOVED)
    joined = catalogue.items.filter(pa.array(has_joined))
    pa.parquet.write_table(joined, folder / _ITEMS)
    vectors = catalogue.embeddings
    if vectors is None:
        vectors = np.empty((len(has_joined), 0), np.float32)
    save_arrays(
        folder,
        {
            "codes": catalogue.table.codes[has_joined],
            "embeddings": vectors[has_joined],
            "joined": catalogue.joined[has_joined],
        },
    )
    write_json(folder / _ATTRIBUTES, catalogue.attributes)
    write_json(
        folder / _FACTS,
        {
            "format": _FORMAT,
            "version": catalogue.version,
            "bundle": bundle.content_hash,
            "semantic_ids": catalogue.table.content_hash,
        },
    )


def _read_version(folder: Path, exported: Catalogue, bundle: str) -> Catalogue:
    artifacts.load_manifest(folder)
    with reading(folder, "move it away to go back to the version before"):
        facts = read_json(folder / _FACTS)
        if facts["format"] != _FORMAT:
            raise InputError(
                f"{folder} has format {facts['format']}, and {_FORMAT} is read here"
            )
        if facts["bundle"] != bundle:
            raise InputError(
                f"{folder} belongs to the bundle {facts['bundle'][:12]}, and the one "
                f"beside it is {bundle[:12]}: put that bundle back, or move {folder} "
                "and its neighbours away and make the changes again"
            )
        removed = pa.parquet.read_table(folder / _REMOVED)["item_id"].to_pylist()
        arrays = load_arrays(folder, _ARRAYS)
        items = pa.parquet.read_table(folder / _ITEMS).cast(exported.items.schema)
        rows = JoinedRows(items, **arrays)
        kept = np.ones(exported.num_items, bool)
        kept[[exported.number_of[item_id] for item_id in removed]] = False
        catalogue = change_rows(
            exported,
            kept,
            rows,
            attributes=read_json(folder / _ATTRIBUTES),
            version=int(facts["version"]),
        )
        expected = facts["semantic_ids"]
    if catalogue.table.content_hash != expected:
        raise InputError(
            f"{folder} holds the Semantic IDs {catalogue.table.content_hash[:12]}, and "
            f"its {_FACTS} names {expected[:12]}: its parts are of several versions; "
            "move it away to go back to the version before"
        )
    return catalogue
