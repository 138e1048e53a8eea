"""Runs TIGER: every stage of the pipeline, or one.

    python run.py                                   the demo, on a generated shop
    python run.py --data_dir=my_shop --workdir=runs/my_shop
    python run.py --stage=evaluate --workdir=runs/my_shop
    python run.py --gin_file=experiments/cpu_quick.gin --gin.train_recommender.seed=1

Each stage reads and writes folders under --workdir, is skipped when its folder is
up to date, and goes on where it stopped when it was interrupted. What a stage does
is decided by gin: files named by --gin_file (a path, or relative to gin_configs/),
then single bindings --gin.NAME=VALUE, the last of which win. Lines of bindings in
the variable TIGER_GIN win over both.

Exit codes: 0 done, 1 a fault of this program, 2 bad input or usage, 3 the work
directory is in use, 4 stopped by a signal after saving (the same command resumes).
"""

import contextlib
import importlib
import logging
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STAGES = (
    "prepare_data",
    "embed_items",
    "train_rqvae",
    "assign_semantic_ids",
    "train_recommender",
    "evaluate",
    "report",
)
# Stages that a run of the whole pipeline leaves out: they answer a request.
COMPARISONS = ("train_sasrec", "list_candidates", "fuse")
ON_REQUEST = (
    *COMPARISONS,
    "recommend",
    "export",
    "serve",
    "update_catalogue",
    "export_t5",
    "export_recbole",
)
GIN_CONFIGS = Path(__file__).resolve().parent / "gin_configs"
DEMO_GIN, OWN_DATA_GIN = "demo.gin", "experiments/own_data.gin"

# glibc gives XLA's large buffers back to the kernel after each use and faults them
# in again page by page. Huge pages and a high trim threshold avoid that; training
# on CPU runs 1.3 to 1.8 times faster. Read once, at process start: hence the exec.
ALLOCATOR_SETTINGS = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:"
    "glibc.malloc.trim_threshold=17179869184"
)


def main(argv: Sequence[str]) -> int:
    """Parses the command line and runs the stages it asks for.

    Returns:
        The exit code.
    """
    from tiger_jax.errors import UserFacingError, storage_problem

    try:
        return _run(argv)
    except UserFacingError as error:
        # Gin adds lines about the call to a message that passes through it.
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped: the same command resumes", file=sys.stderr)
        return 4
    except Exception as error:
        problem = storage_problem(error)
        if problem is None:
            raise
        print(
            f"error: {problem}: see to the disk, its space and its rights; what is "
            "finished is whole, and the same command goes on",
            file=sys.stderr,
        )
        return 2


def _run(argv: Sequence[str]) -> int:
    from absl import flags

    gin_bindings, argv = _take_gin_bindings(argv)
    _define_flags(flags)
    if {"--help", "-help", "-h"} & set(argv[1:]):
        listed = flags.FLAGS.module_help(__name__).split("\n", 2)[-1]
        print(f"{__doc__}\nFlags:\n{listed}")
        return 0
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        raise _usage_error(str(error)) from error
    if len(rest) > 1:
        raise _usage_error(f"unexpected argument {rest[1]!r}")
    stages = _choose_stages(flags.FLAGS.stage)
    context = _build_context(flags.FLAGS)
    _start_distributed()
    gin_bindings += os.environ.get("TIGER_GIN", "").splitlines()
    if set(stages) <= {*STAGES, *COMPARISONS}:
        _take_cpu_cores()
    _parse_gin(flags.FLAGS.gin_file, gin_bindings, context.data_dir is not None)

    from tiger_jax.progress import say
    from tiger_jax.workdir.lock import hold_workdir

    # A server reads its bundle once, and versions of the catalogue have a lock of
    # their own: stages can run beside it.
    is_server = stages == ("serve",)
    with contextlib.nullcontext() if is_server else hold_workdir(context.workdir):
        for stage in stages:
            # Imported one by one, so that training never pays for torch.
            module = importlib.import_module(f"tiger_jax.stages.{stage}")
            getattr(module, stage)(context)
        _warn_of_unused_bindings(stages)
    if "report" in stages and len(stages) > 1:
        say(f"done: open {context.workdir / 'report' / 'index.html'}")
    return 0


def _define_flags(flags: Any) -> None:
    if "stage" in flags.FLAGS:  # a second run in one process, as in tests
        flags.FLAGS.unparse_flags()
        for name in ("stage", "workdir", "data_dir", "embeddings", "gin_file"):
            flags.FLAGS[name].unparse()
        return
    flags.DEFINE_string(
        "stage",
        "",
        f"One of {', '.join(STAGES + ON_REQUEST)}, or several, in this order, with "
        "commas between; empty: all.",
    )
    flags.DEFINE_string("workdir", "runs/demo", "Where the stages write.")
    flags.DEFINE_string(
        "data_dir",
        "",
        "A folder with a shop's items and interactions (CSV, JSONL, Parquet, RecBole "
        "or MovieLens); empty: a generated shop.",
    )
    flags.DEFINE_string(
        "embeddings", "", "Ready-made item embeddings (.npy), in items-file order."
    )
    flags.DEFINE_multi_string(
        "gin_file",
        [],
        f"A gin file; repeatable. Default: {DEMO_GIN}, or {OWN_DATA_GIN} with "
        "--data_dir.",
    )


def _take_gin_bindings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits off --gin.NAME=VALUE, which absl has no flags for."""
    bindings, rest = [], []
    for argument in argv:
        match = re.fullmatch(r"--?gin\.([^=]+)=(.*)", argument, re.DOTALL)
        if match:
            bindings.append(f"{match[1]} = {match[2]}")
        elif re.match(r"--?gin\.", argument):
            raise _usage_error(f"{argument!r} must read --gin.NAME=VALUE")
        else:
            rest.append(argument)
    return bindings, rest


def _choose_stages(stage: str) -> tuple[str, ...]:
    if not stage:
        return STAGES
    chosen = tuple(stage.split(","))
    for name in chosen:
        if name not in STAGES + ON_REQUEST:
            known = ", ".join(STAGES + ON_REQUEST)
            raise _usage_error(f"there is no stage {name!r}; choose from {known}")
    return chosen


def _build_context(values: Any) -> Any:
    from tiger_jax.stages.context import RunContext

    data_dir, embeddings = (
        Path(v).expanduser() if v else None
        for v in (values.data_dir, values.embeddings)
    )
    if data_dir is not None and not data_dir.is_dir():
        raise _usage_error(f"--data_dir={data_dir} is not a folder")
    if embeddings is not None and not embeddings.is_file():
        raise _usage_error(f"--embeddings={embeddings} is not a file")
    workdir = Path(values.workdir).expanduser()
    if workdir.exists() and not workdir.is_dir():
        raise _usage_error(f"--workdir={workdir} is not a folder")
    return RunContext(workdir=workdir, data_dir=data_dir, embeddings=embeddings)


def _start_distributed() -> None:
    """Joins the other hosts, if any, before a device is touched."""
    from tiger_jax.training.partitioning import initialize_distributed

    initialize_distributed()


def _take_cpu_cores() -> None:
    """Makes a device of each CPU core, among which training deals out its work."""
    from tiger_jax.training.partitioning import use_cpu_cores

    use_cpu_cores()


def _parse_gin(files: Sequence[str], bindings: Sequence[str], own_data: bool) -> None:
    import gin

    files = list(files) or [OWN_DATA_GIN if own_data else DEMO_GIN]
    gin.clear_config()
    gin.add_config_file_search_path(str(GIN_CONFIGS))
    for name in files:
        if not (Path(name).is_file() or (GIN_CONFIGS / name).is_file()):
            raise _usage_error(
                f"--gin_file={name} is neither a file nor in {GIN_CONFIGS}"
            )
    try:
        # Gin logs an error for every search path that doesn't hold a file.
        logging.disable(logging.ERROR)
        gin.parse_config_files_and_bindings(files, list(bindings))
    except Exception as error:  # what it imports and its tokenizer raise anything
        message = " ".join(str(error).split()) or type(error).__name__
        if len(message) > 400:  # gin lists all that it knows
            message = message[:400] + "…"
        raise _usage_error(f"gin: {message}") from error
    finally:
        logging.disable(logging.NOTSET)


def _warn_of_unused_bindings(stages: Sequence[str]) -> None:
    """Says which bindings no stage has read, when every stage has run."""
    import gin

    from tiger_jax.progress import say

    if len(stages) == 1:
        return
    used = set(re.findall(r"^([\w./]+\.\w+) =", gin.operative_config_str(), re.M))
    for bound in re.findall(r"^([\w./]+\.\w+) =", gin.config_str(), re.M):
        if bound not in used and re.split(r"[./]", bound)[0] not in ON_REQUEST:
            say(f"note: the gin binding {bound} was not used by this run")


def _usage_error(message: str) -> Exception:
    from tiger_jax.errors import InputError

    return InputError(f"{message} (see python run.py --help)")


def use_fast_cpu_allocator() -> None:
    """Starts this process again with ALLOCATOR_SETTINGS, on a Linux CPU only.

    Off with TIGER_ALLOCATOR=system, or when GLIBC_TUNABLES is already set.
    """
    wanted = (
        os.environ.get("TIGER_ALLOCATOR", "") != "system"
        and "GLIBC_TUNABLES" not in os.environ
        and sys.platform == "linux"
        and platform.libc_ver()[0] == "glibc"
        and not _has_accelerator()
    )
    if wanted:
        os.environ["GLIBC_TUNABLES"] = ALLOCATOR_SETTINGS
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _has_accelerator() -> bool:
    if os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return False
    return any(
        Path(device).exists() for device in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio")
    )


if __name__ == "__main__":
    use_fast_cpu_allocator()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main(sys.argv))
