import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_workdir import make_workdir

PROGRAM = Path(__file__).with_name("tiny_run.py")


def start(folder: Path, **settings) -> subprocess.Popen:
    # Slow enough to be hit everywhere: an update a few milliseconds, an evaluation
    # and a checkpoint every few updates.
    settings = {
        "total_steps": 60,
        "log_every": 2,
        "evaluate_every": 6,
        "checkpoint_every": 3,
        "seconds_per_evaluation": 0.05,
        **settings,
    }
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{PROGRAM.parents[2]}:{os.environ.get('PYTHONPATH', '')}",
    }
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), json.dumps(settings)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, folder: Path) -> dict:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return json.loads((folder / "done.json").read_text())


def checkpoints(folder: Path) -> list[str]:
    root = folder / "checkpoints"
    return sorted(p.name for p in root.iterdir()) if root.exists() else []


def kill_after_progress(folder: Path, seconds: float, **settings) -> bool:
    """Kills a run some time after it started working; False if it had ended."""
    process = start(folder, **settings)
    before, deadline = checkpoints(folder), time.monotonic() + 900
    while checkpoints(folder) == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(seconds)
    was_running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return was_running


def check_kills(tmp_path: Path, num_kills: int, seed: int, **settings) -> None:
    whole = finish(start(tmp_path / "whole", **settings), tmp_path / "whole")
    rng, kills, runs, folder = random.Random(seed), 0, 0, tmp_path / "run-0"
    while kills < num_kills:
        if kill_after_progress(folder, rng.uniform(0, 0.8), **settings):
            kills += 1
        else:  # it ended first: check it, and go on with a fresh one
            assert finish(start(folder, **settings), folder) == whole
            runs += 1
            folder = tmp_path / f"run-{runs}"
    assert finish(start(folder, **settings), folder) == whole
    print(f"{kills} kills over {runs + 1} runs, each ended as {whole}")


def test_a_killed_run_ends_in_the_same_bits(tmp_path):
    check_kills(tmp_path, num_kills=1, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("input", ["resident", "seqio"])
def test_twenty_kills_leave_the_bits_as_they_are(tmp_path, input):
    settings = {}
    if input == "seqio":
        settings["seqio"] = str(make_workdir(tmp_path / "shop" / "work"))
    check_kills(tmp_path, num_kills=20, seed=1, **settings)
