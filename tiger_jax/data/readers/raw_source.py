"""Where a run's raw data come from: a folder, a download, or the generator."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin

from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.readers import amazon
from tiger_jax.data.readers.amazon import AmazonConfig
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.readers.movielens import MovielensConfig
from tiger_jax.data.readers.p5 import P5Config
from tiger_jax.data.readers.reader import Reader, kind_of, recognise
from tiger_jax.data.readers.recbole import RecboleConfig
from tiger_jax.data.synthetic import SyntheticShopConfig, generate_shop
from tiger_jax.data.tables.parquet_files import parquet_parts
from tiger_jax.errors import InputError, flag
from tiger_jax.workdir.hashing import hash_file

READERS = (FilesConfig, RecboleConfig, MovielensConfig, P5Config, AmazonConfig)
"""The built-in readers, in the order in which they are asked."""
_AMAZON = {f"amazon_{name}": title for name, title in amazon.CATEGORIES.items()}
SOURCES = (
    "auto",
    "synthetic",
    *(config.kind for config in READERS),
    *_AMAZON,
)


@dataclasses.dataclass(frozen=True)
class RawSource:
    """Where the raw data come from.

    Attributes:
        place: Its folder, or what else names it; for messages.
        config: The reader's config, or None if it has no options.
        external: SHA-256 of each raw file, by name.
    """

    kind: str
    place: str
    config: Any
    external: dict[str, str]
    read: Callable[[], RawShop]


def find_source(
    folder: Path | None,
    source: str = "auto",
    *,
    reader: Reader | None = None,
    configs: Sequence[Any] = (),
) -> RawSource:
    """Decides on a reader, without reading more than the files' hashes.

    Args:
        folder: `--data_dir`, if any.
        source: One of `SOURCES`: "auto" recognises what the folder holds, and without
            one means the synthetic shop; a reader's name insists on that reader; an
            Amazon set is downloaded without a folder, and with one may be in any form.
        reader: A reader of the user's own, which is the only one asked.
        configs: Built-in readers, or a `SyntheticShopConfig`, to take in place of
            those that gin configures.

    Raises:
        InputError: The folder holds nothing known, or not what `source` insists on.
    """
    if source not in SOURCES:
        raise InputError(
            f"prepare_data.source is {source!r}: choose one of {', '.join(SOURCES)}"
        )
    if reader is not None and (source != "auto" or folder is None):
        raise InputError(
            "prepare_data.reader is given, which needs --data_dir and goes only with "
            + flag("prepare_data.source", "auto")
        )
    if folder is None:
        return _without_folder(source, configs)
    if source == "synthetic":
        raise InputError(
            f"--data_dir={folder} is given, but prepare_data.source is 'synthetic', "
            "which reads no files: leave out one of the two"
        )
    readers = [_configured(c, configs) for c in READERS] if reader is None else [reader]
    readers.sort(key=lambda reader: kind_of(reader) != source)
    reader, files = recognise(folder, readers)
    kind = kind_of(reader)
    may_be_amazon = kind in ("amazon", "files", "recbole") and source in _AMAZON
    if source not in ("auto", kind) and not may_be_amazon:
        raise InputError(
            f"prepare_data.source is {source!r}, but {folder} holds {kind} data "
            f"({files[0].name}): {flag('prepare_data.source', 'auto')}, or give "
            "another --data_dir"
        )
    if isinstance(reader, AmazonConfig):
        kind = _amazon_category(files[0], source)
    try:
        external = {
            path.relative_to(folder).as_posix(): hash_file(path)
            for file in files
            for path in parquet_parts(file)
        }
    except OSError as error:
        raise InputError(f"{error.filename} can't be read: {error.strerror}") from error
    return RawSource(
        kind,
        str(folder.resolve()),
        reader if dataclasses.fields(reader) else None,  # type: ignore[arg-type]
        external,
        lambda: reader.read(folder),
    )


def _without_folder(source: str, configs: Sequence[Any]) -> RawSource:
    if source in ("auto", "synthetic"):
        config = _configured(SyntheticShopConfig, configs)
        place = "the synthetic shop"
        return RawSource("synthetic", place, config, {}, lambda: generate_shop(config))
    if source not in _AMAZON:
        raise InputError(f"prepare_data.source is {source!r}, which needs --data_dir")

    def download() -> RawShop:
        # TensorFlow Datasets is slow to import, and only downloads need it.
        from tiger_jax.data.readers.amazon_tfds import download_amazon

        return download_amazon(source.removeprefix("amazon_"))

    return RawSource(source, source, None, {}, download)


def _configured(kind: type, configs: Sequence[Any]) -> Any:
    """The config of a kind that was given, or else the one that gin binds."""
    given = (config for config in configs if isinstance(config, kind))
    return next(given, None) or gin.get_configurable(kind)()


def _amazon_category(metadata: Path, source: str) -> str:
    """The name of a data set of ours; "amazon" for a category that isn't."""
    name = amazon.category_of(metadata)
    found = next((key for key, raw in _AMAZON.items() if raw == name), "amazon")
    if source not in ("auto", "amazon", found):
        raise InputError(f"{metadata} is not the metadata of {_AMAZON.get(source)}")
    return found
