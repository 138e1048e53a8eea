"""Loads a server from a second process, and tries to break it: a JSON row per phase.

    python -m benchmarks.serving --bundle=runs/demo/bundle --minutes=3 \
        --rows=docs/serving.jsonl --table=benchmarks/README.md

*   load: clients that ask as fast as they are answered; every answer is compared
    with Python's (`clients.Question.judge`).
*   overload: batches of many more clients than it takes; it must refuse, not hang,
    and answer as before when they are gone.
*   hostile: requests that make no sense, each of which must get a clear 4xx.
*   swaps: the catalogue changes again and again under load, no request is lost, and
    memory stays what it was (`memory`: megabytes after so many swaps).
*   quiet_swaps: the same while nobody asks, so that the memory is the changes' own.

The server runs as `run.py --stage=serve` does, in a process of its own, on the same
machine: client and server share its cores.
"""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import lib
from benchmarks.lib import ROOT, Row
from benchmarks.serving import clients
from benchmarks.serving.clients import Client, Question
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.workdir.provenance import describe_environment

LIMITS = {
    "settings.Limits.read_seconds": 3.0,
    "settings.Limits.deadline_seconds": 10.0,
}


class Server:
    """A server in a process of its own."""

    def __init__(self, bundle: Path, log: Path) -> None:
        """Starts it and waits until it is ready."""
        self.token = secrets.token_hex(16)
        self._log = open(log, "w+", encoding="utf-8")
        bound = {"serve.bundle": f"'{bundle}'", "serve.port": 0, **LIMITS}
        command = [sys.executable, "run.py", "--stage=serve", f"--workdir={log.parent}"]
        command += [f"--gin.{name}={value}" for name, value in bound.items()]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "TIGER_SERVE_TOKEN": self.token},
        )
        assert self._process.stdout is not None
        self.port = clients.wait_for_port(iter(self._process.stdout))
        client = self.client()
        while client.ask("GET", "/readyz")[0] != 200:
            time.sleep(0.5)

    def client(self) -> Client:
        return Client(self.port, self.token)

    def metric(self, name: str) -> float:
        text = self.client().ask("GET", "/metrics")[1].decode()
        found = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(found[0].split()[-1]) if found else 0.0

    @property
    def megabytes(self) -> float:
        return round(self.metric("tiger_resident_bytes") / 1e6)

    def stop(self) -> dict[str, Any]:
        """Ends it, and says how it ended."""
        self._process.terminate()
        code = self._process.wait(60)
        self._log.seek(0)
        faults = self._log.read().count("Traceback")
        self._log.close()
        return {"exit_code": code, "tracebacks": faults}


class Tally:
    """What many threads saw."""

    def __init__(self) -> None:
        self._lock, self._start = threading.Lock(), time.perf_counter()
        self.seen: collections.Counter[str] = collections.Counter()
        self.seconds: list[float] = []

    def ask(self, question: Callable[[], str]) -> None:
        begun = time.perf_counter()
        try:
            what = question()
        except Exception as error:  # counted; the row shows it
            what = f"lost ({type(error).__name__})"
        seconds = time.perf_counter() - begun
        with self._lock:
            self.seen[what] += 1
            self.seconds.append(seconds)

    def row(self) -> Row:
        seconds = time.perf_counter() - self._start
        quantiles = np.quantile(self.seconds, [0.5, 0.99, 1.0]) * 1e3
        names = ("p50_ms", "p99_ms", "longest_ms")
        return {
            "requests": len(self.seconds),
            "requests_per_second": round(len(self.seconds) / seconds, 1),
            **dict(zip(names, quantiles.round(1).tolist(), strict=True)),
            **{what: self.seen[what] for what in sorted(self.seen)},
        }


def ask_in_threads(
    server: Server, count: int, is_over: Callable[[], bool], ask: Callable[..., str]
) -> Row:
    """Many clients, each asking again once it has an answer: `ask(client, rng)`."""
    tally = Tally()

    def work(number: int) -> None:
        client, rng = server.client(), random.Random(number)
        while not is_over():
            tally.ask(lambda: ask(client, rng))

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))
    return {"clients": count} | tally.row()


def ask_until(
    server: Server,
    questions: Sequence[Question],
    count: int,
    is_over: Callable[[], bool],
    *,
    judged: bool = True,
) -> Row:
    """Clients that ask one question after the other."""

    def ask(client: Client, rng: random.Random) -> str:
        question = rng.choice(questions)
        status, content = client.ask("POST", "/recommend", question.body)
        if status != 200:
            return f"status {status}"
        return question.judge(json.loads(content)) if judged else "answered"

    return ask_in_threads(server, count, is_over, ask)


def for_seconds(seconds: float) -> Callable[[], bool]:
    """Whether so much time has passed since now."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


def load(server: Server, questions: Sequence[Question], options: Any) -> Row:
    """As many clients as given, for as long as given."""
    is_over = for_seconds(60 * options.minutes)
    row = ask_until(server, questions, options.clients, is_over)
    return row | {"server_mb": server.megabytes}


def overload(server: Server, questions: Sequence[Question], options: Any) -> Row:
    """Far more than it takes, and then little again."""
    before = ask_until(server, questions, 4, for_seconds(8))

    def flood(client: Client, rng: random.Random) -> str:
        asked = [rng.choice(questions).body for _ in range(16)]
        status, _ = client.ask("POST", "/recommend/batch", {"requests": asked})
        if status == 429:
            time.sleep(0.05)
        return f"status {status}"

    row = ask_in_threads(server, 100, for_seconds(25), flood) | {"histories_each": 16}
    after = ask_until(server, questions, 4, for_seconds(8))
    for name, calm in (("before", before), ("after", after)):
        row[f"p50_ms_{name}"] = calm["p50_ms"]
        row[f"not_right_{name}"] = calm["requests"] - calm.get("right", 0)
    return row | {"server_mb": server.megabytes}


def hostile(server: Server, questions: Sequence[Question], options: Any) -> Row:
    """Senseless requests, a hundredth of them slow; then a sensible one."""
    before = server.megabytes
    unclear: collections.Counter[str] = collections.Counter()
    slow = options.hostile // 100
    source = clients.hostile_requests(random.Random(options.seed))
    waiting = iter([next(source) for _ in range(options.hostile - slow)])
    lock, tally = threading.Lock(), Tally()

    def check(kind: str, status: int, content: bytes) -> str:
        is_clear = False
        with contextlib.suppress(ValueError, KeyError, TypeError):
            is_clear = bool(json.loads(content)["error"]["message"])
        if not (is_clear and 400 <= status < 500):
            unclear[f"{kind}: {status}"] += 1
        return f"status {status}"

    def ask_next(client: Client, asked: Any) -> str:
        kind, method, path, body, headers = asked
        try:
            return check(kind, *client.ask(method, path, body, **headers))
        except Exception as error:
            unclear[f"{kind}: {type(error).__name__}"] += 1
            return "lost"

    def ask_all(_: int) -> None:
        client = server.client()
        while True:
            with lock:
                asked = next(waiting, None)
            if asked is None:
                return
            tally.ask(functools.partial(ask_next, client, asked))

    def ask_slow(number: int) -> None:
        tally.ask(lambda: check("slow", *clients.ask_slowly(server.port, number)))

    with concurrent.futures.ThreadPoolExecutor(8 + 20) as pool:
        slow_ones = pool.map(ask_slow, range(slow))
        list(pool.map(ask_all, range(8)))
        list(slow_ones)
    row = {"slow": slow} | tally.row()
    calm = ask_until(server, questions, 2, for_seconds(5))
    return row | {
        "unclear": dict(unclear),
        "right_after": calm.get("right", 0),
        "not_right_after": calm["requests"] - calm.get("right", 0),
        "server_mb_before": before,
        "server_mb": server.megabytes,
    }


def swaps(server: Server, questions: Sequence[Question], options: Any) -> Row:
    """One change of the catalogue after the other, while clients ask."""
    done = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        changed = pool.submit(_change_all, server, options, done)
        row = ask_until(server, questions, options.clients, done.is_set, judged=False)
        return row | changed.result()


def quiet_swaps(server: Server, questions: Sequence[Question], options: Any) -> Row:
    """The same changes while nobody asks: what they leave behind in memory."""
    return {"clients": 0} | _change_all(server, options, threading.Event())


def _change_all(server: Server, options: Any, done: threading.Event) -> Row:
    rng, client = np.random.default_rng(options.seed), server.client()
    failed, seconds, memory = [], [], []
    try:
        changes = itertools.islice(_changes(options, rng), options.swaps)
        for method, path, body in changes:
            begun = time.perf_counter()
            status, content = client.ask(method, f"/catalogue{path}", body)
            seconds.append(time.perf_counter() - begun)
            if status != 200:
                failed.append(content[:200].decode())
            if len(seconds) % max(1, options.swaps // 10) == 0:
                device = round(server.metric("tiger_device_bytes") / 1e6, 1)
                found = {"mb": server.megabytes, "device_mb": device}
                memory.append({"swaps": len(seconds)} | found)
    finally:
        done.set()
    return {
        "swaps": len(seconds),
        "swaps_failed": len(failed),
        "swap_p50_ms": round(float(np.median(seconds)) * 1e3, 1),
        "version": server.metric("tiger_catalogue_version"),
        "memory": memory,
        "server_mb": server.megabytes,
    }


def _changes(options: Any, rng: Any) -> Iterator[tuple[str, str, Any]]:
    """An item joins, changes, leaves; every tenth time all goes back."""
    for number in itertools.count(1):
        item: Row = {"item_id": f"new {number}", "title": f"Novelty {number}"}
        if options.embedding_width:
            item["embedding"] = rng.normal(size=options.embedding_width).tolist()
        name = f"new%20{number}"
        yield "POST", "/items", {"items": [item]}
        attributes = {"in_stock": number % 2 == 0}
        yield "PUT", f"/items/{name}/attributes", {"attributes": attributes}
        yield "DELETE", f"/items/{name}", None
        if number % 10 == 0:
            yield "POST", "/rollback", {"version": 0}


RUN: dict[str, Callable[[Server, Sequence[Question], Any], Row]] = {
    "load": load,
    "overload": overload,
    "hostile": hostile,
    "swaps": swaps,
    "quiet_swaps": quiet_swaps,
}


def main() -> None:
    """Starts a server and runs the phases asked for."""
    parser = lib.make_parser(__doc__, "seed", "rows", "table")
    add = parser.add_argument
    add("--bundle", type=Path, required=True)
    add("--phases", type=lib.words, default=list(RUN))
    add("--minutes", type=float, default=1.0, help="of the load")
    add("--clients", type=int, default=32)
    add("--questions", type=int, default=200)
    add("--hostile", type=int, default=10_000)
    add("--swaps", type=int, default=1_000)
    options = lib.parse(parser)
    if not set(options.phases) <= set(RUN):
        parser.error(f"--phases are some of {', '.join(RUN)}")
    versions = CatalogueVersions.open(options.bundle)
    recommender = Recommender.load(versions, version=0)
    catalogue = recommender.catalogue
    vectors = catalogue.embeddings
    options.embedding_width = 0
    if vectors is not None and versions.bundle.parts.encoder is None:
        options.embedding_width = vectors.shape[1]
    questions = clients.make_questions(recommender, options.questions, options.seed)
    environment = describe_environment()
    common = {
        "items": catalogue.num_items,
        "beams": recommender.shapes.num_beams,
        "cores": len(os.sched_getaffinity(0)),
        **{key: environment[key] for key in ("commit", "devices")},
    }
    with tempfile.TemporaryDirectory() as folder:
        # A copy, so that its versions are nobody else's.
        bundle = Path(folder) / "bundle"
        shutil.copytree(options.bundle, bundle)
        server = Server(bundle, Path(folder) / "log")
        try:
            for phase in options.phases:
                row = RUN[phase](server, questions, options)
                lib.report({"phase": phase, **row, **common}, options.rows)
        finally:
            ended = server.stop()
        lib.report({"phase": "stop", **ended, **common}, options.rows)
    if options.table:
        write_table(options.rows, options.table)


def write_table(rows_file: Path, table_file: Path) -> None:
    """Puts the newest row of every phase between the file's marks."""
    newest = {row["phase"]: row for row in lib.read_rows(rows_file)}
    some = next(iter(newest.values()))
    about = (
        f"{some['items']:,} items, {some['beams']} beams; {some['devices']}, "
        f"{some['cores']} cores shared by server and clients; commit "
        f"`{some['commit']}`."
    )
    titles = ["phase", "clients", "requests", "a second", "p50 ms", "p99 ms"]
    titles += ["longest ms", "what came back", "server MB"]
    cells = [_table_cells(newest[phase]) for phase in RUN if phase in newest]
    align = "|---|--:|--:|--:|--:|--:|--:|---|--:|"
    lines = [about, "", *lib.markdown_table(titles, cells, align)]
    lib.write_between(table_file, "serving", "\n".join(lines))


def _table_cells(row: Row) -> list[Any]:
    outcomes = ("right", "wrong", "invalid", "answered", "lost", "status")
    told = [f"{v:,} {k}" for k, v in row.items() if k.startswith(outcomes)]
    for key in ("not_right_after", "swaps", "swaps_failed"):
        if key in row:
            told.append(f"{row[key]:,} {key.replace('_', ' ')}")
    if row.get("memory"):
        found = [f"{one['mb']:,}" for one in row["memory"]]
        told.append(f"MB at each tenth of them: {' '.join(found)}")
    if "unclear" in row:
        told.append(f"{sum(row['unclear'].values())} unclear")
    numbers = ("requests", "requests_per_second", "p50_ms", "p99_ms", "longest_ms")
    return [
        row["phase"],
        row.get("clients", ""),
        *(f"{row[name]:,}" if name in row else "" for name in numbers),
        ", ".join(told),
        f"{row['server_mb']:,.0f}",
    ]


if __name__ == "__main__":
    lib.run(main)
