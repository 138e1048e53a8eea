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

import dataclasses
import datetime
import fnmatch
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.stage_table import MADE_BY
from tiger_jax.workdir.array_files import load_array, save_array

MANIFEST = "manifest.json"
_FINGERPRINT = "fingerprint.json"
# What differs between two runs that made the same thing: never in a content hash.
_NEVER_CONTENT = ("metrics.jsonl", "*.log", "tensorboard", "*.gin", MANIFEST)
_PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint numpy gin-config scikit-learn pyarrow "
    "tensorflow seqio sentence-transformers torch"
).split()


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


class StageRun:
    """One stage's work on its folder; made by `begin`.

    Attributes:
        is_current: The folder is already up to date: there is nothing to do.
        folder: Where to write; `final` until then still holds the old content.
        inputs: The manifests of the input folders, by name.
    """

    def __init__(
        self,
        final: Path,
        *,
        is_current: bool,
        inputs: dict[str, Manifest],
        record: dict[str, Any],
        opaque: Sequence[str],
    ) -> None:
        """Takes what `begin` found out."""
        self.final = final
        self.is_current = is_current
        self.folder = final if is_current else _partial(final)
        self.inputs = inputs
        self._record = record
        self._opaque = tuple(opaque)
        self._started = datetime.datetime.now(datetime.UTC)

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
            summary: Facts worth reading in the manifest; not hashed.
        """
        (self.folder / _FINGERPRINT).unlink(missing_ok=True)
        finished = datetime.datetime.now(datetime.UTC)
        manifest = Manifest(
            content_hash=_hash_content(self.folder, self._opaque, contents or {}),
            files=_hash_files(self.folder),
            summary=canonical(dict(summary or {})),
            made={
                "started": self._started.isoformat(timespec="seconds"),
                "finished": finished.isoformat(timespec="seconds"),
                "seconds": round((finished - self._started).total_seconds(), 1),
                "command": sys.argv,
                **describe_environment(),
            },
            **self._record,
        )
        manifest = dataclasses.replace(manifest, seal=seal(vars(manifest)))
        write_json(self.folder / MANIFEST, dataclasses.asdict(manifest))
        _swap_into_place(self.final)
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
    opaque: Sequence[str] = (),
) -> StageRun:
    """Decides whether a stage has work to do and makes its folder ready.

    Args:
        workdir: The work directory.
        name: The output folder's name in it.
        stage: The stage's name, for messages and the manifest.
        inputs: Names of the input folders in the work directory.
        config: Everything that decides the output: dataclasses, numbers, strings.
        external: Hashes of files from outside, by a name that says what they are.
        resumable: Keep a partial folder of the same fingerprint for the stage to
            go on with; otherwise a partial folder is removed.
        opaque: Paths or patterns in the folder that don't enter the content hash.

    Raises:
        InputError: An input is missing, damaged, or made from something other than
            what the work directory now holds; both hashes are named.
    """
    workdir = Path(workdir)
    final = workdir / name
    _recover(final)
    manifests = {i: load_manifest(workdir / i, needed_by=stage) for i in inputs}
    _check_that_inputs_belong_together(workdir, stage, manifests)
    record: dict[str, Any] = {
        "stage": stage,
        "config": canonical(dict(config)),
        "inputs": {i: m.content_hash for i, m in manifests.items()},
        "external": dict(external or {}),
    }
    record["fingerprint"] = hash_json(record)
    current = load_manifest(final) if final.exists() else None
    is_current = current is not None and current.fingerprint == record["fingerprint"]
    run = StageRun(
        final, is_current=is_current, inputs=manifests, record=record, opaque=opaque
    )
    if is_current:
        say(f"{stage}: up to date ({final})")
        return run
    if current is not None:
        say(f"{stage}: building again, since {_what_changed(current, record)}")
    _open_partial(run.folder, record, resumable, stage)
    return run


def load_manifest(
    folder: Path, *, needed_by: str | None = None, verify: bool = True
) -> Manifest:
    """Reads a finished folder's manifest and checks its files against it.

    Args:
        folder: The stage's folder.
        needed_by: The stage that asks, for the message.
        verify: Compare every file's SHA-256; otherwise only that it is there, with
            the size it should have.

    Raises:
        InputError: The folder is missing, was not made by a stage, or a file in it
            is missing or damaged.
    """
    folder = Path(folder)
    _recover(folder)
    maker = MADE_BY.get(folder.name)
    how = f"run --stage={maker} first" if maker else "make it first"
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
        if manifest.seal not in ("", seal(fields)):
            raise ValueError("it isn't what was written")
        for name in manifest.files:
            if name.startswith("/") or ".." in name.split("/"):
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


def count_test_reads(folder: Path) -> int:
    """How often the test split has been read for a folder that will be replaced."""
    if not (folder / MANIFEST).is_file():
        return 0
    return int(load_manifest(folder, verify=False).summary.get("test_reads", 1))


# --- Hashes ---------------------------------------------------------------------


def hash_arrays(arrays: Mapping[str, Any]) -> str:
    """Hashes named arrays by sorted (name, dtype, shape, values).

    Values may be arrays, or nested mappings and sequences of them.

    Example:
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


def seal(fields: Mapping[str, Any]) -> str:
    """The hash of a manifest's other fields."""
    return hash_json({k: v for k, v in fields.items() if k != "seal"})


def canonical(value: Any) -> Any:
    """Turns configs into plain JSON values; dataclasses keep their class's name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
        return {"class": type(value).__name__, **fields}
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


# --- Small files ----------------------------------------------------------------


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


def save_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes each array as ``NAME.npy``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        save_array(folder / f"{name}.npy", np.asarray(array))


def load_arrays(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads ``NAME.npy`` for each name; a ValueError if one is no whole array."""
    if away := [n for n in names if Path(n).name != n]:
        raise ValueError(f"{away[0]!r} is no array's name")
    return {name: load_array(folder / f"{name}.npy") for name in names}


# --- The environment of a run ---------------------------------------------------


def describe_environment() -> dict[str, Any]:
    """Commit, package versions, devices and the gin in force."""
    return {
        "commit": code_version(),
        "python": sys.version.split()[0],
        "packages": package_versions(),
        "devices": _describe_devices(),
        **_describe_gin(),
    }


@functools.cache
def code_version() -> str:
    """The commit this code runs from (``+changes`` if edited), or the version."""
    root = Path(__file__).resolve().parent.parent
    version = importlib.import_module("tiger_jax").__version__
    if not (root / ".git").exists():
        return version
    try:
        git = ["git", "-C", str(root)]
        run = functools.partial(
            subprocess.run, capture_output=True, text=True, timeout=10, check=True
        )
        commit = run([*git, "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changes = run([*git, "status", "--porcelain", "-uno"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{commit}+changes" if changes else commit


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that decide results, where installed."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _describe_devices() -> str:
    # A stage that never used JAX should not start it just to write this line.
    jax = sys.modules.get("jax")
    if jax is None or not jax._src.xla_bridge._backends:
        return f"{os.cpu_count()} CPU cores"
    devices = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform})"


def _describe_gin() -> dict[str, str]:
    gin = sys.modules.get("gin")
    if gin is None:
        return {}
    return {"gin": gin.config_str(), "operative_gin": gin.operative_config_str()}


# --- Inside ---------------------------------------------------------------------


def _partial(final: Path) -> Path:
    return final.with_name(final.name + ".partial")


def _old(final: Path) -> Path:
    return final.with_name(final.name + ".old")


def _open_partial(
    folder: Path, record: dict[str, Any], resumable: bool, stage: str
) -> None:
    """Makes an empty partial folder, or keeps one that can be gone on with."""
    mark = folder / _FINGERPRINT
    if folder.exists():
        is_ours = mark.is_file() and _reads_as(mark, record["fingerprint"])
        if resumable and is_ours:
            say(f"{stage}: resuming")
            return
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_json(mark, record["fingerprint"])


def _reads_as(path: Path, value: str) -> bool:
    try:
        return read_json(path) == value
    except ValueError:
        return False


def _swap_into_place(final: Path) -> None:
    """Renames a complete partial folder to `final`; `_recover` can finish this."""
    partial, old = _partial(final), _old(final)
    _sync_folder(partial)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _recover(final: Path) -> None:
    """Finishes a swap that was killed halfway."""
    partial, old = _partial(final), _old(final)
    if (partial / MANIFEST).is_file():
        # Killed after the manifest was written: the new folder is whole. If the
        # old one still stands at `final`, the first of the two renames is due too.
        if old.exists() and final.exists():
            shutil.rmtree(old)
        _swap_into_place(final)
    elif old.exists():
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_that_inputs_belong_together(
    workdir: Path, stage: str, manifests: Mapping[str, Manifest]
) -> None:
    for name, manifest in manifests.items():
        for used, hash_used in manifest.inputs.items():
            if not (workdir / used).exists():
                continue
            now = (
                manifests.get(used) or load_manifest(workdir / used, verify=False)
            ).content_hash
            if now != hash_used:
                raise InputError(
                    f"{stage}: {workdir / name} was made from {used} "
                    f"{hash_used[:12]}, but {workdir / used} is {now[:12]}: run "
                    f"--stage={manifest.stage} again, or put the {used} it was made "
                    "from back"
                )


def _what_changed(old: Manifest, record: Mapping[str, Any]) -> str:
    """Names what differs between a finished folder and what is asked for now."""
    changes = []
    for kind in ("config", "inputs", "external"):
        before = dict(_flatten(getattr(old, kind)))
        after = dict(_flatten(record[kind]))
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                was, now = (
                    str(side.get(key, "absent"))[: 12 if kind != "config" else 60]
                    for side in (before, after)
                )
                changes.append(f"{key} was {was} and is {now}")
    shown = "; ".join(changes[:3]) or "its stage changed"
    return shown + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, inner in tree.items():
            yield from _leaves(inner, f"{prefix}/{key}")
    elif isinstance(tree, list | tuple):
        for index, inner in enumerate(tree):
            yield from _leaves(inner, f"{prefix}/{index}")
    else:
        yield prefix, tree


def _files(folder: Path) -> list[tuple[str, Path]]:
    found = (p for p in folder.rglob("*") if p.is_file())
    named = ((p.relative_to(folder).as_posix(), p) for p in found)
    return sorted((n, p) for n, p in named if n not in (MANIFEST, _FINGERPRINT))


def _hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        name: {"sha256": hash_file(path), "bytes": path.stat().st_size}
        for name, path in _files(folder)
    }


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
        hashes[name] = _hash_values(path)
    return hash_json(hashes)


def _hash_values(path: Path) -> str:
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
