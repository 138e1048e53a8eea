"""The power goes: what the disk was not asked to confirm may be there, or not.

Each change of names and each sync that Python makes is recorded, with the bytes as they
were; a try goes back to one of these moments, drops at random what had not been synced
by then, and starts again from that.
"""

import contextlib
import dataclasses
import functools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from joining import new_items
from served import make_recommender
from trained_workdir import make_trained_workdir

from faults.campaign import FINE, Fault, Outcome
from tiger_jax.recommending.bundle import Bundle
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.export import export
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import load_array, save_arrays
from tiger_jax.workdir.json_files import write_json

_RENAMING = ("rename", "replace", "mkdir", "rmdir", "unlink")
_ROOT = 0


@dataclasses.dataclass
class _Moment:
    """The file system after one call: names by folder, bytes by file."""

    folders: dict[int, dict[str, int]]
    files: dict[int, bytes]
    synced_folders: dict[int, int]  # the moment of each one's last sync
    synced_files: dict[int, bytes]
    acknowledged: int


class Recorder:
    """What happens under one folder while `watching`."""

    def __init__(self, root: Path) -> None:
        self.root, self.moments = root, list[_Moment]()
        self.acknowledged = 0
        self._next = 1
        self._bytes: dict[tuple, bytes] = {}
        self._synced_folders: dict[int, int] = {}
        self._synced_files: dict[int, bytes] = {}
        self.settle()  # what is there at the beginning has been there for long

    def settle(self) -> None:
        """Has the disk confirm all that is there, whoever made it."""
        self._ids = {self.root.stat().st_ino: _ROOT}
        folders, files = self._look()
        self._synced_folders = dict.fromkeys(folders, len(self.moments))
        self._synced_files = dict(files)
        self._note()

    def _look(self) -> tuple[dict[int, dict[str, int]], dict[int, bytes]]:
        folders: dict[int, dict[str, int]] = {}
        files: dict[int, bytes] = {}
        ids: dict[int, int] = {}

        def identify(inode: int) -> int:
            if inode not in self._ids:
                self._ids[inode], self._next = self._next, self._next + 1
            ids[inode] = self._ids[inode]
            return ids[inode]

        def walk(folder: Path) -> None:
            own = folders.setdefault(identify(folder.stat().st_ino), {})
            for entry in os.scandir(folder):
                found = entry.stat(follow_symlinks=False)
                own[entry.name] = identify(found.st_ino)
                if entry.is_dir():
                    walk(Path(entry.path))
                else:
                    key = (own[entry.name], found.st_size, found.st_mtime_ns)
                    if key not in self._bytes:
                        self._bytes[key] = Path(entry.path).read_bytes()
                    files[own[entry.name]] = self._bytes[key]

        walk(self.root)
        self._ids = ids  # an inode that is gone may come again as another file
        return folders, files

    def _note(self) -> None:
        folders, files = self._look()
        moment = _Moment(
            folders,
            files,
            dict(self._synced_folders),
            dict(self._synced_files),
            self.acknowledged,
        )
        self.moments.append(moment)

    def acknowledge(self) -> None:
        """The work so far has been reported as done."""
        self.acknowledged += 1
        self._note()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Records what the block does."""
        real = {name: getattr(os, name) for name in (*_RENAMING, "fsync")}

        def wrap(name: str) -> Callable:
            @functools.wraps(real[name])
            def call(*args: Any, **options: Any) -> Any:
                done = real[name](*args, **options)
                self._note()
                return done

            return call

        def fsync(descriptor: int) -> None:
            real["fsync"](descriptor)
            self._note()
            known, last = self._ids.get(os.fstat(descriptor).st_ino), self.moments[-1]
            if known in last.folders:
                self._synced_folders[known] = len(self.moments) - 1
            elif known in last.files:
                self._synced_files[known] = last.files[known]

        for name in _RENAMING:
            setattr(os, name, wrap(name))
        os.fsync = fsync
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    def lose_power(self, number: int, rng: random.Random, target: Path) -> int:
        """Makes what a moment may have left; returns what was acknowledged by then."""
        moment = self.moments[number]
        shutil.rmtree(target, ignore_errors=True)
        # A journal keeps names in order: they are those of one moment, or newer.
        reached = rng.choice([0, number, rng.randint(0, number)])
        keeps = rng.choice(["nothing", "all", "some"])

        def content(file: int) -> bytes:
            synced = moment.synced_files.get(file, b"")
            now = moment.files.get(file, synced)
            half = now[: rng.randint(0, len(now))]
            choices = {"nothing": [synced], "all": [now], "some": [synced, now, half]}
            return synced if synced == now else rng.choice(choices[keeps])

        def build(folder: int, path: Path) -> None:
            path.mkdir(parents=True)
            synced = moment.synced_folders.get(folder)
            at = max(reached, -1 if synced is None else synced)
            for name, child in self.moments[at].folders.get(folder, {}).items():
                if any(child in m.folders for m in self.moments):
                    build(child, path / name)
                else:
                    (path / name).write_bytes(content(child))

        build(_ROOT, target)
        return moment.acknowledged


# --- Updates of a catalogue ----------------------------------------------------------


@functools.cache
def _workdir(folder: Path) -> Path:
    shutil.rmtree(folder / "work", ignore_errors=True)
    workdir = make_trained_workdir(folder / "work", with_quantizer=True)
    export(RunContext(workdir), num_beams=10, batch_sizes=(1,))
    return workdir


@functools.cache
def _updates(folder: Path) -> tuple[Recorder, Bundle, list[str]]:
    shutil.rmtree(folder / "parts", ignore_errors=True)
    bundle, root = make_recommender(folder / "parts")[1].bundle, folder / "updates"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    recorder = Recorder(root)
    versions = CatalogueVersions(bundle, root / "made" / "versions", keep=3)
    catalogue = versions.load()
    expected = [catalogue.table.content_hash]
    with recorder.watching():
        for n in range(6):
            change = {"add": new_items(2, seed=n), "remove": [f"item-{n}"]}
            if n == 4:
                catalogue, _ = versions.roll_back(catalogue, 2)
            else:
                catalogue, _ = versions.change(catalogue, **change)
            recorder.acknowledge()
            versions.prune()
            expected.append(catalogue.table.content_hash)
    return recorder, bundle, expected


def cut_updates(number: int, folder: Path) -> Outcome:
    """The last change acknowledged is there, and the next one can be made."""
    recorder, bundle, expected = _updates(folder)
    rng, target = UPDATES.random(number), folder / "after"
    moment = number * 7919 % len(recorder.moments)
    acknowledged = recorder.lose_power(moment, rng, target)
    versions = CatalogueVersions(bundle, target / "made" / "versions", keep=3)
    catalogue = versions.load()
    version = catalogue.version
    if version not in (acknowledged, acknowledged + 1):
        return Outcome(lost=1, note=f"moment {moment}: {version}, not {acknowledged}")
    if catalogue.table.content_hash != expected[version]:
        return Outcome(lost=1, note=f"moment {moment}: another content of {version}")
    catalogue, _ = versions.change(catalogue, attributes={"*": {"in_stock": True}})
    versions.prune()
    return FINE if versions.load().version == version + 1 else Outcome(lost=1)


# --- Folders of stages ---------------------------------------------------------------


def _make(workdir: Path, value: int) -> None:
    run = artifacts.begin(workdir, "data", stage="prepare_data", config={"v": value})
    save_arrays(run.folder / "deep" / "er", {"values": np.full(300, value)})
    table = pa.table({"value": [value] * 300})
    pa.parquet.write_table(table, run.folder / "deep" / "table.parquet")
    write_json(run.folder / "facts.json", {"value": value})
    run.commit()


@functools.cache
def _stages(folder: Path) -> Recorder:
    root = folder / "stages"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    recorder = Recorder(root)
    with recorder.watching():
        for value in range(1, 5):
            _make(root / "run" / "shop", value)
            recorder.acknowledge()
    return recorder


def cut_stage(number: int, folder: Path) -> Outcome:
    """A stage's folder is the last one made, or the one being made, whole."""
    recorder, target = _stages(folder), folder / "after"
    moment = number * 7919 % len(recorder.moments)
    made = recorder.lose_power(moment, STAGES.random(number), target)
    workdir = target / "run" / "shop"
    artifacts.recover_all(workdir)
    if made or (workdir / "data").exists():
        artifacts.load_manifest(workdir / "data")
        value = int(load_array(workdir / "data" / "deep" / "er" / "values.npy")[0])
        if value not in (made, made + 1):
            return Outcome(lost=1, note=f"moment {moment}: {value}, not {made}")
    _make(workdir, 9)
    artifacts.load_manifest(workdir / "data")
    return FINE


def _served(workdir: Path) -> tuple[str, int, frozenset[str]]:
    """What a server would start with."""
    bundle = Bundle.load(workdir / "bundle")
    ids = CatalogueVersions(bundle).load().item_ids
    return bundle.content_hash, bundle.shapes.num_beams, frozenset(ids)


@functools.cache
def _exports(folder: Path) -> tuple[Recorder, list]:
    """In another shape, and then of another model, with the shop's changes."""
    workdir = _workdir(folder)
    versions = CatalogueVersions.open(workdir / "bundle")
    versions.change(versions.load(), add=new_items(2), remove=["item-7"])
    recorder, expected = Recorder(workdir), [_served(workdir)]
    shutil.rmtree(folder / "newer", ignore_errors=True)
    newer = make_trained_workdir(folder / "newer", seed=1, with_quantizer=True)
    for is_retrained in (False, True):
        if is_retrained:
            for made in newer.iterdir():
                shutil.rmtree(workdir / made.name)
                shutil.copytree(made, workdir / made.name)
            recorder.settle()
        with recorder.watching():
            export(RunContext(workdir), num_beams=11, batch_sizes=(1,))
            recorder.acknowledge()
        expected.append(_served(workdir))
    return recorder, expected


def cut_export(number: int, folder: Path) -> Outcome:
    """A bundle can be served: the last one exported, or the one being exported."""
    (recorder, expected), target = _exports(folder), folder / "after"
    moment = number * 7919 % len(recorder.moments)
    made = recorder.lose_power(moment, EXPORTS.random(number), target)
    artifacts.recover_all(target)
    found = _served(target)
    if found not in expected[made : made + 2]:
        return Outcome(lost=1, note=f"moment {moment}: {found} after {made}")
    if found == expected[2]:
        before = expected[0][0]
        kept = Bundle.load(target / f"bundle-{before[:12]}")
        return FINE if kept.content_hash == before else Outcome(lost=1)
    return FINE


UPDATES = Fault("power: updates of a catalogue", 1000, cut_updates, quick=20)
STAGES = Fault("power: a stage's folder", 1000, cut_stage, quick=60)
EXPORTS = Fault("power: an export", 1000, cut_export)
FAULTS = [UPDATES, STAGES, EXPORTS]
