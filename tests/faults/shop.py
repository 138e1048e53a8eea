"""The pipeline on a tiny shop, stage by stage, in processes that can be killed."""

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from faults.campaign import REPOSITORY
from run import STAGES
from tiger_jax import artifacts

GIN_FILE = Path(__file__).with_name("shop.gin")
# In the order of the pipeline: stage and the folder that it writes.
_FOLDER_OF = {stage: folder for folder, stage in artifacts.MADE_BY.items()}
FOLDERS = {stage: _FOLDER_OF[stage] for stage in (*STAGES, "export")}


@dataclasses.dataclass(frozen=True)
class Ended:
    """A stage's process that has ended.

    Attributes:
        code: Its exit code; negative for a signal.
        output: What it said, both streams.
    """

    code: int
    output: str

    @property
    def complaint(self) -> str:
        """What is wrong with how it failed, or "": it must say so in one line."""
        errors = [s for s in self.output.splitlines() if s.startswith("error: ")]
        if "Traceback" in self.output:
            return "a traceback: " + " ".join(self.output.split()[-60:])
        if self.code != 2 or len(errors) != 1:
            return f"exit code {self.code} and {len(errors)} lines of error"
        return ""


class Stage:
    """A run of one stage, or of them all, in a process of its own.

    The processes are forked from one that has imported everything and started
    nothing, so that a try costs a stage's own work and not ten seconds of imports.
    """

    def __init__(
        self,
        stage: str,
        workdir: Path,
        *bindings: str,
        num_devices: int | None = None,
    ) -> None:
        """Starts the stage."""
        # Not on the small disk that a work directory may stand on.
        log = workdir.parents[1] / f"{workdir.parent.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        argv = ["run.py", f"--gin_file={GIN_FILE}", f"--workdir={workdir}"]
        argv += [f"--stage={stage}"] if stage else []
        self._log = log
        self._process = _forks().Process(
            target=_run, args=([*argv, *bindings], log, num_devices)
        )
        self._process.start()
        self.pid = self._process.pid

    def is_running(self) -> bool:
        """Whether it hasn't ended."""
        return self._process.is_alive()

    def signal(self, number: int) -> None:
        """Sends a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self, seconds: float = 1200.0) -> Ended:
        """Waits for it.

        Raises:
            TimeoutError: It doesn't end; it is killed then.
        """
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"a stage has not ended after {seconds:g} s")
        output = self._log.read_text(errors="replace") if self._log.exists() else ""
        return Ended(self._process.exitcode, output)


def run_stage(stage: str, workdir: Path, *bindings: str) -> Ended:
    """Runs a stage to its end, whatever that is."""
    return Stage(stage, workdir, *bindings).end()


@dataclasses.dataclass(frozen=True)
class Whole:
    """What an undisturbed run made, and how long its stages took."""

    workdir: Path
    hashes: dict[str, str]
    seconds: dict[str, float]


@functools.cache
def whole_run(under: Path, until: str = "export") -> Whole:
    """An undisturbed run of the stages up to one, made once in ``UNDER/shop/``.

    Each stage is run twice, and the second time counts: what it compiles is on disk
    then, as it is for the tries. Called again after a kill, it goes on.
    """
    folder = under / "shop"
    facts, workdir = folder / "facts.json", folder / "work"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    folder.mkdir(parents=True, exist_ok=True)
    known = json.loads(facts.read_text()) if facts.exists() else {}
    for stage, name in list(FOLDERS.items())[: list(FOLDERS).index(until) + 1]:
        if stage in known:
            continue
        hashes = set()
        for _ in range(2):
            shutil.rmtree(workdir / name, ignore_errors=True)
            started = time.monotonic()
            ended = run_stage(stage, workdir)
            assert ended.code == 0, ended.output
            seconds = time.monotonic() - started
            hashes.add(artifacts.load_manifest(workdir / name).content_hash)
        assert len(hashes) == 1, f"{stage} made two things of one seed"
        known[stage] = {"hash": hashes.pop(), "seconds": seconds}
        artifacts.write_json(facts, known)
    return Whole(
        workdir,
        {stage: facts["hash"] for stage, facts in known.items()},
        {stage: facts["seconds"] for stage, facts in known.items()},
    )


def copy_before(stage: str, whole: Whole, workdir: Path) -> None:
    """A work directory with the folders of all stages before this one."""
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    for earlier, name in FOLDERS.items():
        if earlier == stage:
            return
        shutil.copytree(whole.workdir / name, workdir / name)


def wrong_folders(workdir: Path, whole: Whole, *, made_whole: str = "") -> list[str]:
    """Which folders aren't what the undisturbed run made; those that there are.

    Args:
        made_whole: A stage whose folder must be there.
    """
    problems = []
    for stage, name in FOLDERS.items():
        if not (workdir / name).exists() and stage != made_whole:
            continue
        try:
            found = artifacts.load_manifest(workdir / name).content_hash
        except Exception as error:
            problems.append(f"{name}: {error}")
            continue
        if found != whole.hashes[stage]:
            problems.append(f"{name} has other content")
    return problems


@functools.cache
def _forks() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    stages = [f"tiger_jax.stages.{stage}" for stage in FOLDERS]
    context.set_forkserver_preload(["run", "gin", *stages])
    return context


def _run(argv: list[str], log: Path, num_devices: int | None) -> None:
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if num_devices is not None:  # the variable was read when jax was imported
        import jax

        jax.config.update("jax_num_cpu_devices", num_devices)
    os.chdir(REPOSITORY)
    sys.path.insert(0, str(REPOSITORY))
    import run

    sys.argv = argv
    sys.exit(run.main(argv))


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes at `folder`, while the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        _call("umount", "-l", str(folder))


def remount(folder: Path, options: str) -> None:
    """Changes a mounted file system: its size, or whether it can be written."""
    _call("mount", "-o", f"remount,{options}", str(folder))


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@functools.cache
def why_no_mounts() -> str:
    """Why file systems can't be mounted here, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", 1 << 20):
                return ""
        except (OSError, subprocess.SubprocessError):
            return "it mounts a small file system, and this process may not mount any"
