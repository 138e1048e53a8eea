"""Several processes behind one listener, each with a bundle of its own in memory.

The first process only watches: it starts the others by its own command line, starts
again who dies, and exchanges one after the other on SIGHUP, so that a new bundle is
served without a refused request. What one worker changes of the catalogue, the others
take over from disk (`Service.reload`); what they count is added up.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from tiger_jax.errors import InputError, UserFacingError
from tiger_jax.progress import say
from tiger_jax.serving.metrics import FOLDER_VARIABLE

LISTENER_VARIABLE, READY_VARIABLE = "TIGER_SERVE_LISTENER", "TIGER_SERVE_READY"
_PARENT_VARIABLE = "TIGER_SERVE_PARENT"
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
_STOPS = {signal.SIGTERM, signal.SIGINT}
Listeners = Sequence[socket.socket]
_MAX_DEATHS = 3  # of workers that never were ready, in a row


def inherited_listeners() -> list[socket.socket]:
    """The listeners, in a worker; none in a process that has no parent of this kind."""
    numbers = os.environ.get(LISTENER_VARIABLE, "").split()
    return [socket.socket(fileno=int(number)) for number in numbers]


def tell_parent_ready() -> None:
    """Says to the first process that this one answers."""
    if number := os.environ.get(READY_VARIABLE):
        os.write(int(number), b"!")


def is_orphan() -> bool:
    """Whether the first process is gone, so that nobody would end this one."""
    parent = os.environ.get(_PARENT_VARIABLE)
    return parent is not None and os.getppid() != int(parent)


class Worker:
    """One process that serves."""

    def __init__(self, listeners: Listeners, number: int, count: int) -> None:
        self.number, (self.ready, ready) = number, os.pipe()
        os.set_blocking(self.ready, False)
        inherited = [listener.fileno() for listener in listeners]
        environment = {
            LISTENER_VARIABLE: " ".join(map(str, inherited)),
            READY_VARIABLE: str(ready),
            _PARENT_VARIABLE: str(os.getpid()),
            **_device_of(number, count),
        }
        self.process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env=os.environ | environment,
            pass_fds=(*inherited, ready),
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS),
        )
        os.close(ready)
        _share_cores(self.process.pid, number, count)
        self.is_ready = False

    def look(self) -> bool:
        """Whether it is ready."""
        try:
            self.is_ready |= os.read(self.ready, 1) == b"!"
        except BlockingIOError:
            pass
        return self.is_ready

    def end(self, number: signal.Signals) -> int:
        """Asks it to end, and waits."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait()
        if self.ready >= 0:
            os.close(self.ready)
            self.ready = -1
        mark_process_dead(self.process.pid, os.environ[FOLDER_VARIABLE])
        return code


def supervise(listeners: Listeners, count: int) -> None:
    """Serves by `count` workers until SIGINT or SIGTERM.

    Raises:
        InputError: There are fewer accelerators than workers.
        UserFacingError: Workers end again and again before they are ready.
    """
    _device_of(count - 1, count)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    with tempfile.TemporaryDirectory(prefix="tiger_serve_") as folder:
        os.environ[FOLDER_VARIABLE] = folder
        workers = [Worker(listeners, n, count) for n in range(count)]
        leaving: list[Worker] = []
        try:
            _watch(workers, leaving, listeners)
        finally:
            workers += leaving
            for worker in workers:
                if worker.process.poll() is None:
                    worker.process.send_signal(signal.SIGTERM)
            for worker in workers:
                worker.end(signal.SIGTERM)
    say("serve: stopped, with all workers")


def _watch(workers: list[Worker], leaving: list[Worker], listeners: Listeners) -> None:
    deaths, exchanges = 0, list[int]()
    while True:
        info = signal.sigtimedwait(_SIGNALS, 0.5)
        if info is not None and info.si_signo in _STOPS:
            return
        if info is not None and info.si_signo == signal.SIGHUP:
            exchanges = exchanges[: len(leaving)] + list(range(len(workers)))
            say("serve: exchanging the workers, one after the other")
        for place, worker in enumerate(workers):
            if worker.look():
                deaths = 0
            if worker.process.poll() is None:
                continue
            code = worker.end(signal.SIGTERM)
            deaths += not worker.is_ready
            say(f"serve: worker {worker.number} ended with {code}: starting it again")
            if deaths >= _MAX_DEATHS:
                raise UserFacingError(
                    f"{deaths} workers in a row ended before they were ready; their "
                    "own messages are above"
                )
            time.sleep(min(deaths, 5))
            workers[place] = Worker(listeners, worker.number, len(workers))
        if leaving and workers[exchanges[0]].is_ready:
            leaving.pop().end(signal.SIGUSR1)
            exchanges.pop(0)
        elif exchanges and not leaving:
            place = exchanges[0]
            leaving.append(workers[place])
            workers[place] = Worker(listeners, place, len(workers))


def _device_of(number: int, count: int) -> dict[str, str]:
    """What shows a worker its own accelerator; nothing on a CPU."""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return {}
    cards = [p.name for p in Path("/dev").glob("nvidia*")]
    cards = sorted(n[6:] for n in cards if re.fullmatch(r"nvidia\d+", n))
    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        cards = given.split(",")
    if cards and count > len(cards):
        raise InputError(
            f"serve.workers is {count}, and there are {len(cards)} accelerators: each "
            "worker needs one of its own"
        )
    return {"CUDA_VISIBLE_DEVICES": cards[number]} if cards else {}


def _share_cores(process: int, number: int, count: int) -> None:
    """Gives a worker its part of the cores, where there are enough."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= count:
        os.sched_setaffinity(process, cores[number::count])
