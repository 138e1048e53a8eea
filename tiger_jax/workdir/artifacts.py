"""A stage's output folder: made whole or not at all, and able to prove what it is.

Every stage writes one folder under the work directory. While it works, the files
lie in ``NAME.partial/``; `StageRun.commit` adds ``manifest.json`` and renames the
folder into place, so that ``NAME/`` is always whole. The manifest records what
made the folder (resolved config, seed, versions, inputs) and two kinds of hashes:

*   ``files``: the SHA-256 of every file's bytes, which find a damaged disk;
*   ``content_hash``: one hash over sorted (path, dtype, shape, values), which
    names the content. Times, logs and a checkpoint library's own bytes don't enter
    it, so the same content has the same name on every machine.

A stage whose fingerprint (its config and its inputs' content hashes) is the one
in the manifest is up to date.
"""

import contextlib
import dataclasses
import datetime
import fnmatch
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.workdir.durable import make_folder, sync
from tiger_jax.workdir.hashing import hash_arrays, hash_file, hash_json, hash_values
from tiger_jax.workdir.json_files import canonical, read_json, write_json
from tiger_jax.workdir.provenance import describe_environment
from tiger_jax.workdir.reading import how_to_make

MANIFEST = "manifest.json"
_FINGERPRINT = "fingerprint.json"
# What differs between two runs that made the same thing: never in a content hash.
_NEVER_CONTENT = ("metrics.jsonl", "*.log", "tensorboard", "*.gin", MANIFEST)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known about a finished folder; the fields of ``manifest.json``.

    Attributes:
        inputs: Content hash of each input folder, by name.
        external: Hashes of files from outside the work directory.
        summary: A few facts for reports; not part of any hash.
        made: Where, when and with what: times, commit, packages, devices, gin.
        seal: Hash of all other fields; absent in folders of earlier versions.
    """

    stage: str
    content_hash: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    external: dict[str, str]
    files: dict[str, dict[str, Any]]
    summary: dict[str, Any]
    made: dict[str, Any]
    seal: str = ""


@dataclasses.dataclass(frozen=True)
class StageRun:
    """One stage's work on its folder; made by `begin`.

    Attributes:
        is_current: The folder is already up to date: there is nothing to do.
        record: The fields of the manifest that are known from the start.
        opaque: Patterns of paths that don't enter the content hash.
    """

    final: Path
    is_current: bool
    inputs: dict[str, Manifest]
    record: dict[str, Any]
    opaque: Sequence[str]
    started: datetime.datetime

    @property
    def folder(self) -> Path:
        """Where to write; until `commit`, `final` still holds the old content."""
        return self.final if self.is_current else _partial(self.final)

    def commit(
        self,
        *,
        contents: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Writes the manifest and puts the folder in place of the old one.

        Args:
            contents: Arrays (or trees of them) that name the content of opaque
                paths, such as a checkpoint's parameters.
        """
        for name in (_FINGERPRINT, f"{MANIFEST}.tmp"):
            (self.folder / name).unlink(missing_ok=True)
        finished = datetime.datetime.now(datetime.UTC)
        manifest = write_manifest(
            self.folder,
            content_hash=_hash_content(self.folder, self.opaque, contents or {}),
            files={
                name: {"sha256": hash_file(path), "bytes": path.stat().st_size}
                for name, path in _files(self.folder)
            },
            summary=canonical(dict(summary or {})),
            made={
                "started": self.started.isoformat(timespec="seconds"),
                "finished": finished.isoformat(timespec="seconds"),
                "seconds": round((finished - self.started).total_seconds(), 1),
                "command": sys.argv,
                **describe_environment(),
            },
            **self.record,
        )
        exchange(self.folder, self.final)
        return manifest


def begin(
    workdir: Path,
    name: str,
    *,
    stage: str,
    inputs: Sequence[str] = (),
    config: Mapping[str, Any],
    external: Mapping[str, str] | None = None,
    resumable: bool = False,
    may_grow: Sequence[str] = (),
    opaque: Sequence[str] = (),
) -> StageRun:
    """Decides whether a stage has work to do and makes its folder ready.

    Args:
        name: The output folder's name in the work directory, as are `inputs`.
        config: Everything that decides the output: dataclasses, numbers, strings.
        external: Hashes of files from outside, by a name that says what they are.
        resumable: Keep a partial folder of the same fingerprint for the stage to
            go on with, and put aside one of another, which is gone on with once the
            fingerprint is its own again; otherwise a partial folder is removed.
        may_grow: Numbers of the config, as in ``loop.total_steps``, that a partial or
            finished folder may have had smaller, to be gone on with. None is the
            largest.
        opaque: Paths or patterns in the folder that don't enter the content hash.

    Raises:
        InputError: An input is missing, damaged, or made from something other than
            what the work directory now holds; both hashes are named.
    """
    final = workdir / name
    for own in (name, *inputs):
        recover(workdir / own)
    manifests = {i: load_manifest(workdir / i, needed_by=stage) for i in inputs}
    for i, manifest in manifests.items():
        _check_inputs_of(workdir, i, manifest, stage)
    record: dict[str, Any] = {
        "stage": stage,
        "config": canonical(dict(config)),
        "inputs": {i: m.content_hash for i, m in manifests.items()},
        "external": dict(external or {}),
    }
    record["fingerprint"] = hash_json(record)
    current = load_manifest(final) if final.exists() else None
    is_current = current is not None and current.fingerprint == record["fingerprint"]
    now = datetime.datetime.now(datetime.UTC)
    run = StageRun(final, is_current, manifests, record, opaque, now)
    if is_current:
        say(f"{stage}: up to date ({final})")
        return run
    if current is not None:
        say(f"{stage}: building again, since {_what_changed(vars(current), record)}")
    if resumable and _resume(run.folder, record, may_grow, stage):
        return run
    if run.folder.exists():
        shutil.rmtree(run.folder)
    made_of = {k: v for k, v in vars(current).items() if k in record} if current else {}
    if may_grow and made_of and _fits(made_of, record, may_grow):
        say(f"{stage}: going on from {final}")
        shutil.copytree(final, run.folder, ignore=shutil.ignore_patterns(MANIFEST))
    make_folder(run.folder)
    write_json(run.folder / _FINGERPRINT, record)
    return run


def load_manifest(
    folder: Path, *, needed_by: str | None = None, verify: bool = True
) -> Manifest:
    """Reads a finished folder's manifest and checks its files against it.

    Reads, and changes nothing: another process may be writing here.

    Args:
        verify: Compare every file's SHA-256; otherwise only that it is there, with
            the size it should have.

    Raises:
        InputError: The folder is missing, was not made by a stage, or a file in it
            is missing or damaged.
    """
    folder = Path(folder)
    how = f"{how_to_make(folder)} first"
    needs = f"{needed_by} needs " if needed_by else ""
    if not folder.exists():
        raise InputError(f"{needs}{folder}, which does not exist: {how}")
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{needs}{folder} has no {MANIFEST}, so no stage made it whole: move "
            f"that folder away and {how}"
        )
    try:
        fields = read_json(path)
        manifest = Manifest(**fields)
        if "seal" in fields and manifest.seal != seal(fields):
            raise ValueError("it isn't what was written")
        for name in manifest.files:
            if not is_inside(name):
                raise ValueError(f"it lists {name!r}, which is outside")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}): delete {folder} and {how}"
        ) from error
    for name, expected in manifest.files.items():
        if problem := _damage(folder / name, expected, verify):
            raise InputError(
                f"{folder / name} {problem}: restore it, or delete {folder} and run "
                f"--stage={manifest.stage} again"
            )
    return manifest


def stamp(folder: Path) -> tuple[int, int] | None:
    """Tells a finished folder from those before and after; None if there is none."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def count_test_reads(folder: Path) -> int:
    """How often the test split has been read for a folder that will be replaced."""
    if not (folder / MANIFEST).is_file():
        return 0
    return int(load_manifest(folder, verify=False).summary.get("test_reads", 1))


def write_manifest(folder: Path, **fields: Any) -> Manifest:
    """Seals a manifest of these fields and writes it into the folder.

    First the disk gets all else in it: a manifest never outlives its files.
    """
    manifest = Manifest(**fields)
    manifest = dataclasses.replace(manifest, seal=seal(vars(manifest)))
    for path in (*folder.rglob("*"), folder):
        sync(path)
    write_json(folder / MANIFEST, vars(manifest))
    sync(folder)
    return manifest


def seal(fields: Mapping[str, Any]) -> str:
    """The hash of a manifest's other fields."""
    return hash_json({k: v for k, v in fields.items() if k != "seal"})


def is_made(partial: Path, final: Path) -> bool:
    """Whether a folder's unfinished work has become what stands there."""
    was = _read_record(partial)
    if was is None or not (final / MANIFEST).is_file():
        return False
    return load_manifest(final, verify=False).fingerprint == was["fingerprint"]


def _partial(final: Path) -> Path:
    return final.with_name(final.name + ".partial")


def _old(final: Path) -> Path:
    return final.with_name(final.name + ".old")


def _resume(
    folder: Path, record: dict[str, Any], may_grow: Sequence[str], stage: str
) -> bool:
    """Finds the partial folder that can be gone on with, and puts another aside."""
    was = _read_record(folder)
    if was is not None and was["fingerprint"] != record["fingerprint"]:
        done = _work_done(folder)
        if not done:
            was = None
        elif not _fits(was, record, may_grow):
            aside = _aside(folder, was["fingerprint"])
            folder.rename(aside)
            say(
                f"{stage}: the unfinished work in {folder} ({done}) is of other "
                f"settings ({_what_changed(was, record)}): it is kept as {aside}, and "
                "gone on with once these are put back; delete it if they won't be"
            )
            was = None
    aside = _aside(folder, record["fingerprint"])
    if was is None and aside.exists():
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        was = _read_record(folder)
    if was is None:
        return False
    write_json(folder / _FINGERPRINT, record)
    say(f"{stage}: resuming")
    return True


def _aside(partial: Path, fingerprint: str) -> Path:
    return partial.with_name(f"{partial.name}-{fingerprint[:8]}")


def _read_record(folder: Path) -> dict[str, Any] | None:
    """What a partial folder is made of, if it says so."""
    with contextlib.suppress(OSError, ValueError):
        found = read_json(folder / _FINGERPRINT)
        if isinstance(found, str):  # as an earlier version wrote it
            return {"fingerprint": found}
        if isinstance(found, dict) and isinstance(found.get("fingerprint"), str):
            return found
    return None


def _fits(
    was: Mapping[str, Any], record: Mapping[str, Any], may_grow: Sequence[str]
) -> bool:
    """Whether a folder holds the first part of what is to be made."""
    before, after = dict(flatten(was)), dict(flatten(record))
    for key in (before.keys() | after.keys()) - {"fingerprint"}:
        old, new = before.get(key), after.get(key)
        is_free = key.removeprefix("config.") in may_grow and old is not None
        if old != new and not (is_free and (new is None or new > old)):
            return False
    return True


def _work_done(folder: Path) -> str:
    """What would be lost with a partial folder; "" if nothing that took long."""
    saved = [p.name.rpartition("_")[2] for p in folder.glob("checkpoints/checkpoint_*")]
    if steps := [int(step) for step in saved if step.isdigit()]:
        return f"saved at step {max(steps):,}"
    chunks = sum(1 for _ in folder.rglob("chunk_*"))
    return f"{chunks:,} chunks" if chunks else ""


def is_inside(name: str) -> bool:
    """Whether a file's name, as a manifest has it, leads to nothing outside."""
    return not name.startswith("/") and ".." not in name.split("/")


class NotSyncedError(OSError):
    """A folder is under its name, but the disk has not confirmed that."""


def exchange(whole: Path, final: Path) -> None:
    """Renames a complete folder to `final`; `recover` can finish this.

    Raises:
        NotSyncedError: It is done, but may not outlast the power.
    """
    old = _old(final)
    if final.exists():
        if old.exists():
            shutil.rmtree(old)
        final.rename(old)
    whole.rename(final)
    try:
        sync(final.parent)
    except OSError as error:
        raise NotSyncedError(*error.args) from error
    shutil.rmtree(old, ignore_errors=True)


def recover(final: Path) -> None:
    """Finishes a swap that was killed halfway; for who holds the work directory."""
    partial, old = _partial(final), _old(final)
    if old.exists() and final.exists():
        shutil.rmtree(old, ignore_errors=True)
    if (partial / MANIFEST).is_file():
        # Killed after the manifest was written: the new folder is whole. If the
        # old one still stands at `final`, the first of the two renames is due too.
        exchange(partial, final)
    elif old.exists():
        old.rename(final)


def recover_all(workdir: Path) -> None:
    """Finishes every swap that was killed halfway in a work directory."""
    for path in (*workdir.glob("*.partial"), *workdir.glob("*.old")):
        recover(path.with_suffix(""))


def _check_inputs_of(workdir: Path, name: str, manifest: Manifest, stage: str) -> None:
    """Refuses an input that was made from other folders than there are now."""
    for used, before in manifest.inputs.items():
        if not (workdir / used).exists():
            continue
        now = load_manifest(workdir / used, verify=False).content_hash
        if now != before:
            raise InputError(
                f"{stage}: {workdir / name} was made from {used} {before[:12]}, but "
                f"{workdir / used} is {now[:12]}: run --stage={manifest.stage} again, "
                f"or put the {used} it was made from back"
            )


def _what_changed(old: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Names what differs between a folder and what is asked for now."""
    if "config" not in old:
        return "which ones, an earlier version did not note"
    changes = []
    for kind in ("config", "inputs", "external"):
        before = dict(flatten(old[kind]))
        after = dict(flatten(record[kind]))
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                size = 60 if kind == "config" else 12  # a hash's start will do
                was = str(before.get(key, "absent"))[:size]
                now = str(after.get(key, "absent"))[:size]
                changes.append(f"{key} was {was} and is {now}")
    shown = "; ".join(changes[:3]) or "its stage changed"
    return shown + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A config's values by their dotted names."""
    if isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _files(folder: Path) -> list[tuple[str, Path]]:
    found = (p for p in folder.rglob("*") if p.is_file())
    named = ((p.relative_to(folder).as_posix(), p) for p in found)
    return sorted((n, p) for n, p in named if n not in (MANIFEST, _FINGERPRINT))


def _damage(path: Path, expected: Mapping[str, Any], verify: bool) -> str | None:
    """Says what is wrong with a file, or nothing."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != expected["bytes"]:
        return f"has {size} bytes where {expected['bytes']} were written"
    if verify and (found := hash_file(path)) != expected["sha256"]:
        return f"is damaged (SHA-256 {found[:12]}, not {expected['sha256'][:12]})"
    return None


def _hash_content(
    folder: Path, opaque: Sequence[str], contents: Mapping[str, Any]
) -> str:
    patterns = (*_NEVER_CONTENT, *opaque)
    hashes = {"contents": hash_arrays(contents)} if contents else {}
    for name, path in _files(folder):
        parts = name.split("/")
        leading = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        if any(fnmatch.fnmatch(n, p) for n in (*leading, parts[-1]) for p in patterns):
            continue
        hashes[name] = hash_values(path)
    return hash_json(hashes)
