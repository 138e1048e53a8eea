"""Kills at random moments: a run that goes on ends in what an undisturbed one made."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from faults import shop
from faults.campaign import FINE, REPOSITORY, Fault, Outcome
from tiger_jax.stage_table import PIPELINE
from tiger_jax.workdir.lock import LOCK_FILE

# What a process that was asked to end may answer: it died of the signal, or saved
# and said so, or was done.
_ENDS = {signal.SIGKILL: (-9, 0), signal.SIGTERM: (-15, 4, 0)}
_ENDED_BY_ITSELF = 0
# A name that would match others, were it a pattern.
WORK = "lr=[1] *é"


def kill_stage(stage: str, number: int, folder: Path) -> Outcome:
    """Kills a stage up to four times, each of which counts; then lets it end.

    One half of the moments are any of its working time, the other half those right
    before it changes something in its folder.
    """
    whole = shop.whole_run(folder.parent, stage)
    rng, workdir = BY_STAGE[stage].random(number), folder / WORK
    shop.copy_before(stage, whole, workdir)
    said: list[str] = []
    wanted, latest = rng.choice([1, 2, 3, 4]), 1.0
    while len(said) < wanted:
        sent = rng.choice([signal.SIGKILL, signal.SIGTERM])
        moment = rng.uniform(0, latest)
        if rng.random() < 0.5:
            operation = 1 + int(moment * whole.operations[stage])
            running = shop.Stage(stage, workdir, dies_at=(operation, sent))
            what = f"{sent.name} at operation {operation}"
        else:
            running = shop.Stage(stage, workdir)
            running.wait_until(moment * whole.cpu_seconds[stage])
            running.signal(sent)
            what = f"{sent.name} after {moment:.0%}"
        ended = running.end()
        if ended.code not in _ENDS[sent]:
            last = " ".join(ended.output.split()[-40:])
            return Outcome(wrong=1, note=f"{stage}, {said}, {what}: {last}")
        if problems := shop.wrong_folders(workdir, whole):
            return Outcome(lost=1, note=f"{stage}, {said}, {what}: {problems}")
        if ended.code != _ENDED_BY_ITSELF:
            said.append(f"{what}: {ended.code}")
        elif said:
            break  # it had less to do than the first time
        else:  # it was done before its moment came
            latest *= 0.7
            shop.copy_before(stage, whole, workdir)
    if stage != shop.UPDATE or not (workdir / shop.FOLDERS[stage]).exists():
        ended = shop.run_stage(stage, workdir)
        if ended.code:
            return Outcome(lost=1, note=f"{stage}, {said}, then {ended.output[-500:]}")
    if problems := shop.wrong_folders(workdir, whole, made_whole=stage):
        return Outcome(lost=1, note=f"{stage}, {said}, then {problems}")
    left = sorted(str(p) for p in workdir.rglob("*") if _is_left_over(p.name))
    note = f"{stage}, {said}, left {left}" if left else ""
    return Outcome(wrong=int(bool(left)), note=note, count=len(said))


def _is_left_over(name: str) -> bool:
    endings = (".partial", ".old", ".tmp")
    return name.endswith(endings) or "checkpoint-tmp" in name or "chunk_" in name


def kill_command(number: int, folder: Path) -> Outcome:
    """The whole pipeline as a user runs it, killed wherever it is, until it is done."""
    whole, workdir = shop.whole_run(folder.parent), folder / WORK
    rng = COMMAND.random(number)
    shutil.rmtree(workdir, ignore_errors=True)
    command = [sys.executable, str(REPOSITORY / "run.py"), f"--workdir={workdir}"]
    command.append(f"--gin_file={shop.GIN_FILE}")
    # One device, as the undisturbed stages had: more add up in another order.
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    environment["PYTHONIOENCODING"] = rng.choice(["utf-8", "latin-1", "ascii"])
    usual = sum(whole.seconds[stage] for stage in PIPELINE) / 2
    for _ in range(20):
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            _, errors = process.communicate(timeout=rng.uniform(1, usual))
        except subprocess.TimeoutExpired:
            process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
            _, errors = process.communicate()
        if problems := shop.wrong_folders(workdir, whole, made_again=True):
            return Outcome(lost=1, note=str(problems))
        if b"Traceback" in errors or process.returncode not in (-9, -15, 4, 0):
            return Outcome(wrong=1, note=errors.decode(errors="replace")[-500:])
        if process.returncode == 0:
            break
        usual *= 1.3  # so that it ends
    else:
        return Outcome(wrong=1, note="not done after 20 kills")
    problems = shop.wrong_folders(workdir, whole, made_whole="report", made_again=True)
    return Outcome(lost=1, note=str(problems)) if problems else FINE


def two_runs(number: int, folder: Path) -> Outcome:
    """The second run is told which process works here, and since when."""
    del number
    whole = shop.whole_run(folder.parent, "train_recommender")
    workdir = folder / WORK
    shop.copy_before("train_recommender", whole, workdir)
    first = shop.Stage("train_recommender", workdir)
    while not _holder(workdir) and first.is_running():
        time.sleep(0.001)
    second = shop.run_stage("evaluate", workdir)
    holder = _holder(workdir)
    ended = first.end()
    if ended.code or shop.wrong_folders(workdir, whole, made_whole="train_recommender"):
        return Outcome(lost=1, note=f"the first run ended so: {ended.output[-300:]}")
    named = (f"process {first.pid} ", f"started {holder.get('started')}")
    if second.code != 3 or not all(name in second.output for name in named):
        return Outcome(wrong=1, note=f"the second run: {second.output[-300:]}")
    return FINE


def stale_lock(number: int, folder: Path) -> Outcome:
    """What a killed run's lock file says keeps nobody out."""
    whole = shop.whole_run(folder.parent, "assign_semantic_ids")
    rng, workdir = STALE.random(number), folder / WORK
    shop.copy_before("assign_semantic_ids", whole, workdir)
    first = shop.Stage("assign_semantic_ids", workdir)
    while not _holder(workdir) and first.is_running():
        time.sleep(0.001)
    first.signal(signal.SIGKILL)
    first.end()
    if rng.random() < 0.5:  # another process has the dead one's number by now
        text = json.dumps({"process": os.getpid(), "host": "x", "started": "y"})
        (workdir / LOCK_FILE).write_text(text)
    second = shop.run_stage("assign_semantic_ids", workdir)
    if second.code:
        return Outcome(wrong=1, note=f"refused: {second.output[-300:]}")
    problems = shop.wrong_folders(workdir, whole, made_whole="assign_semantic_ids")
    return Outcome(lost=1, note=str(problems)) if problems else FINE


_CHANGED = "packed_histories.PackedConfig.batch_size"


def changed_setting(number: int, folder: Path) -> Outcome:
    """Stopped, tried with another setting, and stopped again: nothing is lost."""
    stage = "train_recommender"
    whole = shop.whole_run(folder.parent, stage)
    rng, workdir = CHANGED.random(number), folder / WORK
    partial, other = workdir / "recommender.partial", f"--gin.{_CHANGED}=4"
    said: list[str] = []

    def kill(*bindings: str) -> tuple[str, str]:
        """Kills a run, unless it is done before; what it said, and what is wrong."""
        sent = rng.choice([signal.SIGKILL, signal.SIGTERM])
        operation = 1 + int(rng.uniform(0.2, 0.9) * whole.operations[stage])
        running = shop.Stage(stage, workdir, *bindings, dies_at=(operation, sent))
        ended = running.end()
        said.append(f"{sent.name} at operation {operation}: {ended.code}")
        return ended.output, "" if ended.code in _ENDS[sent] else ended.output[-300:]

    while not any(partial.glob("checkpoints/checkpoint_*[0-9]")):
        if len(said) == 20:
            return Outcome(wrong=1, note=f"no checkpoint was left: {said}")
        shop.copy_before(stage, whole, workdir)
        if problem := kill()[1]:
            return Outcome(wrong=1, note=f"{said}: {problem}")
    for place, bindings in enumerate([(other,), (), (other,)]):
        output, problem = kill(*bindings)
        if not place and f"{_CHANGED.rpartition('.')[2]} was" not in output:
            problem = f"not told of the change: {output[-300:]}"
        if problem:
            return Outcome(wrong=1, note=f"{said}: {problem}")
    ended = shop.run_stage(stage, workdir)
    if ended.code:
        return Outcome(lost=1, note=f"{said}, then {ended.output[-300:]}")
    problems = shop.wrong_folders(workdir, whole, made_whole=stage)
    return Outcome(lost=1, note=f"{said}, then {problems}") if problems else FINE


def _holder(workdir: Path) -> dict:
    try:
        return json.loads((workdir / LOCK_FILE).read_text())
    except (OSError, ValueError):
        return {}


# The stages that train are hit most.
_TRIES = {
    "train_rqvae": 50,
    "train_recommender": 60,
    "train_sasrec": 20,
    "prepare_data": 30,
    "embed_items": 30,
    "assign_semantic_ids": 30,
}
BY_STAGE = {
    stage: Fault(
        f"kill: {stage}", _TRIES.get(stage, 15), functools.partial(kill_stage, stage)
    )
    for stage in shop.FOLDERS
}
COMMAND = Fault("kill: run.py, every stage", 10, kill_command, seconds=3600)
TWO_RUNS = Fault("kill: two runs in one work directory", 20, two_runs)
STALE = Fault("kill: stale lock of a killed run", 20, stale_lock)
CHANGED = Fault("kill: a setting changed and put back", 20, changed_setting)
FAULTS = [*BY_STAGE.values(), COMMAND, TWO_RUNS, STALE, CHANGED]
