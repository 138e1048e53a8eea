"""Files in an object store, by fsspec: ``gs://``, ``s3://``, ``memory://`` and others.

Every request to a store is made here: tried again a few times where the store or the
network fails, and one line where it doesn't help.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tiger_jax.errors import InputError

T = TypeVar("T")
_TRIES, _FIRST_WAIT = 4, 1.0
_AT_ONCE = 8
_CONNECT_SECONDS, _SILENT_SECONDS = 20, 120
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)


class StoreError(InputError):
    """A store that doesn't do what it is asked."""


def is_url(text: str) -> bool:
    """Whether a path that a user gave is a URL.

    Examples:
        >>> is_url("gs://bucket/run"), is_url("runs/lr:1")
        (True, False)
    """
    return re.match(r"[A-Za-z][\w.+-]+://", text) is not None


class Store:
    """The files below a URL, by their names relative to it."""

    def __init__(self, url: str) -> None:
        """Finds what speaks to such a store; InputError if nothing installed does."""
        import fsspec

        self.url = url.rstrip("/")
        scheme, _, place = self.url.partition("://")
        if scheme in ("http", "https") or not place:
            raise StoreError(f"{url} names no folder in a store, as gs://bucket/run")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **_options(scheme))
        except ImportError as error:
            raise StoreError(
                f"{url} needs a package that isn't installed ({error}): pip install "
                "'tiger_jax[storage]' has those for gs:// and s3://"
            ) from error
        except Exception as error:
            raise StoreError(f"{url} can't be opened: {_line(error)}") from error

    def names(self, under: str = "") -> list[str]:
        """Names of all files, or of those in a folder; none if it isn't there."""
        return sorted(self.facts(under))

    def facts(self, under: str = "") -> dict[str, dict[str, Any]]:
        """What the store says of each of these files."""

        def find() -> dict[str, Any]:
            self._fs.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                return self._fs.find(self._at(under), detail=True)
            return {}

        found = self._ask(under, find)
        prefix = self._root.strip("/") + "/"
        named = {name.lstrip("/"): about for name, about in found.items()}
        return {
            name.removeprefix(prefix): about
            for name, about in named.items()
            if name.startswith(prefix) and about.get("type") == "file"
        }

    def folders(self, under: str = "") -> list[str]:
        """Names of the folders in a folder."""

        def look() -> list[dict[str, Any]]:
            self._fs.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                return self._fs.ls(self._at(under), detail=True)
            return []

        found = self._ask(under, look)
        names = [about["name"] for about in found if about["type"] == "directory"]
        return sorted(name.rstrip("/").rpartition("/")[2] for name in names)

    def read(self, name: str) -> bytes | None:
        """A small file; None if it isn't there."""
        with contextlib.suppress(FileNotFoundError):
            return self._ask(name, self._fs.cat_file, self._at(name), may_lack=True)
        return None

    def write(self, name: str, data: bytes) -> None:
        """Writes a small file, in place of one there."""
        self._ask(name, self._fs.pipe_file, self._at(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Writes a small file unless there is one; whether it is this one then."""
        with contextlib.suppress(FileExistsError):
            self._ask(name, self._fs.pipe_file, self._at(name), data, mode="create")
        # A reply that was lost leaves a file that is ours.
        return self.read(name) == data

    def put(self, path: Path, name: str) -> None:
        """Copies a file there."""
        self._ask(name, self._fs.put_file, str(path), self._at(name))

    def get(self, name: str, path: Path) -> None:
        """Copies a file here."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._ask(name, self._fs.get_file, self._at(name), str(path))

    def remove(self, names: Iterable[str]) -> None:
        """Removes files; it is no fault if one isn't there."""

        def remove(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._ask(name, self._fs.rm_file, self._at(name), may_lack=True)

        at_once(remove, names)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _ask(
        self,
        name: str,
        do: Callable[..., T],
        *args: Any,
        may_lack: bool = False,
        **how: Any,
    ) -> T:
        for tried in range(1, _TRIES + 1):
            try:
                return do(*args, **how)
            except Exception as error:  # each kind of store has its own
                lacks = isinstance(error, FileNotFoundError) and may_lack
                if lacks or isinstance(error, FileExistsError):
                    raise
                if isinstance(error, _FINAL) or tried == _TRIES:
                    raise StoreError(
                        f"{self.url}/{name}: {_line(error)}: see to the bucket, its "
                        "rights and the network; the same command goes on"
                    ) from error
            time.sleep(_FIRST_WAIT * 2 ** (tried - 1))
        raise AssertionError


def _options(scheme: str) -> dict[str, Any]:
    """Listings that are never old, and no request that waits for ever."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("gs", "gcs"):
        # Asks for a bucket's layout by gRPC, which waits for ever where none answers.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        import aiohttp

        options["requests_timeout"] = aiohttp.ClientTimeout(
            sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS
        )
    elif scheme in ("s3", "s3a"):
        options["config_kwargs"] = {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _SILENT_SECONDS,
        }
    return options


def at_once(do: Callable[[T], Any], those: Iterable[T]) -> None:
    """Does something to each of many, several at a time; raises what one raised."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(do, those):
            pass


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
