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
    collaborative.npy what they would be bought with, where the model reads that
    attributes.json   values set by hand, by field and item id

Each folder has a manifest with the SHA-256 of every file; it is written beside and
renamed when the disk has it all, so a version is there whole or not at all. The newest
one is in force. To go back is to write an old one's content as the next version:
numbers never come twice. Several processes may change one bundle's catalogue: each
makes its change to the newest version while it holds ``.lock``.

Where another bundle's versions lie in that folder, as after a retrain, these lie in a
folder in it that is named by the beginning of the bundle's hash.
"""

import dataclasses
import functools
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tiger_jax.errors import InputError, LockedError, UserFacingError
from tiger_jax.recommending.bundle import Bundle
from tiger_jax.recommending.catalogue import Catalogue
from tiger_jax.recommending.item_encoder import ItemCoder
from tiger_jax.recommending.trust import ANY, Trust
from tiger_jax.recommending.updates import JoinedRows, UpdateReport, change_rows, update
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import load_arrays, save_arrays
from tiger_jax.workdir.durable import make_folder
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.lock import hold_file
from tiger_jax.workdir.reading import read_unchanged, reading

SUFFIX = ".catalogue"
KEEP = 10
_FORMAT = 1
_FACTS, _ATTRIBUTES = "version.json", "attributes.json"
_REMOVED, _ITEMS = "removed.parquet", "items.parquet"
_ARRAYS = ("codes", "embeddings", "joined")
_ESTIMATED = "collaborative"  # in versions of catalogues that keep such vectors
_LOCK_SECONDS = 60.0


class ConflictError(InputError):
    """Another process changed the catalogue, and now a change fits no more."""


class UnconfirmedError(UserFacingError):
    """A change is in force, but not confirmed by the disk, or not served yet."""


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

    Examples:
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
        self.folder = folder or folder_of(bundle.folder, bundle.content_hash)
        self.bundle, self._keep = bundle, keep
        self._seen: tuple[int, int] | None = None

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        folder: Path | None = None,
        *,
        keep: int = KEEP,
        trust: Trust = ANY,
    ) -> "CatalogueVersions":
        """Reads a bundle's folder, or raises InputError, and finds its versions."""
        return cls(Bundle.load(bundle, trust), folder, keep=keep)

    @property
    def newest(self) -> int:
        """The version in force; 0, the bundle's own, if there is no other."""
        return max(self._numbers(), default=0)

    def load(self, version: int | None = None) -> Catalogue:
        """Reads a version, the newest by default.

        Raises:
            InputError: That version isn't kept, is damaged, or is of another bundle.
        """
        if version is None:
            self._seen, newest = read_unchanged(
                self._stamp, lambda: self._read(self.newest)
            )
            return newest
        return self._read(version)

    def newest_after(self, catalogue: Catalogue) -> Catalogue:
        """A catalogue, where it still is the newest version, or else that one."""
        stamp = self._stamp()
        is_newest = stamp[0] == catalogue.version and self._seen in (None, stamp)
        return catalogue if is_newest else self.load()

    def _stamp(self) -> tuple[int, int]:
        """Tells the newest version from any other, one of its own number too."""
        newest = self.newest
        with suppress(FileNotFoundError):
            return newest, self._path(newest).stat().st_mtime_ns
        return newest, 0

    def _read(self, version: int) -> Catalogue:
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
            try:
                manifest = artifacts.load_manifest(self._path(number), verify=False)
            except InputError:
                if number in self._numbers():
                    raise
                continue  # pruned meanwhile
            num_items, what = manifest.summary["items"], manifest.summary["what"]
            made = manifest.made["finished"]
            found.append(VersionInfo(number, num_items, made, what))
        return found

    def change(
        self, catalogue: Catalogue, **changes: Any
    ) -> tuple[Catalogue, UpdateReport]:
        """Writes the version after the newest one.

        Args:
            catalogue: What the newest version was when it was last looked at.
            **changes: add, remove and attributes; see `updates.update`.

        Raises:
            InputError: The change makes no sense; nothing is written. It is a
                `ConflictError` where another process wrote a version meanwhile.
            UnconfirmedError: The version is in force, but may not outlast the power.
        """
        with self._hold():
            newest = self.newest_after(catalogue)
            try:
                changed, report = update(newest, self.coder, **changes)
            except InputError as error:
                if newest is catalogue:
                    raise
                raise ConflictError(
                    f"the catalogue is at version {newest.version} by now, by another "
                    f"process, and there: {error}"
                ) from error
            numbers = len(report.added), len(report.removed), report.attributes_set
            counts = zip(numbers, ("added", "removed", "set"), strict=True)
            self._save(changed, ", ".join(f"{n} {what}" for n, what in counts if n))
        return changed, report

    @functools.cached_property
    def coder(self) -> ItemCoder:
        """Gives new items their codes; what it loads, it loads once."""
        return self.bundle.parts.coder()

    def roll_back(
        self, catalogue: Catalogue, version: int
    ) -> tuple[Catalogue, UpdateReport]:
        """Writes an earlier version's content as the version after the newest.

        Raises:
            InputError: That version isn't kept, or is damaged.
            UnconfirmedError: See `change`.
        """
        with self._hold():
            old = self.load(version)
            number = self.newest_after(catalogue).version + 1
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

    def start_from(
        self, exported: Catalogue, what: str, **changes: Any
    ) -> UpdateReport:
        """Writes a change to the bundle's own catalogue as the next version.

        Raises:
            InputError: The change makes no sense.
            UnconfirmedError: See `change`.
        """
        with self._hold():
            changed, report = update(exported, self.coder, **changes)
            changed.version = self.newest + 1
            self._save(changed, what)
        return dataclasses.replace(report, version=changed.version)

    def _save(self, catalogue: Catalogue, what: str) -> None:
        """Writes the version after the newest, while the lock is held."""
        path = self._path(catalogue.version)
        # What was killed before its renaming has never been in force.
        partial = path.with_name(path.name + ".partial")
        if partial.exists():
            shutil.rmtree(partial)
        run = artifacts.begin(
            self.folder,
            path.name,
            stage="update_catalogue",
            config={"version": catalogue.version},
            external={"bundle": self.bundle.content_hash},
        )
        _write_parts(run.folder, catalogue, self.bundle)
        is_there = False
        try:
            run.commit(summary={"items": catalogue.num_items, "what": what})
            is_there = True
            self._seen = self._stamp()
        except OSError as error:
            # Not asked of the disk, which may fail again.
            if not (is_there or isinstance(error, artifacts.NotSyncedError)):
                raise
            raise UnconfirmedError(
                f"version {catalogue.version} is in force, but {self.folder} did "
                f"not confirm it ({error}): see to the disk before more changes"
            ) from error

    def prune(self) -> None:
        """Removes all but the newest versions; what can't be now, is the next time."""
        with suppress(OSError, LockedError), self._hold():
            for number in sorted(self._numbers())[: -self._keep]:
                path = self._path(number)
                with suppress(OSError):  # NFS keeps files that somebody reads
                    path.rename(path.with_name(path.name + ".gone"))
            for gone in self.folder.glob("*.gone"):
                shutil.rmtree(gone, ignore_errors=True)

    def _path(self, version: int) -> Path:
        return self.folder / f"version_{version:06d}"

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """Lets one process write at a time; the kernel lets go of a dead one's lock."""
        make_folder(self.folder)
        with hold_file(self.folder / ".lock", seconds=_LOCK_SECONDS):
            yield

    def _numbers(self) -> set[int]:
        return numbers_in(self.folder)


def numbers_in(folder: Path) -> set[int]:
    """The versions that lie in a folder."""
    if not folder.is_dir():
        return set()
    found = (re.fullmatch(r"version_(\d{6,})", path.name) for path in folder.iterdir())
    return {int(number[1]) for number in found if number}


def folder_of(bundle: Path, content_hash: str) -> Path:
    """Where the versions of a bundle with that hash lie, by default."""
    own, short = bundle.resolve(), content_hash[:12]
    root = own.with_name(own.name.removesuffix(f"-{short}") + SUFFIX)
    owners = set()
    for facts in root.glob(f"version_*/{_FACTS}"):
        with suppress(OSError, ValueError, LookupError, TypeError):  # told by `load`
            owners.add(read_json(facts)["bundle"])
    return root if owners <= {content_hash} else root / short


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
    arrays = {
        "codes": catalogue.table.codes[has_joined],
        "embeddings": vectors[has_joined],
        "joined": catalogue.joined[has_joined],
    }
    if catalogue.collaborative is not None:
        arrays[_ESTIMATED] = catalogue.collaborative[has_joined]
    save_arrays(folder, arrays)
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
        has_estimated = (folder / f"{_ESTIMATED}.npy").is_file()
        arrays = load_arrays(folder, [*_ARRAYS, *[_ESTIMATED] * has_estimated])
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
