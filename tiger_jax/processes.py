"""A process of a run of several: how it ends when it, or another of them, fails.

Where another process dies, JAX's runtime ends this one from a thread of its own, by
`abort` and with pages about its own calls, or the next exchange raises whatever its
transport says. So the program runs in a child, and its parent says in one line what
became of the run.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

SECONDS = 60
"""After so long without a sign of life, a process counts as dead."""
_IS_CHILD = "TIGER_IS_CHILD"
_SECONDS_TO_FAIL_TOGETHER = 10
_FATAL = re.compile(rb"F\d{4} \d\d:\d\d:")
_KILL_ME_WITH_MY_PARENT = 1  # Linux's PR_SET_PDEATHSIG


def are_several() -> bool:
    """Whether the environment asks for a run of several processes."""
    is_automatic = os.environ.get("TIGER_DISTRIBUTED", "") not in ("", "0")
    return is_automatic or bool(os.environ.get("JAX_COORDINATOR_ADDRESS"))


def run(program: Callable[[], int]) -> int:
    """Runs a program, in a child if it is of a run of several; its exit code."""
    if not are_several():
        return program()
    if not os.environ.get(_IS_CHILD):
        return _watch_child()
    code = 1
    try:
        code = program()
    except Exception:
        # The transport of an exchange may have missed another process before the
        # runtime does, which ends this one.
        time.sleep(SECONDS + 10)
        sys.excepthook(*sys.exc_info())
    if code:
        _leave(code)
    return code


def _leave(code: int) -> None:
    """Ends this process, after the others had a moment to fail as it did."""
    from jax._src import distributed

    sys.stdout.flush()
    sys.stderr.flush()
    joined = distributed.global_state
    if joined.client is not None:
        with contextlib.suppress(Exception):
            joined.client.wait_at_barrier("failed", 1000 * _SECONDS_TO_FAIL_TOGETHER)
        if joined.process_id == 0:  # the others can't end in peace without it
            time.sleep(1)
    # Python's own end would wait for the others to end as well.
    os._exit(code)


def _watch_child() -> int:
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, _IS_CHILD: "1"},
        stderr=subprocess.PIPE,
        preexec_fn=_end_with_parent,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    assert child.stderr is not None
    last_words = b""
    for line in child.stderr:
        if last_words or _FATAL.match(line):
            last_words += line
        else:
            sys.stderr.buffer.write(line)
            sys.stderr.flush()
    code = child.wait()
    if b"JAX distributed service" in last_words:
        print(
            f"error: {_who_is_gone(last_words)}: start all processes again by the same "
            "command, which goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 4
    sys.stderr.buffer.write(last_words)
    return code if code >= 0 else 128 - code


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_KILL_ME_WITH_MY_PARENT, signal.SIGKILL)


def _who_is_gone(last_words: bytes) -> str:
    found = re.search(rb"stopped sending heartbeats\):\s*((\d+\s+)+)", last_words)
    if not found and b"leader task" not in last_words:
        return "another process of this run has failed, as it says itself"
    numbers = ", ".join(found[1].decode().split()) if found else "0"
    return f"process {numbers} of this run is gone (it says why, unless it was killed)"
