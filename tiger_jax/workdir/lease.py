"""One run at a time in a work directory on an object store.

A store has no locks, but it can write a file only if there is none of that name. A run
that wants the work directory writes the claim after the last one: ``.lock/000007``. The
highest claim holds it while it is renewed. A run that ends says so in its claim, which
stays, so that numbers never come twice; one that is killed lets it run out.
"""

import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from tiger_jax.errors import LockedError
from tiger_jax.workdir.store import Store, StoreError

FOLDER = ".lock"
# Clocks of machines may differ by the difference of these two.
SECONDS, _TRUSTED_SECONDS = 120.0, 60.0


class Lease:
    """A claim to a work directory; made by `hold`."""

    def __init__(self, store: Store, place: str) -> None:
        """Claims it.

        Args:
            place: Names a folder that one process at a time works in: a claim from
                there whose process is gone needn't run out first.

        Raises:
            LockedError: Another run holds it; says which, and until when.
        """
        self._store, self._lock = store, threading.RLock()
        self._number, self._renewed = max(self._numbers(), default=0), 0.0
        held = self._read(self._number) if self._number else {}
        if left := _seconds_left(held, place):
            raise LockedError(
                f"{store.url} is in use by {_describe(held)}: wait for it, stop it, or "
                "choose another --workdir; if it is gone, its claim ends in "
                f"{left:.0f} s"
            )
        self._claim = {
            "token": uuid.uuid4().hex,
            "place": place,
            "process": os.getpid(),
            "host": os.uname().nodename,
            "started": datetime.now().isoformat(" ", "seconds"),
            "command": " ".join(sys.argv)[:500],
        }
        self._claim_next()

    def check(self) -> None:
        """Raises LockedError if another run has taken over; claims what ran out."""
        with self._lock:
            highest = max(self._numbers(), default=0)
            if highest != self._number:
                raise self._taken(highest)
            if time.monotonic() - self._renewed > _TRUSTED_SECONDS:
                self._claim_next()

    def renew(self) -> None:
        """Says that this run is still there; LockedError if that came too late."""
        with self._lock:
            self.check()
            before = time.monotonic()
            self._store.write(_name(self._number), self._data())
            self._renewed = before

    def release(self) -> None:
        """Says that this run has ended, unless another has taken over."""
        with self._lock:
            self.check()
            self._store.write(_name(self._number), self._data(released=True))

    def _claim_next(self) -> None:
        before, number = time.monotonic(), self._number + 1
        if not self._store.create(_name(number), self._data()):
            raise self._taken(number)
        numbers = self._numbers()
        if max(numbers) != number:
            raise self._taken(max(numbers))
        self._number, self._renewed = number, before
        self._store.remove(_name(earlier) for earlier in numbers if earlier < number)

    def _data(self, released: bool = False) -> bytes:
        facts = {**self._claim, "renewed": time.time(), "released": released}
        return json.dumps(facts).encode()

    def _numbers(self) -> list[int]:
        names = (name.rpartition("/")[2] for name in self._store.names(FOLDER))
        return [int(name) for name in names if name.isdigit()]

    def _read(self, number: int) -> dict[str, Any]:
        try:
            found = json.loads(self._store.read(_name(number)) or b"")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _taken(self, number: int) -> LockedError:
        who = _describe(self._read(number))
        return LockedError(
            f"{self._store.url} is in use by {who}, which has taken it over: what this "
            "run finished stays here, unsent"
        )


@contextmanager
def hold(store: Store, place: str) -> Iterator[Lease]:
    """Holds a work directory until the block ends, or its claim can't be renewed."""
    lease, ended = Lease(store, place), threading.Event()

    def renew() -> None:
        while not ended.wait(_TRUSTED_SECONDS / 4):
            try:
                lease.renew()
            except StoreError:
                continue  # the next time may do; `check` knows how long it has been
            except LockedError:
                return  # `check` says so where it matters

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        try:
            lease.release()
        except (StoreError, LockedError):
            pass  # it runs out, or has been taken over


def _describe(held: dict[str, Any]) -> str:
    return (
        f"process {held.get('process')} on {held.get('host')}, started "
        f"{held.get('started')} ({held.get('command')})"
    )


def _seconds_left(held: dict[str, Any], place: str) -> float:
    renewed = held.get("renewed")
    if held.get("released") or held.get("place") == place:
        return 0.0
    if not isinstance(renewed, int | float):
        return 0.0
    return max(0.0, renewed + SECONDS - time.time())


def _name(number: int) -> str:
    return f"{FOLDER}/{number:06}"
