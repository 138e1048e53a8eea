"""A work directory on an object store, mirrored by a folder here while stages run.

What stages have made lies in the store under the names it has on a disk, the manifest
of each folder written last. What has no manifest yet (``NAME.partial``), or several
(``bundle.catalogue``), lies there as a snapshot: files under the names of their hashes,
and ``index.json``, written last, which says what they are called. Nothing that an index
or a manifest names is overwritten or removed before the next one stands: a folder that
is replaced is sent as a snapshot first.

``.store.json`` in the folder here holds the hash of each manifest and index that the
store was last seen with. It tells work that was not sent yet from what is old here.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tiger_jax.errors import InputError, UserFacingError
from tiger_jax.progress import say
from tiger_jax.stage_table import MADE_BY, STAGES
from tiger_jax.workdir import artifacts, lease
from tiger_jax.workdir.durable import make_folder
from tiger_jax.workdir.hashing import hash_file, hash_json
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.lock import LOCK_FILE, hold_file
from tiger_jax.workdir.store import Store, StoreError, at_once, is_url

_INDEX, _RECORD, _SEEDS = "index.json", ".store.json", "seeds/metrics.json"
_BUNDLE, _CATALOGUE = "bundle", ".catalogue"
_SECONDS_BETWEEN_SNAPSHOTS = 30.0
_LOOKS = 5
# Their pipelines' workers write into one folder, under its path.
_NOT_HERE = ("prepare_shards", "assign_shards")


class _Changing(Exception):
    """A file changed while it was read."""


class RemoteWorkdir:
    """A work directory on a store.

    Attributes:
        local: The folder that mirrors it; one process at a time may work there.
    """

    def __init__(self, url: str, *, is_reader: bool = False) -> None:
        """Finds the store, and asks it nothing yet.

        Args:
            is_reader: Only ever fetch, into a folder of its own.
        """
        self.store, self._is_reader = Store(url), is_reader
        self.local = _cache_of(url + " read" * is_reader)
        self._lease: lease.Lease | None = None
        self._blobs: dict[str, set[str]] = {}
        self._hashes: dict[tuple[Path, int, int], str] = {}

    def reader(self) -> "RemoteWorkdir":
        return RemoteWorkdir(self.store.url, is_reader=True)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Holds the work directory in the store, for who holds `local`.

        Raises:
            LockedError: Another run holds it.
        """
        make_folder(self.local)
        record = self._record()
        place = record.setdefault("place", uuid.uuid4().hex)
        write_json(self.local / _RECORD, record)
        with lease.hold(self.store, place) as self._lease:
            yield

    @contextlib.contextmanager
    def stage(self, workdir: Path, stage: str) -> Iterator[None]:
        """Fetches what a stage reads and what it left unfinished; sends what it makes.

        Args:
            workdir: `local`, or one under it.

        Raises:
            InputError: The store fails, or holds another folder than is to be sent.
        """
        if stage in _NOT_HERE:
            raise InputError(
                f"--stage={stage} can't work in {self.store.url}: its pipeline's "
                "workers need a --workdir on a file system that they share"
            )
        writes = STAGES[stage].writes
        own = self._name(workdir, writes) if writes else None
        names = [*STAGES[stage].reads, *([writes] if writes else [])]
        names += [_BUNDLE + _CATALOGUE] * (_BUNDLE in names)
        names += [name for name in MADE_BY if (workdir / name).is_dir()]
        names = [self._name(workdir, name) for name in names]
        if self._is_reader:
            self.fetch(*names)
            say(
                f"note: {self.local} is a copy of {self.store.url}: changes that are "
                "made to it here stay here"
            )
        else:
            self._fetch_all(names)
        if own is None:
            yield
            return
        self._fetch_unfinished(own)
        with self._snapshots(own):
            yield
        for name in self._made_beside(own):
            self._reconcile(name)
        self._reconcile(own)

    def fetch(self, *names: str) -> Path:
        """Brings folders here that are whole in the store; returns `local`."""
        make_folder(self.local)
        with hold_file(self.local / f"{LOCK_FILE}.fetch", seconds=600.0):
            self._fetch_all(names)
        return self.local

    def send_summary(self) -> None:
        """Sends what the stages of several seeds came to."""
        if (self.local / _SEEDS).is_file():
            self.store.write(_SEEDS, (self.local / _SEEDS).read_bytes())

    # --- One folder: which side is newer ------------------------------------------

    def _fetch_all(self, names: Iterable[str]) -> None:
        todo, done = list(names), set()
        for name in todo:
            if name not in done:
                done.add(name)
                self._reconcile(name)
        # A folder's own inputs: where they have changed, it is refused.
        for name in sorted(done):
            folder = self.local / name
            for used in _inputs(folder):
                inner = self._name(folder.parent, used)
                if inner not in done:
                    done.add(inner)
                    self._reconcile(inner)

    def _reconcile(self, name: str) -> None:
        """Fetches a folder, or sends it where it is newer here."""
        for _ in range(_LOOKS):
            theirs = self.store.read(_key(name))
            try:
                return self._take(name, theirs)
            except _Changing:
                continue
            except StoreError:
                # Its writer may have replaced it meanwhile.
                if not self._is_reader or self.store.read(_key(name)) == theirs:
                    raise
        raise StoreError(f"{self.store.url}/{name} is replaced again and again: wait")

    def _take(self, name: str, theirs: bytes | None) -> None:
        is_whole = theirs is None and not _is_snapshot(name) and self._finish(name)
        mine, known = self._mine(name), self._sent(name)
        if mine == theirs:
            self._note(name, theirs)
        elif theirs is None and self._is_reader and not is_whole:
            shutil.rmtree(self.local / name, ignore_errors=True)
        elif mine is None or (theirs is not None and _hash(mine) == known):
            assert theirs is not None
            self._get(name, theirs)
        elif theirs is not None and _hash(theirs) != known:
            self._check()  # who took over says why
            raise InputError(
                f"{self.store.url}/{name} and {self.local / name} were both made anew: "
                "move that folder away to go on with the store's, or remove the "
                "store's"
            )
        elif not self._is_reader:
            say(f"sending {name} to {self.store.url}")
            self._send(name, mine, theirs)

    def _finish(self, name: str) -> bool:
        """Takes a whole folder that was sent, and not yet put into its place."""
        data = self.store.read(f"{name}.partial/{_INDEX}")
        if data is None:
            return False
        partial = f"{name}.partial"
        if artifacts.MANIFEST not in self._parse(partial, data)["files"]:
            return False
        self._get(partial, data)
        artifacts.recover(self.local / name)
        return True

    def _made_beside(self, own: str) -> list[str]:
        """What a bundle's export leaves besides it: versions, and the one before."""
        bundle = self.local / own
        if bundle.name != _BUNDLE:
            return []
        kept = bundle.parent.glob(f"{_BUNDLE}-*/{artifacts.MANIFEST}")
        names = [f"{_BUNDLE}{_CATALOGUE}", *(path.parent.name for path in kept)]
        return [self._name(bundle.parent, name) for name in names]

    def _mine(self, name: str) -> bytes | None:
        folder = self.local / name
        if _is_snapshot(name):
            if not folder.is_dir():
                return None
            files = {n: self._entry(path) for n, path in _listing(folder)[0].items()}
            return _index(files, _listing(folder)[1])
        path = folder / artifacts.MANIFEST
        return path.read_bytes() if path.is_file() else None

    # --- From the store -----------------------------------------------------------

    def _fetch_unfinished(self, own: str) -> None:
        for name in self._unfinished(own):
            data = self.store.read(f"{name}/{_INDEX}")
            if data is None:  # killed before the first was whole
                continue
            whole = self._parse(name, data)["files"].get(artifacts.MANIFEST)
            if whole and whole["sha256"] == self._sent(own):
                continue  # in its place, and killed before this was removed
            is_here = (self.local / name).is_dir()
            if not is_here or _hash(data) != self._sent(name):
                say(f"fetching {self.store.url}/{name}")
                self._get(name, data)
            if artifacts.is_made(self.local / name, self.local / own):
                shutil.rmtree(self.local / name)
        artifacts.recover(self.local / own)
        self._reconcile(own)
        self._drop_unfinished(own)

    def _unfinished(self, own: str) -> list[str]:
        """Names of a folder's unfinished versions in the store."""
        parent = own.rpartition("/")[0]
        found = self.store.folders(parent)
        named = (f"{parent}/{name}".lstrip("/") for name in found)
        pattern = re.escape(f"{own}.partial") + "(-[0-9a-f]+)?"
        return [name for name in named if re.fullmatch(pattern, name)]

    def _get(self, name: str, data: bytes) -> None:
        """Makes a folder here what a manifest or index of the store says."""
        facts, target = self._parse(name, data), self.local / name
        beside = target.with_name(f"{target.name}.fetched")
        shutil.rmtree(beside, ignore_errors=True)
        make_folder(beside)

        def get(item: tuple[str, Mapping[str, Any]]) -> None:
            file, expected = item
            stored = expected["sha256"] if _is_snapshot(name) else file
            self.store.get(f"{name}/{stored}", beside / file)
            if hash_file(beside / file) != expected["sha256"]:
                raise StoreError(
                    f"{self.store.url}/{name}/{stored} isn't what was written: remove "
                    f"{self.store.url}/{name} and make it again"
                )

        at_once(get, facts["files"].items())
        for folder in facts.get("folders", ()):
            (beside / folder).mkdir(parents=True, exist_ok=True)
        if not _is_snapshot(name):
            (beside / artifacts.MANIFEST).write_bytes(data)
            artifacts.load_manifest(beside, verify=False)
        artifacts.exchange(beside, target)
        self._note(name, data)

    def _parse(self, name: str, data: bytes) -> dict[str, Any]:
        try:
            facts = json.loads(data)
            inside = [*facts["files"], *facts.get("folders", ())]
            is_right = all(map(artifacts.is_inside, inside)) and all(
                re.fullmatch("[0-9a-f]{64}", entry["sha256"])
                for entry in facts["files"].values()
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            is_right = False
        if not is_right:
            raise StoreError(
                f"{self.store.url}/{_key(name)} is damaged: remove that folder and "
                "make it again"
            )
        return facts

    # --- To the store -------------------------------------------------------------

    def _send(self, name: str, mine: bytes, theirs: bytes | None) -> None:
        if _is_snapshot(name):
            self._send_whole(name)
            return
        folder, files = self.local / name, self._parse(name, mine)["files"]
        if theirs is not None:
            self._send_whole(f"{name}.partial", folder)
            self._check()
            self.store.remove([_key(name)])
        at_once(lambda n: self.store.put(folder / n, f"{name}/{n}"), files)
        self._check()
        self.store.write(_key(name), mine)
        self._note(name, mine)
        kept = {_key(name), *(f"{name}/{n}" for n in files)}
        self.store.remove(n for n in self.store.names(name) if n not in kept)
        self._drop_unfinished(name)

    @contextlib.contextmanager
    def _snapshots(self, own: str) -> Iterator[None]:
        """Sends unfinished work every now and then, and when the block fails."""
        ended, seen = threading.Event(), dict[str, str]()

        def send(*, is_last: bool = False) -> None:
            here = (self.local / own).parent.glob(f"{Path(own).name}.partial*")
            try:
                for folder in sorted(p for p in here if p.is_dir()):
                    name = self._name(folder.parent, folder.name)
                    names = str(_listing(folder))
                    if (is_last or seen.get(name) != names) and (
                        self._send_snapshot(name)
                    ):
                        seen[name] = names
            except (UserFacingError, OSError) as error:
                say(f"unfinished work in {self.local} was not sent: {error}")

        def send_now_and_then() -> None:
            while not ended.wait(_SECONDS_BETWEEN_SNAPSHOTS):
                send()

        thread = threading.Thread(target=send_now_and_then, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            ended.set()
            thread.join()
            send(is_last=True)
            raise
        finally:
            ended.set()
            thread.join()

    def _send_whole(self, name: str, folder: Path | None = None) -> None:
        if not self._send_snapshot(name, folder):
            raise StoreError(f"{folder or self.local / name} changes while it is sent")

    def _send_snapshot(self, name: str, folder: Path | None = None) -> bool:
        """Sends a folder as it is at some moment; False if it changes too fast."""
        folder = folder or self.local / name
        for _ in range(_LOOKS):
            files: dict[str, Any] = {}

            def send(item: tuple[str, Path], files: dict[str, Any] = files) -> None:
                files[item[0]] = self._send_blob(name, item[1])

            try:
                listed = _listing(folder)
                at_once(send, listed[0].items())
                # What is put into its place meanwhile is empty here.
                if _listing(folder) == listed and folder.is_dir():
                    break
            except (_Changing, FileNotFoundError):
                continue
        else:
            return False
        data = _index(files, listed[1])
        self._check()
        self.store.write(f"{name}/{_INDEX}", data)
        self._note(name, data)
        kept = {_INDEX, *(entry["sha256"] for entry in files.values())}
        stored = self.store.names(name)
        self.store.remove(n for n in stored if n.rpartition("/")[2] not in kept)
        self._blobs[name] = kept
        return True

    def _send_blob(self, name: str, path: Path) -> dict[str, Any]:
        if name not in self._blobs:
            stored = self.store.names(name)
            self._blobs[name] = {n.rpartition("/")[2] for n in stored}
        for _ in range(_LOOKS):
            before = _stamp(path)
            entry = self._entry(path)
            blob = f"{name}/{entry['sha256']}"
            is_new = entry["sha256"] not in self._blobs[name]
            try:
                if is_new:
                    self.store.put(path, blob)
            except StoreError as error:
                if not path.exists():
                    raise _Changing from error
                raise
            if _stamp(path) == before:
                self._blobs[name].add(entry["sha256"])
                return entry
            if is_new:
                self.store.remove([blob])
        raise _Changing

    def _entry(self, path: Path) -> dict[str, Any]:
        before = _stamp(path)
        if before not in self._hashes:
            found = hash_file(path)
            if _stamp(path) != before:
                raise _Changing
            self._hashes[before] = found
        return {"sha256": self._hashes[before], "bytes": before[2]}

    def _drop_unfinished(self, own: str) -> None:
        """Removes unfinished work from the store that is finished, or not here."""
        for name in self._unfinished(own):
            if not (self.local / name).is_dir():
                self.store.remove([f"{name}/{_INDEX}"])
                self.store.remove(self.store.names(name))
                self._blobs.pop(name, None)
                self._note(name, None)

    def _check(self) -> None:
        if self._lease is not None:
            self._lease.check()

    # --- What is known of the store -----------------------------------------------

    def _name(self, workdir: Path, name: str) -> str:
        """A folder's name in the store: of a link, that of where it leads."""
        folder = workdir / name
        if folder.is_symlink():
            folder = folder.resolve()
            return folder.relative_to(self.local.resolve()).as_posix()
        return folder.relative_to(self.local).as_posix()

    def _record(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return read_json(self.local / _RECORD)
        return {}

    def _sent(self, name: str) -> str | None:
        return self._record().get("sent", {}).get(name)

    def _note(self, name: str, data: bytes | None) -> None:
        record, now = self._record(), _hash(data) if data else None
        sent = record.setdefault("sent", {})
        if sent.get(name) != now:
            sent[name] = now
            write_json(self.local / _RECORD, record)


def fetch_bundle(url: str) -> Path:
    """A copy of a bundle on a store, with the versions of its catalogue beside it.

    Raises:
        InputError: There is no whole one, or the store fails.
    """
    parent, name = _split(url)
    # A bundle that was kept has its versions among those of its follower.
    catalogue = re.sub("-[0-9a-f]{12}$", "", name) + _CATALOGUE
    folder = RemoteWorkdir(parent, is_reader=True).fetch(name, catalogue) / name
    if not folder.is_dir():
        raise InputError(f"{url} holds no whole folder: look at the address")
    return folder


def fetch_files(url: str) -> Path:
    """A copy of a file on a store, or of a folder, fetched again once it has changed.

    Raises:
        InputError: Nothing lies there, or the store fails.
    """
    parent, name = _split(url)
    store, folder = Store(parent), _cache_of(url)
    facts = store.facts(name)
    if not facts or not all(map(artifacts.is_inside, facts)):
        raise InputError(f"{url} holds nothing: look at the address and the rights")
    state = {n: str(sorted(about.items())) for n, about in facts.items()}
    make_folder(folder)
    with hold_file(folder / LOCK_FILE, seconds=600.0):
        record, beside = folder / _RECORD, folder / "fetched"
        if not record.is_file() or read_json(record) != hash_json(state):
            record.unlink(missing_ok=True)
            shutil.rmtree(beside, ignore_errors=True)
            at_once(lambda n: store.get(n, beside / n), facts)
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).unlink(missing_ok=True)
            (beside / name).rename(folder / name)
            write_json(record, hash_json(state))
    return folder / name


def here(text: str, make_path: Callable[[str], Path]) -> Path:
    """A path that a user gave, or the copy of what lies at a URL."""
    return fetch_files(text) if is_url(text) else make_path(text)


def _split(url: str) -> tuple[str, str]:
    parent, _, name = url.rstrip("/").rpartition("/")
    if not is_url(parent + "/") or parent.endswith(":/"):
        raise InputError(f"{url} must name a folder in a bucket")
    return parent, name


def _cache_of(url: str) -> Path:
    root = os.environ.get("TIGER_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "tiger_jax"
    )
    url = url.rstrip("/")
    readable = re.sub(r"[^\w.-]+", "_", url)[-60:]
    return Path(root).absolute() / f"{readable}-{_hash(url.encode())[:12]}"


def _inputs(folder: Path) -> list[str]:
    """What a finished folder was made of, by its own word."""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        return [*read_json(folder / artifacts.MANIFEST).get("inputs", {})]
    return []


def _listing(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Files and folders in a folder, but for what is only being written."""
    files, folders = {}, []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if ".tmp" in name or "-checkpoint-tmp" in name or path.name == LOCK_FILE:
            continue
        if path.is_dir():
            folders.append(name)
        elif path.is_file():
            files[name] = path
    return files, folders


def _index(files: Mapping[str, Any], folders: list[str]) -> bytes:
    facts = {"files": dict(sorted(files.items())), "folders": folders}
    return json.dumps(facts, indent=1, sort_keys=True).encode()


def _is_snapshot(name: str) -> bool:
    return name.endswith(_CATALOGUE) or ".partial" in name


def _key(name: str) -> str:
    return f"{name}/{_INDEX if _is_snapshot(name) else artifacts.MANIFEST}"


def _stamp(path: Path) -> tuple[Path, int, int]:
    found = path.stat()
    return path, found.st_mtime_ns, found.st_size


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
