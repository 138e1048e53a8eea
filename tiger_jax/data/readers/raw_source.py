"""Where a run's raw data come from: a folder, a download, or the generator."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.readers.files import FilesConfig, read_files
from tiger_jax.data.readers.movielens import MovielensConfig, read_movielens
from tiger_jax.data.readers.recbole import RecboleConfig, read_recbole
from tiger_jax.data.readers.recognise import recognise
from tiger_jax.data.synthetic import SyntheticShopConfig, generate_shop
from tiger_jax.errors import InputError
from tiger_jax.workdir import artifacts

_AMAZON = {
    "amazon_beauty": "Beauty",
    "amazon_sports": "Sports_and_Outdoors",
    "amazon_toys": "Toys_and_Games",
}
SOURCES = ("auto", "synthetic", "files", "recbole", "movielens", *_AMAZON)


@dataclass(frozen=True)
class RawSource:
    """Where the raw data come from.

    Attributes:
      kind: Which reader it is for.
      place: Its folder, or what else names it; for messages.
      config: The reader's config.
      external: SHA-256 of each raw file, by name.
      read: Reads it.
    """

    kind: str
    place: str
    config: Any
    external: dict[str, str]
    read: Callable[[], RawShop]


@dataclass(frozen=True)
class ReaderConfigs:
    """One config for each reader that has any."""

    files: FilesConfig
    recbole: RecboleConfig
    movielens: MovielensConfig
    synthetic: SyntheticShopConfig


def find_source(folder: Path | None, source: str, configs: ReaderConfigs) -> RawSource:
    """Decides on a reader, without reading more than the files' hashes.

    Args:
      folder: `--data_dir`, if any.
      source: One of `SOURCES`: "auto" recognises what the folder holds, and without
        one means the synthetic shop; a reader's name insists on that reader; an
        Amazon set is downloaded without a folder, and with one may be in any form.
      configs: The readers' configs.

    Raises:
      InputError: The folder holds nothing known, or not what `source` insists on.
    """
    if source not in SOURCES:
        raise InputError(
            f"prepare_data.source is {source!r}: choose one of {', '.join(SOURCES)}"
        )
    if folder is None:
        if source in ("auto", "synthetic"):
            place = "the synthetic shop"
            config = configs.synthetic
            return RawSource(
                "synthetic", place, config, {}, lambda: generate_shop(config)
            )
        if source in _AMAZON:
            return RawSource(source, source, None, {}, _amazon_reader(source, None))
        raise InputError(f"prepare_data.source is {source!r}, which needs --data_dir")
    if source == "synthetic":
        raise InputError(
            f"--data_dir={folder} is given, but prepare_data.source is 'synthetic', "
            "which reads no files: leave out one of the two"
        )
    found = recognise(folder)
    may_be_amazon = found.kind in ("amazon", "files", "recbole")
    if source not in ("auto", found.kind, *(_AMAZON if may_be_amazon else ())):
        raise InputError(
            f"prepare_data.source is {source!r}, but {folder} holds {found.kind} data "
            f"({found.items.name}): set it to 'auto', or give another --data_dir"
        )
    paths = (found.items, found.interactions)
    try:
        external = {path.name: artifacts.hash_file(path) for path in paths}
    except OSError as error:
        raise InputError(f"{error.filename} can't be read: {error.strerror}") from error
    place = str(folder.resolve())
    if found.kind == "amazon":
        category = _amazon_category(found.items, source)
        return RawSource(
            category, place, None, external, _amazon_reader(category, folder)
        )
    readers: dict[str, Callable[..., RawShop]] = {
        "files": read_files,
        "recbole": read_recbole,
        "movielens": read_movielens,
    }
    reader, config = readers[found.kind], getattr(configs, found.kind)
    return RawSource(
        found.kind,
        place,
        config,
        external,
        lambda: reader(*paths, config, name=folder.resolve().name),
    )


def _amazon_category(meta: Path, source: str) -> str:
    found = [key for key, raw in _AMAZON.items() if meta.name == f"meta_{raw}.json.gz"]
    if not found or source not in ("auto", *found):
        wanted = _AMAZON.get(source, " or ".join(_AMAZON.values()))
        raise InputError(f"{meta} is not the metadata of {wanted}")
    return found[0]


def _amazon_reader(category: str, folder: Path | None) -> Callable[[], RawShop]:
    def read() -> RawShop:
        # TensorFlow Datasets is slow to import, and only this reader needs it.
        from tiger_jax.data.readers.amazon import read_amazon

        return read_amazon(category.removeprefix("amazon_"), folder)

    return read
