"""Two processes of four CPU devices each, talking over the loopback interface."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run

PROGRAM = Path(__file__).with_name("tiny_run.py")
pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(folder: Path, **settings) -> list[subprocess.Popen]:
    address = f"127.0.0.1:{free_port()}"
    processes = []
    for number in range(2):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "4",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(PROGRAM), str(folder), json.dumps(settings)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def finish_two(processes: list[subprocess.Popen]) -> list[str]:
    outputs = [p.communicate(timeout=300)[0] for p in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


@pytest.mark.parametrize("mesh", [(8, 1), (4, 2), (1, 8)])
def test_two_processes_train_as_one(tmp_path, mesh):
    together, alone = tmp_path / "together", tmp_path / "alone"
    finish_two(start_two(together, mesh=mesh))
    tiny_run.run(alone, mesh=tiny_run.MeshConfig(*mesh))
    losses = [
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (together, alone)
    ]
    ours, theirs = (
        [row["train/loss"] for row in rows if "train/loss" in row] for rows in losses
    )
    assert ours == pytest.approx(theirs, abs=1e-4)


def wait_for_checkpoint(folder: Path) -> None:
    deadline = time.monotonic() + 120
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
    finish_two(start_two(whole, **SLOWLY))
    folder = tmp_path / "preempted"
    processes = start_two(folder, **SLOWLY)
    wait_for_checkpoint(folder)
    for number in who:
        processes[number].send_signal(signal.SIGTERM)
    outputs = [p.communicate(timeout=120)[0] for p in processes]
    assert all("Preempted" in output for output in outputs), outputs
    assert not (folder / "done.json").exists()
    outputs = finish_two(start_two(folder, **SLOWLY))
    assert "resumed at step" in outputs[0]
    assert (folder / "done.json").read_text() == (whole / "done.json").read_text()


def test_one_process_goes_on_with_what_two_began(tmp_path):
    processes = start_two(tmp_path, **SLOWLY)
    wait_for_checkpoint(tmp_path)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.communicate(timeout=120)
    settings = {k: v for k, v in SLOWLY.items() if k != "seconds_per_evaluation"}
    result = tiny_run.run(tmp_path, **settings)
    assert result.step == 100


def test_hosts_with_different_configs_are_told_which(tmp_path):
    script = (
        "import sys; from tiger_jax.training.partitioning import *\n"
        "initialize_distributed()\n"
        "check_hosts_agree(f'seed = {jax.process_index()}')\n"
    )
    address, processes = f"127.0.0.1:{free_port()}", []
    for number in range(2):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(number),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", script],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=tmp_path,
            )
        )
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "process 1 has another config than process 0" in output
