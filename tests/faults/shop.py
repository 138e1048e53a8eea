"""The pipeline on a tiny shop, stage by stage, in processes that can be killed."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax._src import xla_bridge

from faults.campaign import REPOSITORY
from tiger_jax.stage_table import PIPELINE, STAGES
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import write_json

GIN_FILE = Path(__file__).with_name("shop.gin")
UPDATE = "update_catalogue"
# Stages with a folder of their own, each after those that it reads. What a whole run
# leaves out comes last: `evaluate` and `report` would otherwise show it.
_WRITES = {
    name: stage.writes
    for name, stage in STAGES.items()
    if stage.writes and name != "compare"  # reads other runs, not this one
}
_WRITES[UPDATE] += "/version_000001"
ON_REQUEST = tuple(name for name in _WRITES if name not in PIPELINE)
FOLDERS = {name: _WRITES[name] for name in (*PIPELINE, *ON_REQUEST)}
_NEW_ITEMS = Path(__file__).with_name("new_items.csv")
# Its page says how long each stage took, so that it is another one where a stage
# was run again.
SHOWS_TIMES = "report"
# What a stage is told besides its gin file.
_BINDINGS = {UPDATE: (f"--gin.update_catalogue.add={str(_NEW_ITEMS)!r}",)}


@dataclasses.dataclass(frozen=True)
class Ended:
    """A stage's process that has ended.

    Attributes:
        code: Its exit code; negative for a signal.
        output: What it said, both streams.
        operations: How often it changed something in the work directory, as far as
            Python did it; 0 if it was killed.
        cpu_seconds: The time that it worked; 0 if it was killed.
    """

    code: int
    output: str
    operations: int = 0
    cpu_seconds: float = 0.0

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
    nothing, so that a try costs a stage's own work and not ten seconds of imports:
    from this one, where it has not used JAX.

    Attributes:
        pid: Its process.
    """

    def __init__(
        self,
        stage: str,
        workdir: Path,
        *bindings: str,
        num_devices: int = 1,
        dies_at: tuple[int, int] | None = None,
    ) -> None:
        """Starts the stage.

        Args:
            num_devices: Of the CPU.
            dies_at: Number of an operation in the work directory and of a signal,
                which it sends itself in the moment before that operation.
        """
        # Not on the small disk that a work directory may stand on.
        log = workdir.parents[1] / f"{workdir.parent.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        argv = ["run.py", f"--gin_file={GIN_FILE}", f"--workdir={workdir}"]
        argv += [f"--stage={stage}"] if stage else []
        argv += [*_BINDINGS.get(stage, ()), *bindings]
        self._log = log
        self._process = _forks().Process(
            target=_run, args=(argv, workdir, log, num_devices, dies_at)
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
        output, mark, counts = output.partition(_COUNTS)
        return Ended(
            self._process.exitcode, output, *(json.loads(counts) if mark else ())
        )

    def wait_until(self, cpu_seconds: float) -> None:
        """Waits until the process has worked for so long, or has ended.

        Of its own time, which other work on the machine doesn't stretch.
        """
        while self.is_running() and _cpu_seconds(self.pid) < cpu_seconds:
            time.sleep(0.002)


def run_stage(stage: str, workdir: Path, *bindings: str) -> Ended:
    """Runs a stage to its end, whatever that is."""
    return Stage(stage, workdir, *bindings).end()


@dataclasses.dataclass(frozen=True)
class Whole:
    """What an undisturbed run made, and what its stages took, by stage.

    Attributes:
        seconds: Of wall-clock time.
        cpu_seconds: Of work.
        operations: In the work directory.
    """

    workdir: Path
    hashes: dict[str, str]
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    operations: dict[str, int]


@functools.cache
def whole_run(under: Path, until: str = UPDATE) -> Whole:
    """An undisturbed run of the stages up to one, made once in ``UNDER/shop/CODE/``.

    Each stage is run twice, and the second time counts: what it compiles is on disk
    then, as it is for the tries. Called again after a kill, it goes on; where the code
    is another by now, it begins anew.
    """
    folder = under / "shop" / _code()
    facts, workdir = folder / "facts.json", folder / "work"
    share_compiled(under)
    folder.mkdir(parents=True, exist_ok=True)
    known = json.loads(facts.read_text()) if facts.exists() else {}
    for stage, name in list(FOLDERS.items())[: list(FOLDERS).index(until) + 1]:
        if stage in known:
            continue
        hashes = set()
        for _ in range(2):
            shutil.rmtree(workdir / name, ignore_errors=True)
            shutil.rmtree(workdir / f"{name}.partial", ignore_errors=True)
            started = time.monotonic()
            ended = run_stage(stage, workdir)
            assert ended.code == 0, ended.output
            seconds = time.monotonic() - started
            hashes.add(artifacts.load_manifest(workdir / name).content_hash)
        assert len(hashes) == 1, f"{stage} made two things of one seed"
        known[stage] = {
            "hashes": hashes.pop(),
            "seconds": seconds,
            "cpu_seconds": ended.cpu_seconds,
            "operations": ended.operations,
        }
        write_json(facts, known)
    names = [field.name for field in dataclasses.fields(Whole)][1:]
    by_name = [{stage: about[n] for stage, about in known.items()} for n in names]
    return Whole(workdir, *by_name)


@functools.cache
def _code() -> str:
    """Names the code and the settings that a run is made by, as this process began."""
    digest = hashlib.sha256()
    for pattern in ("tiger_jax/**/*.py", "gin_configs/**/*.gin"):
        for path in sorted(REPOSITORY.glob(pattern)):
            digest.update(path.read_bytes())
    digest.update(GIN_FILE.read_bytes())
    return digest.hexdigest()[:12]


def share_compiled(under: Path) -> None:
    """Has processes started from here on share what they compile, on disk."""
    COMPILED["jax_compilation_cache_dir"] = str(under / "compiled")
    COMPILED["jax_persistent_cache_min_compile_time_secs"] = 0
    COMPILED["jax_persistent_cache_min_entry_size_bytes"] = -1
    for name, value in COMPILED.items():
        os.environ[name.upper()] = str(value)


# Options of jax, for processes that have imported it already.
COMPILED: dict[str, Any] = {}


def copy_before(stage: str, whole: Whole, workdir: Path) -> None:
    """A work directory with the folders of all stages before this one."""
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    for earlier, name in FOLDERS.items():
        if earlier == stage:
            return
        shutil.copytree(whole.workdir / name, workdir / name)


def wrong_folders(
    workdir: Path, whole: Whole, *, made_whole: str = "", made_again: bool = False
) -> list[str]:
    """Which folders aren't what the undisturbed run made; those that there are.

    Args:
        made_whole: A stage whose folder must be there.
        made_again: Stages before it were run again.
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
        is_another = made_again and stage == SHOWS_TIMES
        if found != whole.hashes[stage] and not is_another:
            problems.append(f"{name} has other content")
    return problems


def _forks() -> Any:
    """Processes forked from this one, or from a server where JAX has threads here."""
    modules = ["tiger_jax.cli", "gin", *_IMPORTED_LATE]
    modules += [f"tiger_jax.stages.{stage}" for stage in FOLDERS]
    if xla_bridge.backends_are_initialized():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(modules)
        return context
    for module in modules:
        importlib.import_module(module)
    return multiprocessing.get_context("fork")


# What the stages import only when they need it.
_IMPORTED_LATE = (
    "jaxlib.mlir.dialects.sdy",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "orbax.checkpoint",
    "pyarrow.parquet",
    "sklearn.cluster",
    "sklearn.decomposition",
    "sklearn.feature_extraction.text",
    "sklearn.preprocessing",
    "tiger_jax.recommending.recommender",
)
_COUNTS = "\n--- operations and CPU seconds: "
_CHANGES = {
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link"),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _run(
    argv: list[str],
    workdir: Path,
    log: Path,
    num_devices: int,
    dies_at: tuple[int, int] | None,
) -> None:
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name, value in COMPILED.items():  # the variables were read at import
        jax.config.update(name, value)
    jax.config.update("jax_num_cpu_devices", num_devices)
    os.chdir(REPOSITORY)
    sys.path.insert(0, str(REPOSITORY))
    from tiger_jax import cli

    sys.argv = argv
    made = itertools.count(1)
    _at_each_change(workdir, lambda: _die(next(made), dies_at))
    began = time.process_time()  # the imports were the server's
    code = cli.main(argv)
    counts = [next(made) - 1, time.process_time() - began]
    sys.stdout.flush()
    os.write(1, f"{_COUNTS}{json.dumps(counts)}".encode())
    sys.exit(code)


def _die(operation: int, dies_at: tuple[int, int] | None) -> None:
    if dies_at is not None and operation == dies_at[0]:
        os.kill(os.getpid(), dies_at[1])


def _at_each_change(folder: Path, call: Callable[[], None]) -> None:
    """Calls before this process changes anything in a folder, for its lifetime."""
    inside = f"{folder}/"

    def look(event: str, arguments: tuple) -> None:
        if event == "open":
            is_change = isinstance(arguments[2], int) and arguments[2] & _WRITES
        else:
            is_change = event in _CHANGES
        # Relative ones are those of `shutil.rmtree`.
        if is_change and isinstance(path := arguments[0], str | os.PathLike):
            name = os.fspath(path)
            if isinstance(name, str) and (name.startswith(inside) or name[:1] != "/"):
                call()

    sys.addaudithook(look)


def _cpu_seconds(pid: int) -> float:
    """What a process has worked so far; without end if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.inf
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
