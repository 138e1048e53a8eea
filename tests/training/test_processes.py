"""Several processes of some CPU devices each, talking over the loopback interface."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run
from trained_workdir import make_trained_workdir

from tiger_jax.workdir import artifacts
from tiger_jax.workdir.lock import hold_workdir

PROGRAM = Path(__file__).with_name("tiny_run.py")
TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    folder: Path, number: int = 2, devices: int = 4, **settings
) -> list[subprocess.Popen]:
    """Starts the processes of a run, each with some devices of its own."""
    command = [sys.executable, str(PROGRAM), str(folder), json.dumps(settings)]
    return start_all(command, number, devices)


def start_all(command: list[str], number: int, devices: int) -> list[subprocess.Popen]:
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(number),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return [
        subprocess.Popen(
            command,
            env={**environment, "JAX_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(number)
    ]


def finish(processes: list[subprocess.Popen], code: int = 0) -> list[str]:
    outputs = [p.communicate(timeout=600)[0] for p in processes]
    ended = [process.returncode for process in processes]
    assert ended == [code] * len(ended), "\n".join(outputs)
    return outputs


@pytest.mark.parametrize("mesh", [(8, 1), (4, 2), (1, 8)])
def test_two_processes_train_as_one(tmp_path, mesh):
    together, alone = tmp_path / "together", tmp_path / "alone"
    finish(start(together, mesh=mesh))
    tiny_run.run(alone, mesh=tiny_run.MeshConfig(*mesh))
    assert losses_of(together) == pytest.approx(losses_of(alone), abs=1e-4)


def losses_of(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def wait_for_checkpoint(folder: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not list((folder / "checkpoints").glob("checkpoint_*[0-9]")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


SLOWLY = {
    "total_steps": 100,
    "log_every": 5,
    "evaluate_every": 5,
    "checkpoint_every": 5,
    "seconds_per_evaluation": 0.3,
}


@pytest.mark.parametrize("who", [[0, 1], [1]], ids=["both", "one"])
def test_preempted_processes_save_one_step_together_and_resume(tmp_path, who):
    whole = tmp_path / "whole"
    finish(start(whole, **SLOWLY))
    folder = tmp_path / "preempted"
    processes = start(folder, **SLOWLY)
    wait_for_checkpoint(folder)
    for number in who:
        processes[number].send_signal(signal.SIGTERM)
    outputs = finish(processes, code=4)
    assert all("Preempted" in output for output in outputs), outputs
    assert not (folder / "done.json").exists()
    outputs = finish(start(folder, **SLOWLY))
    assert "resumed at step" in outputs[0]
    assert (folder / "done.json").read_text() == (whole / "done.json").read_text()


def test_one_process_goes_on_with_what_two_began(tmp_path):
    processes = start(tmp_path, **SLOWLY)
    wait_for_checkpoint(tmp_path)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    finish(processes, code=4)
    settings = {k: v for k, v in SLOWLY.items() if k != "seconds_per_evaluation"}
    result = tiny_run.run(tmp_path, **settings)
    assert result.step == 100


def rows_of(folder: Path) -> list[tuple]:
    """What the devices of all processes were given, by whom no matter."""
    files = sorted(folder.glob("rows.*.json"))
    return sorted(tuple(row) for f in files for row in json.loads(f.read_text()))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", ["tiger", "two_level"])
def test_four_are_preempted_and_two_go_on_with_another_mesh(model, tmp_path):
    """Every example of every update is on one device of one process."""
    settings = {"model": model, "rows": True, "total_steps": 40, "evaluate_every": 4}
    settings["log_every"] = 1
    whole, folder = tmp_path / "whole", tmp_path / "preempted"
    finish(start(whole, 1, 8, mesh=(8, 1), **settings))
    processes = start(folder, 4, 2, mesh=(8, 1), seconds_per_evaluation=1, **settings)
    wait_for_checkpoint(folder, seconds=600)
    processes[2].send_signal(signal.SIGTERM)
    outputs = finish(processes, code=4)
    assert all("Preempted" in output for output in outputs), outputs
    assert not (folder / "done.json").exists()
    assert len(list(folder.glob("rows.*.json"))) == 4
    rows = rows_of(folder)
    outputs = finish(start(folder, 2, 4, mesh=(4, 2), **settings))
    assert all("resumed at step" in output for output in outputs)
    for process in (2, 3):
        (folder / f"rows.{process}.json").unlink()
    assert sorted(rows + rows_of(folder)) == rows_of(whole)
    assert losses_of(folder) == pytest.approx(losses_of(whole), abs=1e-4)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("victim", [0, 2], ids=["the first", "another"])
def test_who_loses_a_process_ends_in_one_line(victim, tmp_path):
    """Killed as a machine is that fails; docs/gpu_clusters.md states the time."""
    slowly = {**SLOWLY, "total_steps": 10_000}
    processes = start(tmp_path, 4, 1, **slowly)
    wait_for_checkpoint(tmp_path, seconds=600)
    processes[victim].kill()
    started = time.monotonic()
    others = [p for n, p in enumerate(processes) if n != victim]
    for output in finish(others, code=4):
        *said, last = output.splitlines()
        assert last.startswith(f"error: process {victim} of this run is gone")
        assert not any(re.match("error|Traceback|[EF][0-9]{4} ", s) for s in said), said
    assert time.monotonic() - started < 90


@pytest.mark.timeout(1800)
def test_two_processes_of_the_command_line_share_a_workdir(tmp_path):
    workdir = make_trained_workdir(tmp_path / "run", with_quantizer=True)
    shutil.rmtree(workdir / "recommender")
    command = [sys.executable, str(TESTS.parent / "run.py"), f"--workdir={workdir}"]
    command.append(f"--gin_file={TESTS / 'faults' / 'shop.gin'}")
    train = [*command, "--stage=train_recommender"]
    outputs = finish(start_all(train, 2, 2))
    assert all("step 20: validation" in output for output in outputs)
    manifest = artifacts.load_manifest(workdir / "recommender", verify=True)
    assert manifest.summary["steps"] == 20
    outputs = finish(start_all([*command, "--stage=report"], 2, 1), code=2)
    for output in outputs:
        error = output.splitlines()[-1]
        assert error.startswith("error: --stage=report is for one process")
    # Who holds the work directory is found by the first, and ends the others.
    with hold_workdir(workdir):
        first, second = start_all(train, 2, 2)
        output, _ = first.communicate(timeout=600)
        assert (first.returncode, "is in use by process" in output) == (3, True)
        output, _ = second.communicate(timeout=600)
        assert second.returncode == 4
        assert output.splitlines()[-1].startswith(
            "error: process 0 of this run is gone"
        )


def test_hosts_with_different_configs_are_told_which():
    script = (
        "import sys; from tiger_jax.training.partitioning import *\n"
        "initialize_distributed()\n"
        "check_hosts_agree(f'seed = {jax.process_index()}')\n"
    )
    processes = start_all([sys.executable, "-c", script], 2, 1)
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "process 1 has another config than process 0" in output
