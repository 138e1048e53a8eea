"""Runs TIGER: every stage of the pipeline, or one.

    python run.py                                   the demo, on a generated shop
    python run.py --data_dir=my_shop --workdir=runs/my_shop
    python run.py --stage=evaluate --workdir=runs/my_shop
    python run.py --gin_file=experiments/cpu_quick.gin --gin.train_recommender.seed=1
    python run.py --seeds=0,1,2 --workdir=runs/demo
    python run.py --stage=compare --runs=runs/a,runs/b --workdir=runs/compared

Each stage reads and writes folders under --workdir, is skipped when its folder is
up to date, and goes on where it stopped when it was interrupted. What a stage does
is decided by gin: files named by --gin_file (a path, or relative to gin_configs/),
then single bindings --gin.NAME=VALUE, the last of which win. Lines of bindings in
the variable TIGER_GIN win over both.

Where nobody reads the output any more (`| head`), the run goes on in silence.

Exit codes: 0 done, 1 a fault of this program, 2 bad input or usage, 3 the work
directory is in use, 4 stopped by a signal after saving (the same command resumes).
"""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import inspect
import logging
import os
import re
import sys
import typing
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gin
from absl import flags

from tiger_jax import stage_table
from tiger_jax.config import NAMES, fits, say_type
from tiger_jax.errors import (
    KEYWORDS,
    InputError,
    UserFacingError,
    is_open,
    is_text,
    storage_problem,
)
from tiger_jax.progress import printable, say
from tiger_jax.seeds import parse_seeds, plan, summarize
from tiger_jax.stage_table import ON_REQUEST, PIPELINE, STAGES
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir.artifacts import recover_all
from tiger_jax.workdir.lock import hold_workdir
from tiger_jax.workdir.reading import path_of
from tiger_jax.workdir.remote import RemoteWorkdir, here
from tiger_jax.workdir.store import is_url

# In the package, as a wheel needs it: a link to the folder in a checkout.
GIN_CONFIGS = (Path(__file__).parent / "gin_configs").resolve()
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
        print(printable(f"error: {str(error).splitlines()[0]}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped: the same command resumes", file=sys.stderr)
        return 4
    except ModuleNotFoundError as error:
        if (error.name or "tiger_jax").partition(".")[0] in ("tiger_jax", "tasks"):
            raise
        print(
            f"error: the package {error.name} is not installed: pip install -e "
            "'.[data,serve]' installs what the stages need",
            file=sys.stderr,
        )
        return 2
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
    runs = given.runs.split(",") if given.runs else ()
    run_stages(
        choose_stages(given.stage.split(",") if given.stage else ()),
        make_context(given.workdir, given.data_dir, given.embeddings, runs),
        given.gin_file,
        gin_bindings,
        parse_seeds(given.seeds),
    )
    return 0


def run_stages(
    stages: Sequence[str],
    context: RunContext,
    gin_files: Sequence[str],
    gin_bindings: Sequence[str],
    seeds: Sequence[int] = (),
) -> None:
    """Binds gin and runs stages in the work directory, alone in it.

    Args:
        seeds: Run them under each of these, in work directories of their own.
    """
    import jax  # not for --help

    from tiger_jax.training import partitioning

    partitioning.initialize_distributed()  # before a device is touched
    is_first = True
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        is_first = jax.process_index() == 0
        if tuple(stages) != ("train_recommender",) or seeds:
            raise InputError(
                f"--stage={','.join(stages)} is for one process: several run "
                "--stage=train_recommender alone, without --seeds; run the others "
                "before and after"
            )
    if set(stages) <= {*stage_table.names("pipeline", "comparison")}:
        partitioning.use_cpu_cores()
    remote = context.remote
    if remote and jax.distributed.is_initialized():
        raise InputError(
            f"--workdir={remote.store.url} is for a run of one process: several "
            "save their checkpoints together, on a file system that they share"
        )
    # A server reads its bundle once, and versions of the catalogue have a lock of
    # their own: stages can run beside it.
    is_server = stages[-1] == "serve" and not seeds
    alone = stages[:-1] if is_server else stages
    if is_server and alone:
        from tiger_jax.serving.workers import LISTENER_VARIABLE

        if LISTENER_VARIABLE in os.environ:
            alone = ()  # the process that started this worker has run them
    default = DEMO_GIN if context.data_dir is None else OWN_DATA_GIN
    files = [str(here(name, Path)) for name in gin_files] or [default]
    bindings = [*gin_bindings, *os.environ.get("TIGER_GIN", "").splitlines()]
    parse_gin(files, bindings)
    named = _bound_by_user(files, bindings)

    with contextlib.ExitStack() as held:
        if alone and is_first:
            held.enter_context(hold_workdir(context.workdir))
            recover_all(context.workdir)
            if remote:
                held.enter_context(remote.hold())
        if not seeds:
            _run_bound(alone, context, named)
        for part, own, seed in plan(stages, context, seeds) if seeds else ():
            is_shared = own is context
            with nullcontext() if is_shared else hold_workdir(own.workdir):
                parse_gin(files, [*bindings, *seed])
                _run_bound(part, own, named)
        summarize(context.workdir, seeds)
        if remote and alone:
            remote.send_summary()
    if "report" in alone and len(stages) > 1 and not seeds:
        say(f"done: open {context.workdir / 'report' / 'index.html'}")
    if is_server:
        if remote:
            remote = remote.reader()
            context = dataclasses.replace(context, workdir=remote.local, remote=remote)
        _run_bound(("serve",), context, named)


def _run_bound(stages: Sequence[str], context: RunContext, named: set[str]) -> None:
    for stage in stages:
        remote = context.remote
        with remote.stage(context.workdir, stage) if remote else nullcontext():
            stage_function(stage)(context)
    _warn_of_unused_bindings(stages, named)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    define = functools.partial(flags.DEFINE_string, flag_values=values)
    define(
        "stage",
        "",
        f"One of {', '.join(STAGES)}, or several, in this order, with commas between; "
        f"empty: {', '.join(PIPELINE)}.",
    )
    define(
        "workdir",
        "runs/demo",
        "Where the stages write; gs://bucket/run and s3://… too, mirrored under "
        "$TIGER_CACHE (~/.cache/tiger_jax).",
    )
    define(
        "data_dir",
        "",
        "A folder with a shop's items and interactions (CSV, JSONL, Parquet, RecBole "
        "or MovieLens); empty: a generated shop.",
    )
    define("embeddings", "", "Ready-made item embeddings (.npy), in items-file order.")
    define(
        "seeds",
        "",
        "Run under each of these seeds, as in 0,1,2, in WORKDIR/seeds/; the data and "
        "the items' vectors are shared.",
    )
    define("runs", "", "Work directories that --stage=compare compares, with commas.")
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
            value = repr(match[2]) if is_text(match[2]) else match[2]
            if value.strip().lower() in KEYWORDS:
                value = value.strip().capitalize()
            bindings.append(f"{match[1]} = {value}")
        elif re.match(r"--?gin\.", argument):
            raise _usage_error(f"{argument!r} must read --gin.NAME=VALUE")
        else:
            rest.append(argument)
    return bindings, rest


def choose_stages(names: Sequence[str]) -> tuple[str, ...]:
    """The stages of these names, or the pipeline; InputError if one is unknown."""
    chosen = tuple(name.strip() for name in names) or PIPELINE
    for name in chosen:
        if name not in STAGES:
            near = (
                _did_you_mean(name, [*STAGES]) or f": choose from {', '.join(STAGES)}"
            )
            raise _usage_error(f"there is no stage {name!r}{near}")
    return chosen


def stage_function(stage: str) -> Callable[[Any], None]:
    """The function that runs a stage of the table."""
    return getattr(importlib.import_module(f"tiger_jax.stages.{stage}"), stage)


def make_context(
    workdir: Any, data_dir: Any = "", embeddings: Any = "", runs: Sequence[Any] = ()
) -> RunContext:
    """Looks at the paths of a run; InputError if one is not what it should be.

    Of URLs, the run gets copies: of its data, of what else it reads, and a folder that
    mirrors its work directory.
    """
    remote = None
    if is_url(os.fspath(workdir or "")):
        remote = RemoteWorkdir(os.fspath(workdir))
        workdir = remote.local
    work, data, vectors = (
        here(os.fspath(path), path_of) if path else None
        for path in (workdir, data_dir, embeddings)
    )
    if data is not None and not data.is_dir():
        raise _usage_error(f"--data_dir={data} is not a folder")
    if vectors is not None and not vectors.is_file():
        raise _usage_error(f"--embeddings={vectors} is not a file")
    if work is None or (work.exists() and not work.is_dir()):
        raise _usage_error(f"--workdir={workdir} is not a folder")
    compared = tuple(
        RemoteWorkdir(os.fspath(run), is_reader=True).fetch(*STAGES["report"].reads)
        if is_url(os.fspath(run))
        else path_of(os.fspath(run))
        for run in runs
    )
    for run in compared:
        if not run.is_dir():
            raise _usage_error(f"--runs names {run}, which is not a folder")
    return RunContext(
        work, data_dir=data, embeddings=vectors, runs=compared, remote=remote
    )


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
                + _did_you_mean(name, _gin_files())
            )
        if Path(name).is_file():
            try:
                starts = Path(name).read_text(encoding="utf-8")[:1]
            except ValueError:
                starts = "\ufeff"
            if starts == "\ufeff":
                raise _usage_error(
                    f"--gin_file={name} must be UTF-8 text without a byte order mark"
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
        raise _usage_error(f"gin: {_explain(message, bindings)}") from error
    finally:
        logging.disable(logging.NOTSET)
    _check_macros(bindings)
    _check_types()


def _gin_files() -> list[str]:
    return [p.relative_to(GIN_CONFIGS).as_posix() for p in GIN_CONFIGS.rglob("*.gin")]


def _explain(message: str, bindings: Sequence[str]) -> str:
    """What gin says of a fault, and what may have been meant."""
    options = [f"{stage}.{name}" for stage in STAGES for name in _types_of(stage)]
    classes = {name.rpartition(".")[0] for name in NAMES}
    macros = re.findall(r"^(\w+) =", gin.config_str(), re.M)
    for pattern, known in (
        (r"No bindings specified for '(\w+)/gin\.macro'", macros),
        (r"No configurable matching reference '@([\w./]+)", [*classes]),
        (r"Unable to open file: (.+?)(?=\. Searched)", _gin_files()),
        (r"Failed to parse token '(\w+)'", ["True", "False", "None"]),
    ):
        if found := re.search(pattern, message):
            said = found[0][:400] + "'" * (found[0].count("'") % 2)
            return said + _did_you_mean(found[1], known)
    for binding in bindings:
        if is_open(binding):
            near = f": look for a bracket that is never closed in {binding!r}"
            return message[:400] + near
    named = re.findall(r"([\w./]+\.\w+) = ", message)
    near = _did_you_mean(named[-1], [*NAMES, *options]) if named else ""
    return message[:400] + "…" * (len(message) > 400) + near  # gin lists all it knows


def _types_of(stage: str) -> dict[str, Any]:
    """The types of what gin may bind of a stage."""
    hints = typing.get_type_hints(stage_function(stage))
    return {k: v for k, v in hints.items() if k not in ("context", "return")}


def _check_macros(bindings: Sequence[str]) -> None:
    """Refuses a macro or a scope that nothing refers to, and that was bound on purpose.

    In a file, it may stand there for nothing: only a near miss is refused.
    """
    text = gin.config_str()
    for kind, use, binding in (
        ("macro", r"%(\w+)", r"^(\w+) ="),
        ("scope", r"@([\w/]+)/", r"^([\w/]+)/[\w.]+ ="),
    ):
        used = sorted(set(re.findall(use, text)))
        for name in re.findall(binding, text, re.M):
            near = "" if name in used else _did_you_mean(name, used)
            is_flag = any(re.match(rf"\s*{name}\s*[=/]", line) for line in bindings)
            if near or (is_flag and name not in used):
                raise _usage_error(f"gin: nothing refers to a {kind} {name!r}{near}")


def _check_types() -> None:
    """Refuses a value of another type than a stage's or a config's parameter has."""
    typed = {f"stages.{stage}": _types_of(stage) for stage in STAGES}
    for config in {name.rpartition(".")[0] for name in NAMES}:
        typed[config] = typing.get_type_hints(gin.get_configurable(config))
    for owner, types in typed.items():
        bound = gin.get_bindings(owner, False) if types else {}
        for name, value in bound.items():
            if (macro := repr(value)).startswith("%"):
                value = gin.query_parameter(f"{macro[1:]}/gin.macro.value")
            given = tuple(value) if isinstance(value, list) else value
            parts = given if isinstance(given, tuple) else [given]
            kind = gin.config.ConfigurableReference
            is_reference = any(isinstance(part, kind) for part in parts)
            if not is_reference and not fits(given, types[name]):
                raise _usage_error(
                    f"{owner.removeprefix('stages.')}.{name} is {value!r}: it must be "
                    + say_type(types[name])
                )


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, cutoff=0.75)
    return f": did you mean {near[0]}?" if near else ""


def _bound_by_user(files: Sequence[str], bindings: Sequence[str]) -> set[str]:
    """What the flags and the user's own gin files bind, as they call it."""
    own = [Path(name).resolve() for name in files if Path(name).is_file()]
    own = [path for path in own if GIN_CONFIGS not in path.parents]
    texts = [*bindings, *(path.read_text(encoding="utf-8") for path in own)]
    return set(re.findall(r"^\s*([\w./]+\.\w+)\s*=", "\n".join(texts), re.M))


def _warn_of_unused_bindings(stages: Sequence[str], named: set[str]) -> None:
    """Says which of these no stage has read, when the whole pipeline has run."""
    if not set(PIPELINE) <= set(stages):
        return
    used = set(re.findall(r"^([\w./]+\.\w+) =", gin.operative_config_str(), re.M))
    for bound in re.findall(r"^([\w./]+\.\w+) =", gin.config_str(), re.M):
        # Gin leaves out of a module's name what it can, and so may a user.
        is_named = any(f".{name}".endswith(f".{bound}") for name in named) or any(
            f".{bound}".endswith(f".{name}") for name in named
        )
        is_request = re.split(r"[./]", bound)[0] in ON_REQUEST
        if is_named and bound not in used and not is_request:
            say(f"note: the gin binding {bound} was not used by this run")


def _usage_error(message: str) -> InputError:
    is_installed = Path(sys.argv[0]).name == "tiger-jax"
    command = "tiger-jax" if is_installed else "python run.py"
    return InputError(f"{message} (see {command} --help)")
