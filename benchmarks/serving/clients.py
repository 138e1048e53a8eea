"""What the clients of `benchmarks.serving` send, and how they check what they get."""

import dataclasses
import http.client
import json
import random
import socket
import string
import time
from collections.abc import Callable, Iterator
from typing import Any

from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.requests import Answer, Request

TOLERANCE = 1e-3  # batches of other sizes add in another order


@dataclasses.dataclass(frozen=True)
class Question:
    """A request, and what Python answers."""

    body: dict[str, Any]
    answer: Answer
    allowed: frozenset[str]

    def judge(self, reply: dict[str, Any]) -> str:
        """Says "right", "wrong" (other items than Python's) or "invalid"."""
        listed = [item["item_id"] for item in reply["items"]]
        if len(set(listed)) < len(listed) or not set(listed) <= self.allowed:
            return "invalid"
        scores = {item["item_id"]: item["score"] for item in reply["items"]}
        expected = {item.item_id: item.score for item in self.answer.items}
        if len(scores) != len(expected):
            return "wrong"
        if "temperature" in self.body:  # a draw: in its order
            return "right" if listed == list(expected) else "wrong"
        last = min(expected.values(), default=0.0)
        # The same scores, place by place; two that tie may stand either way round.
        for ours, theirs in zip(scores.values(), expected.values(), strict=True):
            if abs(ours - theirs) > TOLERANCE:
                return "wrong"
        for item_id, score in scores.items():
            if abs(score - expected.get(item_id, last)) > TOLERANCE:
                return "wrong"
        return "right"


def make_questions(recommender: Recommender, number: int, seed: int) -> list[Question]:
    """Requests of all kinds, mostly plain ones, answered by Python."""
    rng, catalogue = random.Random(seed), recommender.catalogue
    weights = (catalogue.popularity + 1).tolist()
    categories = list(catalogue.values_of("category"))[:20]
    questions = []
    for index in range(number):
        length = rng.randint(1, 2 * recommender.max_items)
        history = rng.choices(catalogue.item_ids, weights, k=length)
        body: dict[str, Any] = {"history": history, "k": rng.choice((5, 10, 20))}
        match index % 20:
            case 0 | 1 | 2:
                body["filter"] = {
                    "category": rng.sample(categories, min(2, len(categories)))
                }
            case 3 | 4:
                body |= {"temperature": 1.0, "seed": index}
            case 5:
                body["epsilon"] = 0.2
            case 6:
                count = min(100, len(catalogue.item_ids) // 5)
                body["exclude"] = rng.sample(catalogue.item_ids, count)
            case 7:
                body["prefix"] = [int(rng.choice(catalogue.table.codes[:, 0]))]
        (answer,) = recommender.answer([Request(**body)])
        mask = catalogue.mask(
            {name: sorted(v) for name, v in body.get("filter", {}).items()}
        )
        out = {*history, *body.get("exclude", ())}
        allowed = frozenset(
            item_id
            for item_id, passes, code in zip(
                catalogue.item_ids, mask, catalogue.table.codes[:, 0], strict=True
            )
            if passes and item_id not in out and code in body.get("prefix", [code])
        )
        questions.append(Question(body, answer, allowed))
    return questions


class Client:
    """One connection, kept as long as the server keeps it."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {token}",
        }

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, bytes]:
        """Status and content of an answer; tries once more on a closed connection."""
        data = body
        if body is not None and not isinstance(body, bytes):
            data = json.dumps(body).encode()
        while True:
            is_fresh = self._connection.sock is None
            try:
                self._connection.request(method, path, data, self._headers | headers)
                response = self._connection.getresponse()
                return response.status, response.read()
            except (http.client.HTTPException, OSError):
                self._connection.close()
                # The server may have closed an idle connection in the meantime.
                if is_fresh:
                    raise


def hostile_requests(
    rng: random.Random,
) -> Iterator[tuple[str, str, str, bytes | None, dict[str, str]]]:
    """Without end: a kind, a method, a path, a body, and headers."""
    kinds = list(_HOSTILE.items())
    while True:
        kind, make = rng.choice(kinds)
        made = make(rng)
        if isinstance(made, bytes):
            yield kind, "POST", "/recommend", made, {}
        else:
            method, path, body, headers = made
            yield kind, method, path, body, headers


def _field(rng: random.Random, name: str, values: list[str]) -> bytes:
    return f'{{"history": ["a"], "{name}": {rng.choice(values)}}}'.encode()


def _odd_text(rng: random.Random) -> bytes:
    return rng.choice(
        [
            b'{"history": ["\\ud800"]}',
            b'{"history": ["\\udc00\\ud800"]}',
            b'{"history": ["\xff\xfe"]}',
            b'{"history": ["\xed\xa0\x80"]}',
            b'\xef\xbb\xbf{"history": ["a"]}',
            '{"history": ["a"], "füür\u202e": 1}'.encode(),
            ('{"history": ["' + "\u0301\U0001f9db" * 300 + '"]}').encode(),
            b'{"history": ["a"]',
            b'{"history": ["a\x00"], "k": 0}',
        ]
    )


_LETTERS = string.ascii_letters
_HOSTILE: dict[str, Callable[[random.Random], Any]] = {
    "wrong types": lambda rng: _field(
        rng,
        rng.choice(["history", "k", "exclude", "filter", "prefix", "seed", "exact"]),
        ['"a"', "1.5", '{"a": {}}', "[[1]]", '[{"": 0}]'],
    ),
    "negative k": lambda rng: _field(rng, "k", ["-1", "0", "-" + "9" * 60, "1e999"]),
    "NaN": lambda rng: _field(
        rng,
        rng.choice(["temperature", "epsilon", "k"]),
        ["NaN", "Infinity", "-Infinity", "1e999", "nan"],
    ),
    "unknown fields": lambda rng: _field(
        rng, "x" + "".join(rng.choices(_LETTERS, k=rng.choice((1, 30, 3000)))), ["1"]
    ),
    "deep nesting": lambda rng: (
        b'{"history": ["a"], "filter": '
        + rng.choice([b"[", b'{"a":']) * rng.choice([300, 5000, 100_000])
    ),
    "odd Unicode": _odd_text,
    "huge body": lambda rng: (
        b'{"history": ["' + b"a" * rng.choice([1_100_000, 3_000_000]) + b'"]}'
    ),
    "many items": lambda rng: json.dumps(
        {"history": ["a"] * rng.choice([10_001, 50_000])}
    ).encode(),
    "no JSON": lambda rng: rng.randbytes(rng.choice([1, 50, 5000])),
    "senseless filter": lambda rng: _field(
        rng, "filter", ['{"no such": 1}', '{"price": {"min": "x"}}', '{"a": null}']
    ),
    "bad batch": lambda rng: (
        "POST",
        "/recommend/batch",
        json.dumps({"requests": [{"history": ["a"]}] * rng.choice([0, 65])}).encode(),
        {},
    ),
    "bad query": lambda rng: (
        "GET",
        "/items?"
        + rng.choice(["limit=-1", "limit=x", "x=1", "offset=1e9", "limit=1e3"]),
        None,
        {},
    ),
    "no such path": lambda rng: (
        rng.choice(["GET", "POST", "PUT", "DELETE"]),
        "/" + "".join(rng.choices(_LETTERS + "/.%", k=rng.choice((1, 50)))) + "/x",
        None,
        {},
    ),
    "other type": lambda rng: (
        "POST",
        "/recommend",
        b'{"history": ["a"]}',
        {"Content-Type": rng.choice(["text/plain", "application/xml", ""])},
    ),
    "no token": lambda rng: (
        "POST",
        "/catalogue/items",
        b'{"items": []}',
        {"Authorization": rng.choice(["", "Bearer", "Bearer x", "Basic eDp5"])},
    ),
    "unknown item": lambda rng: (
        rng.choice(["GET", "DELETE"]),
        "/items/" + "".join(rng.choices(_LETTERS, k=40)),
        None,
        {},
    ),
}


def ask_slowly(port: int, seed: int) -> tuple[int, bytes]:
    """A client that never ends its request; what it is told."""
    rng = random.Random(seed)
    head = b"POST /recommend HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    body = head + b"Content-Type: application/json\r\nContent-Length: 999\r\n\r\n"
    parts = [head + b"X: ", b"a"] if rng.random() < 0.5 else [body + b"{", b" "]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        said = b""
        connection.sendall(parts[0])
        connection.settimeout(0.25)
        for _ in range(240):
            try:
                piece = connection.recv(65536)
                said += piece
                if not piece:
                    break
                connection.sendall(parts[1])
            except TimeoutError:
                connection.sendall(parts[1])
            except OSError:  # the server has hung up on what came after its answer
                break
        status = said.split(b" ", 2)[1] if said else b"0"
        return int(status), said.partition(b"\r\n\r\n")[2]


def wait_for_port(path_lines: Iterator[str]) -> int:
    """The port in what a server prints when it starts, within a minute."""
    end = time.monotonic() + 60
    for line in path_lines:
        if "http://" in line:
            return int(line.split("://")[1].split(",")[0].rpartition(":")[2])
        if time.monotonic() > end:
            break
    raise RuntimeError("the server hasn't started")
