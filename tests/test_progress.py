"""What a run says while it works."""

import json
import os
import subprocess
import sys

import pytest

from tiger_jax import progress
from tiger_jax.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    seconds = {"now": 0.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds["now"])
    return seconds


def test_the_first_estimate_leaves_compilation_out(clock, capsys):
    with Progress(1000, "Training") as bar:
        clock["now"] = 60.0  # compiles
        bar.advance(1)
        clock["now"] = 71.0
        bar.advance(110)
        clock["now"] = 80.0
        bar.advance(889)
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "Training: 1/1,000 steps"
    assert second == "Training: 111/1,000 steps, 10.0 steps/s, 1:29 left"
    assert last == "Training: 1,000/1,000 steps, 50.0 steps/s, 1:20"


def test_a_quick_start_counts(clock, capsys):
    with Progress(20, "Embedding", unit="item") as bar:
        clock["now"] = 1.0
        bar.advance(10)
        clock["now"] = 11.0
        bar.advance(1)
        clock["now"] = 20.0
        bar.advance(9)
    first, last = capsys.readouterr().out.splitlines()
    assert first == "Embedding: 11/20 items, 1.0 items/s, 0:09 left"
    assert last == "Embedding: 20/20 items, 1.0 items/s, 0:20"


def test_slow_work_says_what_each_takes_and_ends_once(clock, capsys):
    with Progress(3, "Compiling", unit="program") as bar:
        for minute in (1, 2, 3):
            clock["now"] = 60.0 * minute
            bar.advance(1)
    _, second, last = capsys.readouterr().out.splitlines()
    assert second == "Compiling: 2/3 programs, 60.0 s each, 1:00 left"
    assert last == "Compiling: 3/3 programs, 60.0 s each, 3:00"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_json_lines_are_json_under_any_encoding(encoding):
    value = {"title": "Crème 😀\x85 \udc80 日"}
    code = f"from tiger_jax.progress import say_json; say_json({value!a})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert json.loads(done.stdout.decode(encoding)) == value


def test_what_is_unbuffered_stays_so_where_readers_are_outlived():
    """As in containers: a process that is ended at once has said all it had to."""
    code = (
        "import os, sys; from tiger_jax.progress import outlive_readers; "
        "outlive_readers(); print('out'); print('err', file=sys.stderr); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-u", "-c", code], capture_output=True)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
