"""A recommender and what stands between it and its clients."""

import asyncio
import contextlib
import dataclasses
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tiger_jax.errors import UserFacingError
from tiger_jax.recommending.carry import Predecessor, carry_over
from tiger_jax.recommending.catalogue import Catalogue
from tiger_jax.recommending.explanation import Explanation, explain
from tiger_jax.recommending.recommender import Recommender, load_with_versions
from tiger_jax.recommending.requests import Answer, Request
from tiger_jax.recommending.trust import ANY, Trust
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.semantic_ids.code_tree import pack_tree
from tiger_jax.serving import schemas
from tiger_jax.serving.batching import Batcher
from tiger_jax.serving.errors import ApiError
from tiger_jax.serving.metrics import Metrics
from tiger_jax.serving.settings import Limits
from tiger_jax.serving.tokens import Tokens
from tiger_jax.serving.traces import Traces
from tiger_jax.workdir import artifacts

_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class NotReadyError(UserFacingError):
    """The searches have failed for so long that another process should try."""


class Engine:
    """One bundle that is served: its recommender, its versions, its queues."""

    def __init__(
        self,
        recommender: Recommender,
        versions: CatalogueVersions,
        limits: Limits,
        metrics: Metrics,
        traces: Traces,
        trust: Trust,
    ) -> None:
        self.recommender, self.versions = recommender, versions
        self._before = Predecessor(versions, trust)
        self.folder = versions.bundle.folder.resolve()
        self.stamp = artifacts.stamp(self.folder)
        self.batcher = Batcher(recommender, limits, metrics, traces)
        self.complaint = ""  # about the newest version, said once

    @property
    def model(self) -> str:
        return self.recommender.model

    @property
    def probe(self) -> Request:
        """Something that can always be answered, by all that a search may need."""
        catalogue = self.recommender.catalogue
        item_id = catalogue.item_ids[int(catalogue.popularity.argmax())]
        unseen = {"price": {"max": time.monotonic()}}  # its bits are uploaded
        return Request([item_id], 1, filter=unseen)

    def follow(self) -> bool:
        """Takes over what other processes made of the catalogue; whether they did.

        So too of that of the bundle before: where several servers exchange it one
        after the other, those that have it still answer changes.
        """
        self._before.catch_up()
        return self.recommender.follow(self.versions)

    def warm_up(self) -> None:
        """Compiles everything; the model's code where an exported search can't run."""
        try:
            self.recommender.warm_up()
        except Exception:
            searcher = self.recommender.searcher
            if searcher.programs is None:
                raise
            _LOG.exception("an exported search can't run: compiling the model's code")
            self.recommender.searcher = dataclasses.replace(searcher, programs=None)
            self.recommender.warm_up()
        exact = Request(self.probe.history, 1, exact=True)
        for request in (exact, self.probe):
            self.recommender.answer([request])
        self.recommender.catalogue.search("a")


class Service:
    """What the routes share."""

    def __init__(
        self,
        recommender: Recommender,
        versions: CatalogueVersions,
        limits: Limits,
        *,
        tokens: Tokens | None = None,
        poll_seconds: float = 1.0,
        traces: Traces | None = None,
        trust: Trust = ANY,
    ) -> None:
        """Takes a recommender; nothing is compiled yet.

        Args:
            tokens: None for none: all may read, and nobody change anything.
            poll_seconds: Between looks for what other processes did to the catalogue.
            trust: Which bundles may be loaded beside.
        """
        self.limits, self.poll_seconds = limits, poll_seconds
        self.tokens, self.traces = tokens or Tokens(), traces or Traces()
        self.metrics, self._trust = Metrics(), trust
        self.main = self._engine(recommender, versions)
        self.candidate: Engine | None = None
        self.share = 0.0  # of the requests, that the candidate answers
        self._explaining: asyncio.Future[Explanation] | None = None
        self._exchanging = asyncio.Lock()
        self._tree: tuple[Catalogue, bytes] | None = None
        self.status = "compiling"
        self.on_ready: Callable[[], None] = lambda: None
        self.on_failure: Callable[[Exception], None] = lambda error: None
        self._tasks: list[asyncio.Task[None]] = []
        self._reads, self._reading = ThreadPoolExecutor(1, "read"), 0

    def _engine(self, recommender: Recommender, versions: CatalogueVersions) -> Engine:
        shared = (self.limits, self.metrics, self.traces, self._trust)
        return Engine(recommender, versions, *shared)

    @property
    def recommender(self) -> Recommender:
        return self.main.recommender

    @property
    def versions(self) -> CatalogueVersions:
        return self.main.versions

    @property
    def batcher(self) -> Batcher:
        return self.main.batcher

    @property
    def engines(self) -> list[Engine]:
        """The main one, and the candidate where there is one."""
        return [self.main, *filter(None, [self.candidate])]

    def start(self) -> None:
        """Begins to compile, to watch and to follow, in the running event loop."""
        self.batcher.start()
        for work in (self._warm_up, self._watch, self._follow):
            self._tasks.append(asyncio.create_task(work()))

    async def close(self) -> None:
        """Answers what was taken, and takes nothing more."""
        self.status = "stopping"
        for engine in self.engines:
            await engine.batcher.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._reads.shutdown(wait=False, cancel_futures=True)

    def warm_up(self) -> None:
        """Compiles before anything is accepted, where others answer meanwhile."""
        self.main.warm_up()
        self.status = "ok"

    async def _warm_up(self) -> None:
        try:
            if self.status == "compiling":
                await asyncio.to_thread(self.main.warm_up)
        except Exception as error:
            _LOG.exception("compiling the searches failed")
            self.on_failure(error)
            return
        self.metrics.note_build(self.main.model)
        self.note_catalogue()
        if self.status in ("compiling", "ok"):
            self.status = "ok"
            self.metrics.ready.set(1)
            self.on_ready()

    def note_catalogue(self) -> None:
        """Tells the metrics which catalogue is being served."""
        catalogue = self.recommender.catalogue
        self.metrics.version.set(catalogue.version)
        self.metrics.items.set(catalogue.num_items)

    async def _watch(self) -> None:
        """Tells whether the searches work, tries whether they do again, gives up."""
        since: float | None = None
        while True:
            await asyncio.sleep(min(0.5, self.limits.unready_seconds / 4))
            problem = self.problem
            self.metrics.ready.set(self.status == "ok" and not problem)
            self.metrics.note_memory()
            if not problem:
                since = None
                continue
            since = since or time.monotonic()
            seconds = time.monotonic() - since
            if seconds > self.limits.unready_seconds:
                message = f"not ready for {seconds:.0f} seconds ({problem}): giving up"
                self.on_failure(NotReadyError(message))
                return
            for engine in self.engines:
                if engine.batcher.problem:
                    with contextlib.suppress(Exception):
                        await engine.batcher.answer([engine.probe])

    @property
    def problem(self) -> str:
        """Why searches can't be relied on; "" if they can."""
        return next(filter(None, (e.batcher.problem for e in self.engines)), "")

    async def _follow(self) -> None:
        """Takes over what other processes make of the catalogue, and new tokens."""
        while True:
            await asyncio.sleep(self.poll_seconds)
            try:
                self.tokens.read_again()
            except Exception as error:
                _LOG.error("the tokens stay as they are: %s", error)
            with contextlib.suppress(Exception):  # logged, and tried again
                await self.reload()

    async def reload(self) -> None:
        """Changes to the newest versions on disk, by whomever they are.

        Raises:
            Exception: It can't be read, or not served; what was served is served on.
        """
        failures = list[Exception]()
        for engine in self.engines:
            engine.complaint, before = "", engine.complaint
            try:
                if await asyncio.to_thread(engine.follow):
                    version = engine.recommender.catalogue.version
                    _LOG.warning("version %d, by another process", version)
                    self.metrics.changes.labels("followed").inc()
            except Exception as error:
                engine.complaint = str(error)
                if engine.complaint != before:
                    _LOG.error("the newest version can't be read: %s", error)
                failures.append(error)
        self.note_catalogue()
        if failures:
            raise failures[0]

    async def serve_bundle(self, name: str, share: float) -> None:
        """Gives a bundle a share of the requests, beside the one served.

        Args:
            name: Its folder, beside that of the bundle served.
            share: 1 puts it in the other's place, which answers what it has taken; 0
                sends it away again.

        Raises:
            ApiError: It is the main one already.
            InputError: There is no such bundle, or it isn't whole.
        """
        async with self._exchanging:  # a signal may come beside a request
            await self._serve_bundle(name, share)

    async def _serve_bundle(self, name: str, share: float) -> None:
        folder, before = self.main.folder.parent / name, self.engines
        loaded = (e for e in before if e.folder == folder)
        now = artifacts.stamp(folder)  # another one where it was exported again
        engine = next((e for e in loaded if e.stamp == now), None)
        if engine is self.main and share < 1:
            raise ApiError(409, "conflict", f"{name} is the one that others stand by")
        if engine is None and share:
            engine = await asyncio.to_thread(self._load_beside, folder)
            engine.batcher.start()
        if share == 1 and engine is not None:
            self.main, self.candidate, self.share = engine, None, 0.0
        else:
            self.candidate, self.share = engine if share else None, share
        _LOG.warning("serving %s", {e.folder.name: e.model for e in self.engines})
        self.metrics.note_build(self.main.model)
        self.note_catalogue()
        for old in before:
            if old not in self.engines:
                await old.batcher.close()

    def reload_bundle(self) -> None:
        """Begins to exchange the bundle for what its folder holds by now."""

        async def reload() -> None:
            try:
                await self.serve_bundle(self.main.folder.name, 1.0)
            except UserFacingError as error:
                _LOG.error("the bundle stays as it is: %s", error)

        self._tasks.append(asyncio.create_task(reload()))

    def _load_beside(self, folder: Path) -> Engine:
        recommender, versions = load_with_versions(folder, trust=self._trust)
        if carry_over(self.versions, versions) is not None:
            recommender.follow(versions)
        engine = self._engine(recommender, versions)
        engine.warm_up()
        return engine

    def choose(self) -> Engine:
        """Draws who answers the next request."""
        if self.candidate is not None and random.random() < self.share:
            return self.candidate
        return self.main

    async def answer(self, asked: Sequence[schemas.RecommendRequest]) -> list[Answer]:
        """Answers requests together; ApiError if not now, InputError if one is bad."""
        if self.status not in ("ok", "draining"):
            self.check_ready()
        engine = self.choose()
        answers = await engine.batcher.answer([one.to_request() for one in asked])
        self.metrics.answers.labels(engine.model).inc(len(answers))
        return answers

    async def read(self, work: Callable[[], T]) -> T:
        """Does what takes long and is no search, in a thread that has only this.

        Raises:
            ApiError: 429 if too much of it waits, 503 where the deadline has passed.
        """
        if self._reading >= self.limits.waiting_reads:
            self.metrics.shed.labels("reads").inc()
            message = f"{self._reading} such requests are waiting already"
            raise ApiError(429, "busy", message, retry_after=1.0)
        self._reading += 1
        try:
            async with asyncio.timeout(self.limits.deadline_seconds):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._reads, work)
        except TimeoutError:
            self.metrics.shed.labels("deadline").inc()
            message = f"no answer within {self.limits.deadline_seconds:g} seconds"
            raise ApiError(503, "deadline", message, retry_after=1.0) from None
        finally:
            self._reading -= 1

    async def explain(self, asked: schemas.RecommendRequest) -> Explanation:
        """Explains one list at a time; ApiError (429) while it explains another."""
        self.check_ready()
        if self._explaining is not None and not self._explaining.done():
            message = "another list is being explained"
            raise ApiError(429, "busy", message, retry_after=1.0)
        work = asyncio.to_thread(explain, self.recommender, asked.to_request())
        self._explaining = asyncio.ensure_future(work)
        # A client that goes leaves the thread at work.
        return await asyncio.shield(self._explaining)

    def packed_tree(self) -> bytes:
        """The catalogue's tree, packed once for each version."""
        catalogue = self.recommender.catalogue
        if self._tree is None or self._tree[0] is not catalogue:
            table = catalogue.table
            packed = pack_tree(
                table.codes,
                table.num_levels,
                table.codebook_sizes,
                item_ids=catalogue.item_ids,
                titles=catalogue.titles,
                categories=catalogue.categories,
                counts=catalogue.popularity,
                vectors=catalogue.embeddings,
            )
            self._tree = (catalogue, packed)
        return self._tree[1]

    def check_ready(self) -> None:
        """Refuses by 503 while searches are compiled or fail, and at the end."""
        if self.status != "ok":
            message = f"this server is {self.status}"
            raise ApiError(503, self.status, message, retry_after=5.0)
        if problem := self.problem:
            raise ApiError(503, "failing", problem, retry_after=5.0)


def number_of(catalogue: Catalogue, item_id: str) -> int:
    """Looks an item up; an unknown one is a 404."""
    if item_id not in catalogue.number_of:
        raise ApiError(404, "unknown_item", f"there is no item {item_id[:80]!r}")
    return catalogue.number_of[item_id]
