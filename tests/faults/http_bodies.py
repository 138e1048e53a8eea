"""Hostile requests over HTTP: an answer within the protocol, whatever was sent."""

import contextlib
import functools
import json
import shutil
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from served import Running, make_recommender, run_in_thread

from benchmarks.serving.clients import hostile_requests
from faults.campaign import Fault, Outcome
from faults.fuzzing import TOKENS, _changed

REQUESTS_PER_TRY = 250
_SEEDS = (
    b'{"history": ["item-1", "item-2"], "k": 5}',
    b'{"history": ["item-3"], "filter": {"category": "Shelf 2", "brand": ["Acme"]}}',
    b'{"history": [], "exclude": ["item-9"], "temperature": 0.7, "seed": 5}',
    b'{"history": ["item-1"], "prefix": [null, 3], "exact": false}',
    b'{"requests": [{"history": ["item-1"]}, {"history": ["gone"], "k": 3}]}',
    b'{"items": [{"item_id": "new", "title": "Thing", "price": 3.5}]}',
)
_PATHS = (
    ("POST", "/recommend"),
    ("POST", "/recommend/batch"),
    ("POST", "/catalogue/items"),
    ("GET", "/items/"),
    ("DELETE", "/catalogue/items/"),
    ("GET", "/"),
)


_OPEN = contextlib.ExitStack()


@functools.cache
def _server(folder: Path) -> Running:
    """One server for all tries; its thread runs until `close`."""
    shutil.rmtree(folder / "work", ignore_errors=True)
    return _OPEN.enter_context(run_in_thread(make_recommender(folder / "work")))


def close() -> None:
    """Ends the server, if there is one."""
    _server.cache_clear()
    _OPEN.close()


def _bodies() -> st.SearchStrategy[bytes]:
    place = st.integers(0, 2**16)
    pieces = st.one_of(st.sampled_from(TOKENS), st.binary(max_size=6))
    change = st.tuples(st.sampled_from("ioocdtsb"), place, place, pieces)
    changes = st.one_of(*(st.lists(change, max_size=size) for size in (1, 2, 6)))
    return st.builds(_changed, st.sampled_from(_SEEDS), changes)


def fuzz_requests(number: int, folder: Path) -> Outcome:
    """Half from what benchmarks send, half changed from what is right."""
    server, rng = _server(folder), REQUESTS.random(number)
    problems: list[str] = []
    hostile = hostile_requests(rng)
    for _ in range(REQUESTS_PER_TRY // 2):
        kind, method, path, body, headers = next(hostile)
        if problem := _ask(server, method, path, body, headers):
            problems.append(f"{kind}: {problem}")

    @hypothesis.seed(number)
    @hypothesis.settings(
        max_examples=REQUESTS_PER_TRY - REQUESTS_PER_TRY // 2,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(st.sampled_from(_PATHS), _bodies())
    def ask(target: tuple[str, str], body: bytes) -> None:
        method, path = target
        if path.endswith("/items/"):
            path += "".join(f"%{byte:02X}" for byte in body[:200])
        if problem := _ask(server, method, path, body, {}):
            problems.append(problem)

    ask()
    if server.ask("GET", "/healthz").status != 200:
        problems.append("it isn't healthy any more")
    note = f"try {number}: {problems[0]}" if problems else ""
    return Outcome(wrong=len(problems), note=note, count=REQUESTS_PER_TRY)


def _ask(server: Running, method: str, path: str, body, headers) -> str:
    """What is wrong with the answer, or ""."""
    try:
        reply = server.ask(method, path, body, **headers)
    except (TimeoutError, ConnectionError) as error:
        # A body larger than is taken may be cut off while it is being sent.
        if body is not None and len(body) > 1_000_000:
            return ""
        return f"{method} {path}: {error!r} for {body[:200] if body else body!r}"
    shown = f"{method} {path} {body[:200] if body else body!r}: {reply.status}"
    if not 200 <= reply.status < 500:
        return f"{shown} {reply.content[:300]!r}"
    if b"Traceback" in reply.content:
        return f"{shown} with a traceback"
    if reply.status >= 400:
        try:
            error = json.loads(reply.content)["error"]
            if not error["code"] or not error["message"]:
                return f"{shown} {error}"
        except (ValueError, KeyError, TypeError):
            return f"{shown} without an error's form: {reply.content[:200]!r}"
    return ""


REQUESTS = Fault(
    "input: HTTP requests", 10_000, fuzz_requests, tries_per_row=REQUESTS_PER_TRY
)
FAULTS = [REQUESTS]
