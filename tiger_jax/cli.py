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
import functools
import importlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin
from absl import flags

from tiger_jax import stage_table
from tiger_jax.errors import InputError, UserFacingError, storage_problem
from tiger_jax.progress import say
from tiger_jax.stage_table import ON_REQUEST, PIPELINE, STAGES
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir.lock import hold_workdir

GIN_CONFIGS = Path(__file__).resolve().parent.parent / "gin_configs"
DEMO_GIN, OWN_DATA_GIN = "demo.gin", "experiments/own_data.gin"
# Configs that gin may bind, of modules that no stage imports until it needs them.
CONFIG_MODULES = (
    *("quantizers.hashing", "quantizers.residual_kmeans"),
    *("input_pipeline.resident_sequences", "models.two_level"),
)
# Imported by gin files of earlier versions, when these imported what they bind. All of
# it is imported now, so that such a line has nothing left to do.
_FORMER_MODULES = (
    *("data.files", "data.movielens", "data.recbole"),
    *("models.rqvae_training", "beam.shuffled_rows", "serving.http.settings"),
    *("semantic_ids.hash_quantizers", "semantic_ids.quantizers"),
    *("stages.recommendation", "stages.validation"),
)


def main(argv: Sequence[str]) -> int:
    """Parses the command line, runs the stages it asks for, returns the exit code."""
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
    gin_bindings, argv = _take_gin_bindings(argv)
    given = _flags()
    if {"--help", "-help", "-h"} & set(argv[1:]):
        listed = given.module_help(__name__).split("\n", 2)[-1]
        print(f"{__doc__}\nFlags:\n{listed}")
        return 0
    try:
        rest = given(list(argv))
    except flags.Error as error:
        raise _usage_error(str(error)) from error
    if len(rest) > 1:
        raise _usage_error(f"unexpected argument {rest[1]!r}")
    stages = _choose_stages(given.stage)
    context = _build_context(given)
    from tiger_jax.training import partitioning  # JAX: not for --help

    partitioning.initialize_distributed()  # before a device is touched
    if set(stages) <= {*stage_table.names("pipeline", "comparison")}:
        partitioning.use_cpu_cores()
    gin_bindings += os.environ.get("TIGER_GIN", "").splitlines()
    default = DEMO_GIN if context.data_dir is None else OWN_DATA_GIN
    parse_gin(given.gin_file or [default], gin_bindings)

    # A server reads its bundle once, and versions of the catalogue have a lock of
    # their own: stages can run beside it.
    is_server = stages == ("serve",)
    with contextlib.nullcontext() if is_server else hold_workdir(context.workdir):
        for stage in stages:
            stage_function(stage)(context)
        _warn_of_unused_bindings(stages)
    if "report" in stages and len(stages) > 1:
        say(f"done: open {context.workdir / 'report' / 'index.html'}")
    return 0


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    define = functools.partial(flags.DEFINE_string, flag_values=values)
    define(
        "stage",
        "",
        f"One of {', '.join(STAGES)}, or several, in this order, with commas between; "
        f"empty: {', '.join(PIPELINE)}.",
    )
    define("workdir", "runs/demo", "Where the stages write.")
    define(
        "data_dir",
        "",
        "A folder with a shop's items and interactions (CSV, JSONL, Parquet, RecBole "
        "or MovieLens); empty: a generated shop.",
    )
    define("embeddings", "", "Ready-made item embeddings (.npy), in items-file order.")
    flags.DEFINE_multi_string(
        "gin_file",
        [],
        f"A gin file; repeatable. Default: {DEMO_GIN}, or {OWN_DATA_GIN} with "
        "--data_dir.",
        flag_values=values,
    )
    return values


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
    chosen = tuple(stage.split(",")) if stage else PIPELINE
    for name in chosen:
        if name not in STAGES:
            known = ", ".join(STAGES)
            raise _usage_error(f"there is no stage {name!r}; choose from {known}")
    return chosen


def stage_function(stage: str) -> Callable[[Any], None]:
    """The function that runs a stage of the table."""
    return getattr(importlib.import_module(f"tiger_jax.stages.{stage}"), stage)


def _build_context(given: Any) -> RunContext:
    data_dir, embeddings = (
        Path(v).expanduser() if v else None for v in (given.data_dir, given.embeddings)
    )
    if data_dir is not None and not data_dir.is_dir():
        raise _usage_error(f"--data_dir={data_dir} is not a folder")
    if embeddings is not None and not embeddings.is_file():
        raise _usage_error(f"--embeddings={embeddings} is not a file")
    workdir = Path(given.workdir).expanduser()
    if workdir.exists() and not workdir.is_dir():
        raise _usage_error(f"--workdir={workdir} is not a folder")
    return RunContext(workdir=workdir, data_dir=data_dir, embeddings=embeddings)


def parse_gin(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Binds what the base files say, then the given files, then single bindings.

    Every stage of the table has its base file, and the seed; whatever a gin file may
    bind is imported, so that it needs no import lines for this package.

    Files are paths, or names in `GIN_CONFIGS`.

    Raises:
        InputError: A file is missing, or gin refuses one or a binding.
    """
    gin.clear_config()
    gin.add_config_file_search_path(str(GIN_CONFIGS))
    for name in files:
        if not (Path(name).is_file() or (GIN_CONFIGS / name).is_file()):
            raise _usage_error(
                f"--gin_file={name} is neither a file nor in {GIN_CONFIGS}"
            )
    for name in CONFIG_MODULES:
        importlib.import_module(f"tiger_jax.{name}")
    for name in _FORMER_MODULES:
        sys.modules.setdefault(f"tiger_jax.{name}", sys.modules["tiger_jax"])
    seeds = ["SEED = 0"]
    for stage in STAGES:
        if "seed" in inspect.signature(stage_function(stage)).parameters:
            seeds.append(f"{stage}.seed = %SEED")
    paths = (GIN_CONFIGS / "base" / f"{stage}.gin" for stage in STAGES)
    base = [str(path) for path in paths if path.is_file()]
    try:
        # Gin logs an error for every search path that doesn't hold a file.
        logging.disable(logging.ERROR)
        gin.parse_config_files_and_bindings(base, seeds, finalize_config=False)
        gin.parse_config_files_and_bindings(list(files), list(bindings))
    except Exception as error:  # what it imports and its tokenizer raise anything
        message = " ".join(str(error).split()) or type(error).__name__
        if len(message) > 400:  # gin lists all that it knows
            message = message[:400] + "…"
        raise _usage_error(f"gin: {message}") from error
    finally:
        logging.disable(logging.NOTSET)


def _warn_of_unused_bindings(stages: Sequence[str]) -> None:
    """Says which bindings no stage has read, when the whole pipeline has run."""
    if not set(PIPELINE) <= set(stages):
        return
    used = set(re.findall(r"^([\w./]+\.\w+) =", gin.operative_config_str(), re.M))
    for bound in re.findall(r"^([\w./]+\.\w+) =", gin.config_str(), re.M):
        if bound not in used and re.split(r"[./]", bound)[0] not in ON_REQUEST:
            say(f"note: the gin binding {bound} was not used by this run")


def _usage_error(message: str) -> InputError:
    return InputError(f"{message} (see python run.py --help)")
