"""What a run says while it works."""

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
