"""A server whose calls of the system and of the device fail, once or for a while.

Clients ask all the time, and the catalogue changes; every answer is compared with
Python's, of the version that the answer names.
"""

import atexit
import contextlib
import dataclasses
import errno
import functools
import http.client
import itertools
import os
import random
import resource
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from served import Reply, Running, make_recommender, run_in_thread

from faults.campaign import Fault, Outcome
from tiger_jax.recommending.filters import FilterSlots
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.requests import Request
from tiger_jax.recommending.searcher import Searcher
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.serving.settings import Limits

_TOKEN_TEXT = "a-token-of-some-length"
_TOKEN = {"Authorization": f"Bearer {_TOKEN_TEXT}"}
_CHANGING = ("change-catalogue",)
_WORKERS = (*_CHANGING, "recommend-", "read", "asyncio")
_LOOP = ("serve",)
_CLIENTS, _BATCHES = 3, 6  # each client's that must be answered in a try
_FILE_SIZE = resource.RLIMIT_FSIZE
_ONCE, _LONG = (1, 1, 2), 1_000_000


@dataclasses.dataclass(frozen=True)
class _Target:
    """What fails: a function of an owner, or what Python tells auditors of.

    Attributes:
        calls: Some of these, made first, don't fail: about as many as a try makes.
        times: How often it may fail; `_LONG` is until it is healed.
        is_needed: Whether no request is answered without it.
    """

    owner: Any
    name: str
    calls: int = 1
    times: tuple[int, ...] = (*_ONCE, _LONG)
    threads: tuple[str, ...] = _WORKERS
    is_needed: bool = False

    def error(self) -> Exception:
        if self.owner in (None, os, socket.socket):
            return OSError(errno.EIO, os.strerror(errno.EIO))
        return MemoryError("out of device memory")


_OPENING = {"open": 30, "os.listdir": 6, "os.scandir": 4, "fcntl.flock": 2}
_NAMING = {"os.mkdir": 1, "os.rename": 2, "os.remove": 3, "os.rmdir": 1}
_SOCKET = {"accept": 10, "recv": 10, "send": 10}
_TARGETS = [
    *(_Target(None, event, calls) for event, calls in (_OPENING | _NAMING).items()),
    _Target(os, "fsync", 12),
    _Target(os, "stat", 30),
    _Target(resource, "write", times=(_LONG,)),
    # For long would be a machine without a network.
    *(_Target(socket.socket, n, c, (*_ONCE, 9), _LOOP) for n, c in _SOCKET.items()),
    _Target(jax, "device_put", 20, is_needed=True),
    _Target(jax, "device_get", 20, is_needed=True),
    _Target(jax, "block_until_ready", 10, is_needed=True),
    _Target(FilterSlots, "_with_bits", 10, is_needed=True),
    _Target(Searcher, "_run", 20, is_needed=True),
]


def _make_questions() -> list[dict[str, Any]]:
    """More filters than there is room for, so that they take each other's."""
    shelves = [f"Shelf {n}" for n in range(5)]
    pairs = [
        list(pair) for n in (1, 2, 3) for pair in itertools.combinations(shelves, n)
    ]
    options: list[dict[str, Any]] = [
        {},
        {},
        {"epsilon": 0.4},
        {"filter": {"in_stock": True}},
    ]
    options += [{"filter": {"category": pair}} for pair in pairs]
    options += [{"filter": {"category": p, "in_stock": True}} for p in pairs[:15]]
    options += [{"exclude": [f"item-{m}" for m in range(n, 3 * n)]} for n in (2, 5, 10)]
    options += [{"temperature": 0.7, "seed": n} for n in range(4)]
    options += [{"filter": {"brand": ["Acme"]}, "epsilon": 0.3}]
    return [
        {"history": [f"item-{n % 40}", f"item-{n * 7 % 50}"], "k": n % 9 + 1, **one}
        for n, one in enumerate(options * 2)
    ]


_QUESTIONS = _make_questions()
_EXACT = {"history": ["item-3"], "k": 5, "exact": True, "filter": {"in_stock": True}}
_OPEN = contextlib.ExitStack()
atexit.register(_OPEN.close)


class _Served:
    """One server for all tries, and what Python answers."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        drawn, versions = make_recommender(folder / "shop")
        shapes = dataclasses.replace(drawn.shapes, batch_sizes=(1, 31), num_beams=10)
        self.python = Recommender.of_parts(versions.bundle.parts, shapes)
        kept = [CatalogueVersions(versions.bundle, folder / "v", keep=20) for _ in "12"]
        self.versions, self.reader = kept
        self.versions.change(self.versions.load(), attributes={"*": {"in_stock": True}})
        live = self.python.fork(self.versions.load())
        limits = Limits(unready_seconds=3600.0)
        self._lock = threading.Lock()
        self.served: Running = _OPEN.enter_context(
            run_in_thread((live, self.versions), limits, admin_token=_TOKEN_TEXT)
        )
        self.ask_all()  # compiles what Python needs

    @property
    def version(self) -> int:
        return self.served.service.recommender.catalogue.version

    def expected(self, version: int) -> list[list[str]]:
        """Python's answers to all questions, the exact one last."""
        with self._lock:
            return self._expected(version)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _expected(self, version: int) -> list[list[str]]:
        own = self.python.fork(self.reader.load(version))
        answers = own.answer([Request(**one) for one in (*_QUESTIONS, _EXACT)])
        return [[item.item_id for item in answer.items] for answer in answers]

    def send(self, method: str, path: str, body: Any = None) -> Reply | None:
        """A request of an administrator; None where the connection broke."""
        try:
            return self.served.ask(method, path, body, **_TOKEN)
        except (OSError, http.client.HTTPException):
            return None

    def ask(self, numbers: list[int]) -> list[str]:
        """Asks questions together, and says of each answer what is wrong with it."""
        body = {"requests": [_QUESTIONS[n] for n in numbers]}
        return self._judge(self.send("POST", "/recommend/batch", body), numbers)

    def ask_all(self) -> list[str]:
        """Asks every question; says what is wrong, refusals too."""
        numbers = [*range(len(_QUESTIONS))]
        parts = [numbers[n : n + 60] for n in range(0, len(numbers), 60)]
        found = [self.ask(part) for part in parts]
        reply = self.send("POST", "/recommend", _EXACT)
        return [what for part in found for what in part] + self._judge(reply, [-1])

    def _judge(self, reply: Reply | None, numbers: list[int]) -> list[str]:
        if reply is None or reply.status != 200:
            return [f"status {reply and reply.status}"]
        answers = reply.json.get("answers", [reply.json])
        judged = ["right"] * len(numbers)
        for i, (number, answer) in enumerate(zip(numbers, answers, strict=True)):
            listed = [item["item_id"] for item in answer["items"]]
            if listed != self.expected(answer["version"])[number]:
                judged[i] = f"wrong: {number} of {answer['version']}: {listed}"
        return judged

    def change(self, rng: random.Random, number: int) -> Reply | None:
        """A change of the catalogue, of one kind or another."""
        joined = [
            i for i in self.served.service.recommender.catalogue.item_ids if "+" in i
        ]
        kind = rng.choice(["set", "set", "join", "leave", "back"])
        if kind == "back":
            return self.send("POST", "/catalogue/rollback", {"version": self.version})
        if kind == "leave" and joined or len(joined) > 8:
            return self.send("DELETE", f"/catalogue/items/{rng.choice(joined)}")
        if kind == "join":
            vector = [rng.gauss(0, 1) for _ in range(6)]
            item = {"item_id": f"+{number}", "title": "New", "embedding": vector}
            return self.send("POST", "/catalogue/items", {"items": [item]})
        path = f"/catalogue/items/item-{rng.randrange(50)}/attributes"
        return self.send("PUT", path, {"attributes": {"in_stock": rng.random() < 0.5}})


_serve = functools.cache(_Served)


def close() -> None:
    """Ends the server, if there is one."""
    if _serve.cache_info().currsize:
        _OPEN.close()
        _serve.cache_clear()


class _Failing:
    """While it is entered, so many calls of a target fail in the server's threads."""

    now: "_Failing | None" = None

    def __init__(self, target: _Target, rng: random.Random) -> None:
        self._target, self.times = target, rng.choice(target.times)
        is_system = target.owner in (None, os)
        self._threads = rng.choice([target.threads, _CHANGING][: 1 + is_system])
        self._first = 0 if self.times == _LONG else rng.randrange(target.calls)
        self._bytes = rng.choice([0, 200, 2000])
        self._calls = 0
        self._lock, self.failed = threading.Lock(), 0

    def check(self) -> None:
        """Raises, where this call is to fail."""
        if not threading.current_thread().name.startswith(self._threads):
            return
        with self._lock:
            self._calls += 1
            if self._calls <= self._first or self.failed >= self.times:
                return
            self.failed += 1
        raise self._target.error()

    @contextlib.contextmanager
    def entered(self) -> Iterator["_Failing"]:
        owner, name = self._target.owner, self._target.name
        if owner is None:
            _audit()
            _Failing.now = self
            try:
                yield self
            finally:
                _Failing.now = None
        elif owner is resource:  # whoever writes: what can't be had is space
            before = resource.getrlimit(_FILE_SIZE)
            resource.setrlimit(_FILE_SIZE, (self._bytes, before[1]))
            try:
                yield self
            finally:
                resource.setrlimit(_FILE_SIZE, before)
        else:
            is_own, real = name in vars(owner), getattr(owner, name)

            def call(*args: Any, **options: Any) -> Any:
                self.check()
                return real(*args, **options)

            setattr(owner, name, call)
            try:
                yield self
            finally:
                setattr(owner, name, real) if is_own else delattr(owner, name)


@functools.cache
def _audit() -> None:
    """Has Python tell, before it calls the system; this can't be taken back."""

    def hook(event: str, _: tuple) -> None:
        failing = _Failing.now
        if failing is not None and failing._target.name == event:
            failing.check()

    sys.addaudithook(hook)


def fail_calls(number: int, folder: Path) -> Outcome:
    """Healed, the server answers as Python does; before, it lies to nobody."""
    server, rng = _serve(folder), CALLS.random(number)
    target = _TARGETS[number % len(_TARGETS)]
    failing = _Failing(target, rng)
    seen: list[str] = []
    is_over = threading.Event()

    def load(seed: float) -> None:
        own, answered, end = random.Random(seed), 0, time.monotonic() + 60
        while not is_over.is_set() or answered < _BATCHES:
            asked = own.sample(range(len(_QUESTIONS)), 60)
            found = server.ask(asked)
            seen.extend(found)
            answered += len(found) > 1
            if time.monotonic() > end:
                return

    threads = [
        threading.Thread(target=load, args=(rng.random(),)) for _ in range(_CLIENTS)
    ]
    before, ready = server.version, 0
    with failing.entered():
        for thread in threads:
            thread.start()
        change = server.change(rng, number)
        is_broken = target.is_needed and failing.times == _LONG
        if is_broken and _wait(lambda: server.served.service.problem):
            asked = server.send("GET", "/readyz")
            ready = asked.status if asked else 0
        time.sleep(0.05)
    is_ready = _wait(lambda: getattr(server.send("GET", "/readyz"), "status", 0) == 200)
    is_over.set()
    for thread in threads:
        thread.join()
    problems = [what for what in seen if what.startswith("wrong")]
    if is_broken and ready != 503:
        problems.append(f"/readyz said {ready} while every search failed")
    if not is_ready:
        problems.append("not ready a second after all was well again")
    server.send("POST", "/catalogue/reload")
    made = server.version - before
    if change is not None:  # else nobody knows
        told = "made" if change.status == 200 else change.json["error"]["code"]
        if made != (told in ("made", "unconfirmed")):
            problems.append(f"change: {told}, {made} versions")
    after = server.ask_all()
    problems += [f"after: {what}" for what in after if what != "right"]
    answers = sum(not what.startswith("status") for what in (*seen, *after))
    if answers < _CLIENTS * _BATCHES * 60:
        problems.append(f"only {answers} answers within a minute")
    note = f"try {number}: {target.name} failed {failing.failed} times: {problems[:3]}"
    return Outcome(wrong=len(problems), note=note if problems else "", answers=answers)


def _wait(is_so: Callable[[], Any], seconds: float = 1.0) -> bool:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


CALLS = Fault("server: calls fail once or for a while", 1000, fail_calls)
FAULTS = [CALLS]
