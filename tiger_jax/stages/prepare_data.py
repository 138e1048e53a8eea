"""Stage `prepare_data`: raw items and interactions -> `data/`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin

from tiger_jax.data.interactions import InteractionsConfig
from tiger_jax.data.item_text import ItemTextConfig, examine_texts
from tiger_jax.data.prepare import prepare_shop
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.readers.movielens import MovielensConfig
from tiger_jax.data.readers.raw_source import RawSource, find_source
from tiger_jax.data.readers.reader import Reader
from tiger_jax.data.readers.recbole import RecboleConfig
from tiger_jax.data.splits import SplitsConfig
from tiger_jax.data.statistics import describe_statistics
from tiger_jax.data.synthetic import SyntheticShopConfig
from tiger_jax.errors import InputError, flag
from tiger_jax.progress import say
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts


@gin.configurable(module="stages")
def prepare_data(
    context: RunContext,
    *,
    seed: int = 0,
    source: str = "auto",
    name: str | None = None,
    reader: Reader | None = None,
    files: FilesConfig | None = None,
    recbole: RecboleConfig | None = None,
    movielens: MovielensConfig | None = None,
    synthetic: SyntheticShopConfig | None = None,
    interactions: InteractionsConfig = InteractionsConfig(),
    splits: SplitsConfig = SplitsConfig(),
    expected: Mapping[str, int] | None = None,
) -> None:
    """Reads a shop, filters it, numbers its items, orders and splits histories.

    Each config that is None is the one that gin configures.

    Args:
        context: The work directory, and the folder of raw data.
        seed: Decides the item numbers, ties by "shuffle", and unseen items.
        source: "auto", or which reader to insist on; see `find_source`.
        name: The data set's name in reports (the source's own, or its
            folder's, if None).
        reader: A reader of your own, which is then the only one asked.
        expected: Statistics that the prepared data must have, such as ``users``; a
            benchmark's numbers mean nothing on another data set.
    """
    found = find_source(
        context.data_dir,
        source,
        reader=reader,
        configs=(files, recbole, movielens, synthetic),
    )
    _refuse_other_source(context.workdir, found)
    run = artifacts.begin(
        context.workdir,
        "data",
        stage="prepare_data",
        config={
            "kind": found.kind,
            "name": name,
            "reader": found.config,
            "interactions": interactions,
            "splits": splits,
            "seed": seed,
        },
        external=found.external,
    )
    if run.is_current:
        made = artifacts.load_manifest(run.final, verify=False)
        _check_expected(made.summary, expected or {})
        return
    say(f"prepare_data: reading {found.place}")
    shop = found.read()
    if name is not None:
        shop = dataclasses.replace(shop, name=name)
    data = prepare_shop(shop, interactions, splits, seed=seed)
    _check_expected(data.statistics, expected or {})
    data.save(run.folder)
    statistics = {"name": data.name, **data.statistics}
    run.commit(summary={"source": found.place, **statistics})
    say(describe_statistics(statistics))
    if context.embeddings is None:
        naming = None
        if isinstance(found.config, FilesConfig | RecboleConfig):
            name = f"{found.kind}.{type(found.config).__name__}.title"
            is_one = isinstance(found.config.title, str)
            naming = flag(name, "NAME" if is_one else ("NAME",))
        texts = gin.get_configurable(ItemTextConfig)()
        for line in examine_texts(data.items, texts, naming):
            say(line)


def _check_expected(statistics: Mapping[str, Any], expected: Mapping[str, int]) -> None:
    """Refuses data whose statistics aren't those that were bound."""
    wrong = [
        f"{statistics.get(name, 'unknown')} {name} where {value} are expected"
        for name, value in expected.items()
        if statistics.get(name) != value
    ]
    if wrong:
        raise InputError(
            f"prepare_data: {', '.join(wrong)}: these are other raw files or another "
            "k-core than the benchmark's; to go on, "
            + flag("prepare_data.expected", None)
        )


def _refuse_other_source(workdir: Path, source: RawSource) -> None:
    """Protects a work directory from being filled with another shop's data.

    The same folder with other content is a new version of the same shop, and the
    same content in another folder has merely moved.
    """
    if not (workdir / "data").exists():
        return
    old = artifacts.load_manifest(workdir / "data", verify=False)
    old_place = old.summary.get("source")
    is_same = source.place == old_place or (
        source.external and source.external == old.external
    )
    if not is_same:
        raise InputError(
            f"{workdir} holds data prepared from {old_place}, and not from "
            f"{source.place}: choose another --workdir, or delete {workdir} to start "
            "over"
        )
