"""Loads a server from a second process, and tries to break it: one JSON row a phase.

    python -m benchmarks.serving --bundle=runs/demo/bundle --minutes=3 \
        --rows=rows.jsonl --table=benchmarks/README.md

*   load: clients that ask as fast as they are answered; every answer is compared
    with Python's (`serving_clients.Question.judge`).
*   overload: batches of many more clients than it takes; it must refuse, not hang,
    and answer as before when they are gone.
*   hostile: requests that make no sense, each of which must get a clear 4xx.
*   swaps: the catalogue changes again and again under load, and no request is lost.

The server runs as `run.py --stage=serve` does, in a process of its own, on the same
machine: client and server share its cores.
"""

import argparse
import collections
import concurrent.futures
import contextlib
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

from benchmarks.lib import write_between
from benchmarks.serving.clients import (
    Client,
    Question,
    ask_slowly,
    hostile_requests,
    make_questions,
    wait_for_port,
)
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.workdir import artifacts

ROOT = Path(__file__).resolve().parents[2]
PHASES = ("load", "overload", "hostile", "swaps")
READ_SECONDS, DEADLINE_SECONDS = 3.0, 10.0
Row = dict[str, Any]


class Server:
    """A server in a process of its own."""

    def __init__(self, bundle: Path, log: Path) -> None:
        """Starts it and waits until it is ready."""
        self.token = secrets.token_hex(16)
        self._log = open(log, "w+", encoding="utf-8")
        command = [
            *(sys.executable, str(ROOT / "run.py"), "--stage=serve"),
            *(f"--workdir={log.parent}", f"--gin.serve.bundle='{bundle}'"),
            *("--gin.serve.port=0",),
            f"--gin.settings.Limits.read_seconds={READ_SECONDS}",
            f"--gin.settings.Limits.deadline_seconds={DEADLINE_SECONDS}",
        ]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "TIGER_SERVE_TOKEN": self.token},
        )
        assert self._process.stdout is not None
        self.port = wait_for_port(iter(self._process.stdout))
        client = self.client()
        while client.ask("GET", "/readyz")[0] != 200:
            time.sleep(0.5)

    def client(self) -> Client:
        """A client that bears its token."""
        return Client(self.port, self.token)

    def metric(self, name: str) -> float:
        """One number of `/metrics`."""
        text = self.client().ask("GET", "/metrics")[1].decode()
        found = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(found[0].split()[-1]) if found else 0.0

    @property
    def megabytes(self) -> float:
        """What it holds of the machine's memory."""
        return round(self.metric("process_resident_memory_bytes") / 1e6)

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
        """Nothing yet."""
        self._lock = threading.Lock()
        self.seen: collections.Counter[str] = collections.Counter()
        self.seconds: list[float] = []

    def note(self, what: str, seconds: float) -> None:
        """Counts one request."""
        with self._lock:
            self.seen[what] += 1
            self.seconds.append(seconds)

    def row(self, seconds: float) -> Row:
        """Counts, rate and quantiles."""
        quantiles = np.quantile(self.seconds, [0.5, 0.99, 1.0]) * 1e3
        names = ("p50_ms", "p99_ms", "longest_ms")
        return {
            "requests": len(self.seconds),
            "requests_per_second": round(len(self.seconds) / seconds, 1),
            **dict(zip(names, quantiles.round(1).tolist(), strict=True)),
            **{what: self.seen[what] for what in sorted(self.seen)},
        }


def ask_until(
    server: Server,
    questions: Sequence[Question],
    clients: int,
    is_over: Callable[[], bool],
    *,
    judged: bool = True,
) -> Row:
    """Many clients, each asking the next question once it has an answer."""
    tally, start = Tally(), time.perf_counter()

    def ask(number: int) -> None:
        client, rng = server.client(), random.Random(number)
        while not is_over():
            question = rng.choice(questions)
            begun = time.perf_counter()
            try:
                status, content = client.ask("POST", "/recommend", question.body)
                what = f"status {status}"
                if status == 200:
                    reply = json.loads(content)
                    what = question.judge(reply) if judged else "answered"
            except Exception as error:  # counted; the row shows it
                what = f"lost ({type(error).__name__})"
            tally.note(what, time.perf_counter() - begun)

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))
    return {"clients": clients} | tally.row(time.perf_counter() - start)


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
    tally, is_over = Tally(), for_seconds(25)

    def flood(number: int) -> None:
        client, rng = server.client(), random.Random(number)
        while not is_over():
            asked = [rng.choice(questions).body for _ in range(16)]
            begun = time.perf_counter()
            try:
                status, _ = client.ask("POST", "/recommend/batch", {"requests": asked})
                what = f"status {status}"
                if status == 429:
                    time.sleep(0.05)
            except Exception as error:
                what = f"lost ({type(error).__name__})"
            tally.note(what, time.perf_counter() - begun)

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        list(pool.map(flood, range(100)))
    row = {"clients": 100, "histories_each": 16}
    row |= tally.row(time.perf_counter() - start)
    after = ask_until(server, questions, 4, for_seconds(8))
    for name, calm in (("before", before), ("after", after)):
        row[f"p50_ms_{name}"] = calm["p50_ms"]
        row[f"not_right_{name}"] = calm["requests"] - calm.get("right", 0)
    return row | {"server_mb": server.megabytes}


def hostile(server: Server, questions: Sequence[Question], options: Any) -> Row:
    """Senseless requests, a hundredth of them slow; then a sensible one."""
    before, tally = server.megabytes, Tally()
    unclear: collections.Counter[str] = collections.Counter()
    slow = options.hostile // 100
    source = hostile_requests(random.Random(options.seed))
    waiting = iter([next(source) for _ in range(options.hostile - slow)])
    lock = threading.Lock()

    def check(kind: str, status: int, content: bytes) -> str:
        is_clear = False
        with contextlib.suppress(ValueError, KeyError, TypeError):
            is_clear = bool(json.loads(content)["error"]["message"])
        if not (is_clear and 400 <= status < 500):
            unclear[f"{kind}: {status}"] += 1
        return f"status {status}"

    def ask(_: int) -> None:
        client = server.client()
        while True:
            with lock:
                asked = next(waiting, None)
            if asked is None:
                return
            kind, method, path, body, headers = asked
            begun = time.perf_counter()
            try:
                what = check(kind, *client.ask(method, path, body, **headers))
            except Exception as error:
                unclear[f"{kind}: {type(error).__name__}"] += 1
                what = "lost"
            tally.note(what, time.perf_counter() - begun)

    def ask_slow(number: int) -> None:
        begun = time.perf_counter()
        what = check("slow", *ask_slowly(server.port, number))
        tally.note(what, time.perf_counter() - begun)

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(8 + 20) as pool:
        slow_ones = pool.map(ask_slow, range(slow))
        list(pool.map(ask, range(8)))
        list(slow_ones)
    row = {"slow": slow} | tally.row(time.perf_counter() - start)
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
    done, failed, seconds = threading.Event(), [], []
    rng = np.random.default_rng(options.seed)

    def change() -> None:
        client = server.client()
        try:
            for number, (method, path, body) in enumerate(_changes(options, rng)):
                if number == options.swaps:
                    break
                begun = time.perf_counter()
                status, content = client.ask(method, f"/catalogue{path}", body)
                seconds.append(time.perf_counter() - begun)
                if status != 200:
                    failed.append(content[:200].decode())
        finally:
            done.set()

    thread = threading.Thread(target=change)
    thread.start()
    row = ask_until(server, questions, options.clients, done.is_set, judged=False)
    thread.join()
    return row | {
        "swaps": len(seconds),
        "swaps_failed": len(failed),
        "swap_p50_ms": round(float(np.median(seconds)) * 1e3, 1),
        "version": server.metric("tiger_catalogue_version"),
        "server_mb": server.megabytes,
    }


def _changes(options: Any, rng: Any) -> Iterator[tuple[str, str, Any]]:
    """An item joins, changes, leaves; every tenth time all goes back."""
    number = 0
    while True:
        number += 1
        item: Row = {"item_id": f"new {number}", "title": f"Novelty {number}"}
        if options.embedding_width:
            item["embedding"] = rng.normal(size=options.embedding_width).tolist()
        name = f"new%20{number}"
        yield "POST", "/items", {"items": [item]}
        yield (
            "PUT",
            f"/items/{name}/attributes",
            {"attributes": {"in_stock": number % 2 == 0}},
        )
        yield "DELETE", f"/items/{name}", None
        if number % 10 == 0:
            yield "POST", "/rollback", {"version": 0}


def main() -> None:
    """Starts a server and runs the phases asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--minutes", type=float, default=1.0, help="of the load")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--hostile", type=int, default=10_000)
    parser.add_argument("--swaps", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, help="a file to add the rows to")
    parser.add_argument("--table", type=Path, help="a Markdown file with marks")
    options = parser.parse_args()
    phases = options.phases.split(",")
    if not set(phases) <= set(PHASES):
        parser.error(f"--phases are some of {', '.join(PHASES)}")
    recommender = Recommender.load(options.bundle, version=0)
    engine, catalogue = recommender.engine, recommender.catalogue
    vectors = catalogue.embeddings
    options.embedding_width = 0
    if vectors is not None and engine.coder.encoder is None:
        options.embedding_width = vectors.shape[1]
    questions = make_questions(recommender, options.questions, options.seed)
    environment = artifacts.describe_environment()
    common = {
        "items": catalogue.num_items,
        "beams": engine.shapes.num_beams,
        "cores": len(os.sched_getaffinity(0)),
        **{key: environment[key] for key in ("commit", "devices")},
    }
    with tempfile.TemporaryDirectory() as folder:
        # A copy, so that its versions are nobody else's.
        bundle = Path(folder) / "bundle"
        shutil.copytree(options.bundle, bundle)
        server = Server(bundle, Path(folder) / "log")
        try:
            for phase in phases:
                row = globals()[phase](server, questions, options)
                _tell({"phase": phase, **row, **common}, options.rows)
        finally:
            ended = server.stop()
        _tell({"phase": "stop", **ended, **common}, options.rows)
    if options.table is not None:
        write_table(options.rows, options.table)


def _tell(row: Row, file: Path | None) -> None:
    line = json.dumps(row)
    print(line, flush=True)
    if file is not None:
        with open(file, "a", encoding="utf-8") as out:
            out.write(line + "\n")


def write_table(rows_file: Path, table_file: Path) -> None:
    """Puts the newest row of every phase between the file's marks."""
    lines = rows_file.read_text(encoding="utf-8").splitlines()
    newest = {row["phase"]: row for row in map(json.loads, lines)}
    some = next(iter(newest.values()))
    text = [
        f"{some['items']:,} items, {some['beams']} beams; {some['devices']}, "
        f"{some['cores']} cores shared by server and clients; commit "
        f"`{some['commit']}`.",
        "",
        "| phase | clients | requests | a second | p50 ms | p99 ms | longest ms | what "
        "came back | server MB |",
        "|---|--:|--:|--:|--:|--:|--:|---|--:|",
    ]
    for phase in PHASES:
        if phase in newest:
            text.append(_table_line(newest[phase]))
    write_between(table_file, "serving", "\n".join(text))


def _table_line(row: Row) -> str:
    outcomes = ("right", "wrong", "invalid", "answered", "lost", "status")
    told = [f"{v:,} {k}" for k, v in row.items() if k.startswith(outcomes)]
    for key in ("not_right_after", "swaps", "swaps_failed"):
        if key in row:
            told.append(f"{row[key]:,} {key.replace('_', ' ')}")
    if "unclear" in row:
        told.append(f"{sum(row['unclear'].values())} unclear")
    cells = [
        row["phase"],
        str(row.get("clients", "")),
        f"{row['requests']:,}",
        f"{row['requests_per_second']:,}",
        *(f"{row[k]:,}" for k in ("p50_ms", "p99_ms", "longest_ms")),
        ", ".join(told),
        f"{row['server_mb']:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
