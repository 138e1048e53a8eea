"""Requests of many clients, gathered into the recommender's batches.

While one batch is being searched, the next one gathers: nobody waits for a timer,
and the busier the server, the fuller its batches. A batch is answered wholly from
the catalogue that is current when it starts.
"""

import asyncio
import concurrent.futures
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Sequence

from tiger_jax.errors import InputError
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.requests import Answer, Request, Resolved
from tiger_jax.serving.errors import ApiError, internal_error
from tiger_jax.serving.metrics import Metrics
from tiger_jax.serving.settings import Limits
from tiger_jax.serving.traces import Traces

_LOG = logging.getLogger(__name__)
_Answers = list[Answer] | Exception


@dataclasses.dataclass(eq=False)
class _Job:
    """What one client waits for; its requests are answered together."""

    requests: Sequence[Request]
    future: "asyncio.Future[list[Answer]]"
    since: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def rows(self) -> int:
        """Searches that it takes."""
        return sum(len(request.groups) for request in self.requests)

    @property
    def is_drawn(self) -> frozenset[bool]:
        """Jobs of one kind share batches: searches, draws, or some of both."""
        return frozenset(request.temperature is not None for request in self.requests)


class _Lane:
    """A bounded queue with one thread that empties it."""

    def __init__(self, name: str, capacity: int, rows_a_batch: int) -> None:
        self.name, self.capacity, self.rows_a_batch = name, capacity, rows_a_batch
        self.jobs: list[_Job] = []
        self.seconds_a_row = 0.05
        self.filled = asyncio.Event()
        self.failures = 0  # batches in a row
        self.begun: float | None = None  # when the one in progress was
        self.thread = concurrent.futures.ThreadPoolExecutor(1, f"recommend-{name}")

    @property
    def waiting(self) -> int:
        """Searches that haven't begun."""
        return sum(job.rows for job in self.jobs)

    def put(self, job: _Job) -> None:
        self.jobs.append(job)
        self.filled.set()

    def remove(self, job: _Job) -> None:
        """Takes a job out that nobody waits for any more."""
        if job in self.jobs:
            self.jobs.remove(job)

    def take(self) -> list[_Job]:
        """The oldest job, and as many more of its kind as one batch holds."""
        first = self.jobs[0]
        taken, rows = [first], first.rows
        for job in self.jobs[1:]:
            if job.is_drawn == first.is_drawn and rows + job.rows <= self.rows_a_batch:
                taken.append(job)
                rows += job.rows
        for job in taken:
            self.remove(job)
        if not self.jobs:
            self.filled.clear()
        return taken


class Batcher:
    """Answers requests in batches, one after the other, or refuses at once.

    Requests that score every item take seconds where others take milliseconds:
    they have a lane, and a thread, of their own.
    """

    def __init__(
        self,
        recommender: Recommender,
        limits: Limits,
        metrics: Metrics,
        traces: Traces,
    ) -> None:
        self._recommender, self._limits, self._metrics = recommender, limits, metrics
        self._traces = traces
        most = recommender.shapes.batch_sizes[-1]
        self._lanes = (
            _Lane("search", limits.waiting, most),
            _Lane("exact", limits.waiting_exact, 1),
        )
        self._workers: list[asyncio.Task[None]] = []
        self._is_closed = False
        self.last_failure = ""

    def start(self) -> None:
        """Begins to take requests; call it in the event loop that will wait."""
        self._workers = [asyncio.create_task(self._work(lane)) for lane in self._lanes]

    async def close(self) -> None:
        """Answers what was taken, and takes nothing more."""
        self._is_closed = True
        end = time.monotonic() + self._limits.shutdown_seconds
        for worker, lane in zip(self._workers, self._lanes, strict=True):
            while (lane.jobs or lane.begun) and not worker.done():
                if time.monotonic() > end:
                    break
                await asyncio.sleep(0.01)
            worker.cancel()
            lane.thread.shutdown(wait=False)

    @property
    def problem(self) -> str:
        """Why it isn't to be relied on; "" if it is."""
        limits = self._limits
        for worker, lane in zip(self._workers, self._lanes, strict=True):
            if worker.done() and not self._is_closed:
                return f"the worker of the lane {lane.name} is dead"
            if lane.failures >= limits.failed_batches:
                return f"{lane.failures} batches in a row failed: {self.last_failure}"
            seconds = time.perf_counter() - (lane.begun or math.inf)
            if seconds > limits.stuck_seconds:
                return f"a batch has been searched for {seconds:.0f} seconds"
        return ""

    @property
    def waiting(self) -> int:
        """Searches that haven't begun."""
        return sum(lane.waiting for lane in self._lanes)

    async def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers requests from one version of the catalogue.

        Raises:
            ApiError: 429 where the queue is full, 503 where the deadline has passed
                or the server stops.
            InputError: One of them makes no sense.
        """
        if self._is_closed:
            raise ApiError(503, "stopping", "this server is stopping", retry_after=5.0)
        is_exact = any(request.exact for request in requests)
        lane = self._lanes[is_exact]
        job = _Job(requests, asyncio.get_running_loop().create_future())
        if job.rows > lane.capacity:
            raise InputError(
                f"{job.rows} histories that score every item (exact) are too many for "
                f"one request: at most {lane.capacity}"
            )
        # Who could only wait in vain is told at once.
        in_vain = lane.waiting * lane.seconds_a_row > self._limits.deadline_seconds / 2
        if in_vain or lane.waiting + job.rows > lane.capacity:
            self._metrics.shed.labels("full").inc()
            raise ApiError(
                429,
                "busy",
                f"{lane.waiting} histories are waiting already: try again later",
                retry_after=lane.waiting * lane.seconds_a_row,
            )
        lane.put(job)
        self._note(lane)
        try:
            async with asyncio.timeout(self._limits.deadline_seconds):
                return await job.future
        except TimeoutError:
            self._metrics.shed.labels("deadline").inc()
            raise ApiError(
                503,
                "deadline",
                f"no answer within {self._limits.deadline_seconds:g} seconds",
                retry_after=lane.waiting * lane.seconds_a_row,
            ) from None
        finally:  # also where the client has gone
            lane.remove(job)
            self._note(lane)

    def _note(self, lane: _Lane) -> None:
        self._metrics.waiting.labels(lane.name).set(lane.waiting)

    async def _work(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await lane.filled.wait()
            if not lane.jobs:
                lane.filled.clear()
                continue
            jobs = lane.take()
            self._note(lane)
            lane.begun = start = time.perf_counter()
            for job in jobs:
                self._metrics.queue_seconds.labels(lane.name).observe(start - job.since)
            asked = [job.requests for job in jobs]
            rows = sum(job.rows for job in jobs)
            try:
                with self._traces.span("batch", lane=lane.name, rows=rows):
                    answered = await loop.run_in_executor(
                        lane.thread, self._answer_all, asked
                    )
            except Exception as error:
                answered = [error] * len(jobs)
            lane.begun = None
            seconds = time.perf_counter() - start
            self._note_failures(lane, answered)
            lane.seconds_a_row += 0.2 * (seconds / rows - lane.seconds_a_row)
            self._metrics.batch_rows.labels(lane.name).observe(rows)
            self._metrics.batch_seconds.labels(lane.name).observe(seconds)
            for job, answers in zip(jobs, answered, strict=True):
                if job.future.done():
                    continue  # its deadline has passed
                if isinstance(answers, InputError):
                    job.future.set_exception(answers)
                elif isinstance(answers, Exception):
                    job.future.set_exception(internal_error())
                else:
                    job.future.set_result(answers)

    def _note_failures(self, lane: _Lane, answered: Sequence[_Answers]) -> None:
        """Counts and logs, once a batch, what is the server's fault."""
        faults = [e for e in answered if isinstance(e, Exception)]
        faults = [e for e in faults if not isinstance(e, InputError)]
        if len(faults) < len(answered):
            lane.failures = 0
        if faults:
            first = faults[0]
            lane.failures += len(faults) == len(answered)
            self.last_failure = f"{type(first).__name__}: {first}"[:200]
            self._metrics.failed_batches.labels(lane.name).inc()
            what = "%d of the %d requests of a batch failed"
            _LOG.error(what, len(faults), len(answered), exc_info=first)

    def _answer_all(self, asked: Sequence[Sequence[Request]]) -> list[_Answers]:
        """Answers several jobs from one catalogue; a wrong one spoils no other."""
        recommender = self._recommender
        catalogue = recommender.catalogue
        answered: dict[int, _Answers] = {}
        good: dict[int, list[Resolved]] = {}
        for i, requests in enumerate(asked):
            try:
                good[i] = [recommender.resolve(r, catalogue) for r in requests]
            except Exception as error:
                answered[i] = error
        try:
            flat = iter(recommender.answer_resolved([*itertools.chain(*good.values())]))
            answered |= {i: [*itertools.islice(flat, len(good[i]))] for i in good}
        except Exception as error:
            if len(good) == 1:
                answered |= dict.fromkeys(good, error)
            else:  # find the culprit
                answered |= {i: self._answer_all([asked[i]])[0] for i in good}
        return [answered[i] for i in range(len(asked))]
