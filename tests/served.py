"""A tiny recommender, and a real server around it, in a thread of this process."""

import contextlib
import dataclasses
import http.client
import json
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import uvicorn
from trained_workdir import make_trained_workdir

from tiger_jax.recommending.bundle import Bundle
from tiger_jax.recommending.parts import Parts
from tiger_jax.recommending.programs import Shapes
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.searcher import Found, SearchConfig
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.serving.server import Proxy, listen, make_server
from tiger_jax.serving.service import Service
from tiger_jax.serving.settings import Limits
from tiger_jax.serving.tokens import Tokens


class DrawnPrograms:
    """Stands in for the compiled searches: a row's list depends on that row alone.

    Nothing to compile, and a row that got another's answer would show. It looks at
    exclusions, but not at filters.
    """

    def __init__(self, num_items: int, num_beams: int) -> None:
        self._num_items, self._num_beams = num_items, num_beams
        self.free = threading.Event()
        self.free.set()
        self.begun = 0  # searches

    def __call__(self, kind, params, trie, batch) -> Found:
        self.begun += 1
        assert self.free.wait(30)
        items = np.full((len(batch.inputs), self._num_beams), -1, np.int32)
        scores = np.full(items.shape, -np.inf, np.float32)
        for i in range(len(items)):
            row = kind.encode() + b"".join(field[i].tobytes() for field in batch)
            rng = np.random.default_rng(zlib.crc32(row))
            drawn = np.setdiff1d(np.arange(self._num_items), batch.exclude[i])
            drawn = rng.permutation(drawn)[: self._num_beams]
            items[i, : len(drawn)] = drawn
            scores[i, : len(drawn)] = -np.arange(len(drawn)) / 4
        return Found(items, scores)


def make_recommender(
    folder: Path, *, is_drawn: bool = True, **made
) -> tuple[Recommender, CatalogueVersions]:
    """A recommender, and the bundle's versions as if it had been exported.

    Its items are drawn, or else found by the model; see `make_trained_workdir`.
    """
    workdir = make_trained_workdir(folder, with_quantizer=True, **made)
    parts = Parts.of_workdir(workdir, room=1.5)
    shapes = Shapes.for_parts(parts, SearchConfig(num_beams=20), (1, 4), 8)
    programs = None
    if is_drawn:
        programs = DrawnPrograms(parts.table.num_items, shapes.num_beams)
    bundle = Bundle(workdir / "bundle", parts, shapes, "the bundle's hash")
    recommender = Recommender.of_parts(parts, shapes, programs=programs)
    return recommender, CatalogueVersions(bundle)


@dataclasses.dataclass
class Reply:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self):
        return json.loads(self.content)


@dataclasses.dataclass
class Running:
    """A server that answers."""

    service: Service
    server: uvicorn.Server
    port: int
    operations_port: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, body=None, **headers) -> Reply:
        """One request; `body` is JSON's, unless it is bytes already."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, headers)
            return read_reply(connection)

    def metric(self, name: str, **headers) -> float:
        for line in (
            self.ask("GET", "/metrics", **headers).content.decode().splitlines()
        ):
            if line.startswith(name + " "):
                return float(line.split()[-1])
        return 0.0

    def wait_until(self, is_so, seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end
            time.sleep(0.005)


def read_reply(connection: http.client.HTTPConnection) -> Reply:
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, response.read())


@contextlib.contextmanager
def run_in_thread(
    tiny: tuple[Recommender, CatalogueVersions],
    limits: Limits | None = None,
    *,
    page="<p>page",
    has_operations=False,
    **options,
) -> Iterator[Running]:
    """Serves until the block ends."""
    limits = limits or Limits()
    hosts, proxy = options.pop("hosts", ()), options.pop("proxy", Proxy())
    tokens = Tokens(options.pop("token", None), options.pop("admin_token", None))
    options.setdefault("poll_seconds", 0.05)
    service = Service(*tiny, limits, tokens=tokens, **options)
    listeners = [listen("127.0.0.1", 0)]
    if has_operations:
        listeners.append(listen("127.0.0.1", 0))
    server = make_server(
        service,
        page=page,
        hosts=hosts,
        proxy=proxy,
        operations=listeners[1] if has_operations else None,
    )
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": listeners}, name="serve"
    )
    thread.start()
    ports = [listener.getsockname()[1] for listener in listeners]
    running = Running(service, server, *ports)
    try:
        running.wait_until(lambda: service.status == "ok", 300)
        yield running
    finally:
        server.should_exit = True
        thread.join()
        for listener in listeners:
            listener.close()
