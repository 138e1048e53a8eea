"""Runs a pipeline of the stages before training on Apache Beam.

    python -m tiger_jax.beam --pipeline=prepare --workdir=runs/big --data_dir=my_shop
    python -m tiger_jax.beam --pipeline=embed --workdir=runs/big
    python -m tiger_jax.beam --pipeline=assign --workdir=runs/big --rqvae=runs/x/rqvae
    python -m tiger_jax.beam --pipeline=tokens --workdir=runs/big
    python -m tiger_jax.beam --pipeline=workdir --workdir=runs/big

They write folders of --num_shards files under WORKDIR/shards; the last one writes of
these what the stages of run.py read: WORKDIR/data, embeddings and semantic_ids, where
one machine holds them (--folders=semantic_ids is enough for training).

A pipeline that was interrupted and is started again with the same arguments writes
only the shards that are missing.

--data_dir with folders items/ and interactions/ of Parquet files is read by the
workers, a file each; any other shop that run.py reads is read by this process, and
must fit in its memory. Configs are those of the local stages, bound by --gin_file and
--gin.NAME=VALUE: interactions.InteractionsConfig, splits.SplitsConfig,
item_text.ItemTextConfig, encoders.TfidfEncoder, files.FilesConfig and others.

--runner is any runner that Beam has; what stands after -- are Beam's own options:

    … --runner=DataflowRunner -- --project=… --region=… --temp_location=gs://…
    … --runner=FlinkRunner -- --flink_master=… --environment_type=LOOPBACK

All workers must reach --workdir and --data_dir under these paths, as on a mounted
file system.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

from tiger_jax.beam.assign import assign
from tiger_jax.beam.embed import embed
from tiger_jax.beam.prepare import PreparedShards, prepare
from tiger_jax.beam.raw import RawShards, import_parquet, write_raw_shards
from tiger_jax.beam.runner import IN_PROCESS, RunnerConfig
from tiger_jax.beam.tokens import make_tokens
from tiger_jax.beam.workdir import FOLDERS, write_workdir
from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.item_text import ItemTextConfig
from tiger_jax.data.readers.raw_source import find_source
from tiger_jax.data.splits import SplitsConfig
from tiger_jax.embedding.encoders import SentenceTransformerEncoder, TfidfEncoder
from tiger_jax.errors import InputError, UserFacingError
from tiger_jax.semantic_ids.collisions import COLLISION_LEVEL_SIZE
from tiger_jax.workdir.lock import hold_workdir
from tiger_jax.workdir.shards import Shards

PIPELINES = ("prepare", "embed", "assign", "tokens", "workdir")


def main(argv: Sequence[str]) -> int:
    """Parses the command line and runs one pipeline; returns the exit code."""
    own, beams = list(argv), []
    if "--" in own:
        place = own.index("--")
        own, beams = own[:place], own[place + 1 :]
    bindings = [a for a in own if a.startswith("--gin.")]
    options = _parser().parse_args([a for a in own if a not in bindings])
    try:
        _parse_gin(options.gin_file, bindings)
        runner = RunnerConfig(options.runner, tuple(beams), options.workers)
        if options.num_shards < 1 or options.workers < 1:
            raise InputError("--num_shards and --workers must be at least 1")
        with hold_workdir(options.workdir):
            _run(options, options.workdir / "shards", runner)
    except UserFacingError as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return 4
    return 0


def _run(options: argparse.Namespace, shards: Path, runner: RunnerConfig) -> None:
    how = {"num_shards": options.num_shards, "runner": runner}
    if options.pipeline == "prepare":
        prepare(
            _open_raw(options, shards / "raw", runner),
            shards / "data",
            interactions=_bound(InteractionsConfig),
            splits=_bound(SplitsConfig),
            seed=options.seed,
            **how,
        )
        return
    if options.pipeline == "workdir":
        write_workdir(options.workdir, options.folders.split(","))
        return
    data = PreparedShards.load(shards / "data")
    if options.pipeline == "embed":
        name = options.sentence_transformer
        encoder = _bound(TfidfEncoder)
        if name is not None:
            encoder = _bound(SentenceTransformerEncoder, name=name)
        embed(
            data,
            shards / "embedded",
            text=_bound(ItemTextConfig),
            encoder=encoder,
            seed=options.seed,
            **how,
        )
    elif options.pipeline == "assign":
        assign(
            Shards.load(shards / "embedded" / "embeddings"),
            options.rqvae or options.workdir / "rqvae",
            shards / "semantic_ids",
            collision_level_size=options.collision_level_size,
            **how,
        )
    else:
        make_tokens(
            data,
            Shards.load(shards / "semantic_ids"),
            shards / "tokens",
            num_user_tokens=options.num_user_tokens,
            max_items=options.max_items,
            seed=options.seed,
            runner=runner,
        )


def _open_raw(
    options: argparse.Namespace, folder: Path, runner: RunnerConfig
) -> RawShards:
    """Takes over Parquet files by worker, or cuts up what a reader reads."""
    given = options.data_dir
    kinds = ("items", "interactions")
    if given is not None and all((given / kind).is_dir() for kind in kinds):
        items, interactions = (
            sorted((given / kind).glob("*.parquet")) for kind in kinds
        )
        return import_parquet(
            items, interactions, folder, name=given.resolve().name, runner=runner
        )
    source = find_source(given)
    return write_raw_shards(source.read(), folder, num_shards=options.num_shards)


def _bound(config: Any, **given: Any) -> Any:
    """A config with what gin binds of it."""
    return gin.get_configurable(config)(**given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tiger_jax.beam",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pipeline", choices=PIPELINES, required=True)
    add("--workdir", type=Path, required=True)
    add("--data_dir", type=Path, help="prepare: the shop; the demo's if absent")
    add("--rqvae", type=Path, help="assign: the quantizer; WORKDIR/rqvae if absent")
    add("--num_shards", type=int, default=16, help="files of each output")
    add("--runner", default=IN_PROCESS)
    add("--workers", type=int, default=1, help="threads of the in-process runner")
    add("--seed", type=int, default=0)
    add("--sentence_transformer", help="embed: a model's name or folder, not TF-IDF")
    add("--collision_level_size", type=int, default=COLLISION_LEVEL_SIZE)
    add("--num_user_tokens", type=int, default=2000, help="tokens")
    add("--max_items", type=int, default=20, help="tokens: items in an example")
    add("--folders", default=",".join(FOLDERS), help="workdir: what to write")
    add("--gin_file", action="append", default=[])
    return parser


def _parse_gin(files: Sequence[str], bindings: Sequence[str]) -> None:
    texts = [b.removeprefix("--gin.").replace("=", " = ", 1) for b in bindings]
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    gin.clear_config()
    try:
        gin.parse_config_files_and_bindings(list(files), texts)
    except (ValueError, TypeError, SyntaxError, OSError) as error:
        raise InputError(f"gin: {' '.join(str(error).split())}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
