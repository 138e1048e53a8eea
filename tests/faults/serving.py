"""A server whose calls of the system and of the device fail, once or for a while.

Clients ask all the time, and the catalogue changes; every answer is compared with
Python's, of the version that the answer names.
"""

import atexit
import contextlib
import errno
import functools
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from served import Running, make_recommender, run_in_thread

from faults.campaign import Fault, Outcome
from tiger_jax.recommending.filters import FilterSlots
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.searcher import Searcher
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.serving.settings import Limits

_TOKEN_TEXT = "a-token-of-some-length"
_TOKEN = {"Authorization": f"Bearer {_TOKEN_TEXT}"}
_SERVER = ("recommend-", "change-catalogue", "read", "asyncio")
_SYSTEM = ("fsync", "rename", "replace", "open", "mkdir", "unlink", "rmdir", "stat")
# What fails, and whether answers need it.
_TARGETS: list[tuple[Any, str, bool]] = [
    *((os, name, False) for name in _SYSTEM),
    (jax, "device_put", True),
    (jax, "device_get", True),
    (FilterSlots, "_with_bits", False),  # of filters that have their bits, none
    (Searcher, "_run", True),
]
_QUESTIONS = [
    {"history": [f"item-{n}", "item-9"], "k": 5, **options}
    for n in range(3)
    for options in (
        {},
        {"filter": {"in_stock": True}},
        {"filter": {"category": ["Shelf 2", "Shelf 3"]}},
        {"exclude": [f"item-{m}" for m in range(10, 30)]},
        {"epsilon": 0.4},
    )
]


_OPEN = contextlib.ExitStack()
atexit.register(_OPEN.close)


class _Served:
    """One server for all tries, and what Python answers."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        drawn, versions = make_recommender(folder / "shop")
        parts, shapes = versions.bundle.parts, drawn.shapes
        self.python = Recommender.of_parts(parts, shapes)
        self.versions = CatalogueVersions(versions.bundle, folder / "v", keep=10_000)
        self.reader = CatalogueVersions(versions.bundle, folder / "v", keep=10_000)
        self.versions.change(self.versions.load(), attributes={"*": {"in_stock": True}})
        live = self.python.fork(self.versions.load())
        limits = Limits(unready_seconds=3600.0)
        self.served: Running = _OPEN.enter_context(
            run_in_thread((live, self.versions), limits, admin_token=_TOKEN_TEXT)
        )

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def catalogue(self, version: int) -> Recommender:
        return self.python.fork(self.reader.load(version))

    @functools.cache  # noqa: B019
    def expected(self, version: int, question: int) -> list[str]:
        options = dict(_QUESTIONS[question])
        answer = self.catalogue(version).recommend(options.pop("history"), **options)
        return [item.item_id for item in answer.items]

    def ask(self, question: int) -> str:
        reply = self.served.ask("POST", "/recommend", _QUESTIONS[question])
        if reply.status != 200:
            return f"status {reply.status}"
        listed = [item["item_id"] for item in reply.json["items"]]
        is_right = listed == self.expected(reply.json["version"], question)
        return "right" if is_right else f"wrong: {question}: {listed}"


_serve = functools.cache(_Served)


def close() -> None:
    """Ends the server, if there is one."""
    if _serve.cache_info().currsize:
        _OPEN.close()
        _serve.cache_clear()


@contextlib.contextmanager
def _failing(owner: Any, name: str, times: int) -> Iterator[Callable[[], int]]:
    """In the server's own threads, so many calls fail; yields how many have."""
    real, left, lock = getattr(owner, name), [times], threading.Lock()

    def call(*args: Any, **options: Any) -> Any:
        if threading.current_thread().name.startswith(_SERVER):
            with lock:
                left[0] -= 1
                is_due = left[0] >= 0
            if is_due:
                if owner is os:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                raise MemoryError("out of device memory")
        return real(*args, **options)

    setattr(owner, name, call)
    try:
        yield lambda: times - max(left[0], 0)
    finally:
        setattr(owner, name, real)


def fail_calls(number: int, folder: Path) -> Outcome:
    """Healed, the server answers as Python does; before, it lies to nobody."""
    server, rng = _serve(folder), CALLS.random(number)
    owner, name, is_needed = _TARGETS[number % len(_TARGETS)]
    times = rng.choice([1, 1, 2, 1_000_000])
    seen: list[str] = []
    is_over = threading.Event()

    def load(seed: int) -> None:
        own = random.Random(seed)
        while not is_over.is_set():
            seen.append(server.ask(own.randrange(len(_QUESTIONS))))

    threads = [threading.Thread(target=load, args=(rng.random(),)) for _ in range(3)]
    before = server.served.service.recommender.catalogue.version
    with _failing(owner, name, times) as failed:
        for thread in threads:
            thread.start()
        item = f"/catalogue/items/item-{rng.randrange(50)}/attributes"
        body = {"attributes": {"in_stock": rng.random() < 0.5}}
        change = server.served.ask("PUT", item, body, **_TOKEN)
        is_broken = is_needed and times > 10
        if is_broken:
            _wait(lambda: server.served.service.batcher.problem)
            time.sleep(0.1)
        ready = server.served.ask("GET", "/readyz").status
        time.sleep(0.1)
    note = f"{name} failed {failed()} times"
    is_ready = _wait(lambda: server.served.ask("GET", "/readyz").status == 200)
    is_over.set()
    for thread in threads:
        thread.join()
    problems = [what for what in seen if what.startswith("wrong")]
    if is_broken and ready != 503:
        problems.append("ready while every search failed")
    if not is_ready:
        problems.append("not ready after all was well again")
    server.served.ask("POST", "/catalogue/reload", **_TOKEN)
    after = server.served.service.recommender.catalogue.version
    told = change.json["error"]["code"] if change.status != 200 else "made"
    if (after - before) != (told in ("made", "unconfirmed")):
        problems.append(f"change: {told}, {after - before} versions")
    problems += [
        f"after: {what}"
        for what in map(server.ask, range(len(_QUESTIONS)))
        if what != "right"
    ]
    answers = sum(not what.startswith("status") for what in seen) + len(_QUESTIONS)
    if problems:
        problem = f"{note}: {problems[:3]}"
        return Outcome(wrong=len(problems), note=problem, answers=answers)
    return Outcome(answers=answers)


def _wait(is_so: Callable[[], Any], seconds: float = 3.0) -> bool:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


CALLS = Fault("server: calls fail once or for a while", 1000, fail_calls)
FAULTS = [CALLS]
