"""TFDS builder of the Amazon 2014 review data sets, and their download.

The data set has one example per item: what is known about it, and its reviews. Work
directories don't go through it: they read the raw files (`amazon.read_amazon`).
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.readers import amazon
from tiger_jax.data.readers.amazon import CATEGORIES, Metadata, Reviews
from tiger_jax.errors import InputError
from tiger_jax.workdir.hashing import hash_file
from tiger_jax.workdir.json_files import read_json, write_json

try:
    import tensorflow_datasets as tfds
except ModuleNotFoundError as error:
    raise InputError(
        f"a download needs the package {error.name}: pip install 'tiger_jax[seqio]'"
    ) from error

HOST = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
_CHECKSUMS = "amazon2014_checksums.json"
_CITATION = """
@inproceedings{mcauley2015image,
  title={Image-based recommendations on styles and substitutes},
  author={McAuley, Julian and Targett, Christopher and Shi, Qinfeng and
          van den Hengel, Anton},
  booktitle={SIGIR},
  year={2015}
}
"""


class _LocalInfo(tfds.core.DatasetInfo):
    """Knows what is on this disk.

    TFDS's own asks a bucket on the network about every data set that isn't prepared
    yet, and leaves an empty temporary folder behind each time.
    """

    def initialize_from_bucket(self) -> None:
        """Looks nowhere."""


class Amazon2014Config(tfds.core.BuilderConfig):
    """One category; `files` names its files."""

    def __init__(self, name: str) -> None:
        title = CATEGORIES[name]
        super().__init__(
            name=name,
            version=tfds.core.Version("1.0.0"),
            description=f"{title.replace('_', ' ')}, 5-core.",
        )
        self.files = {
            "reviews": f"reviews_{title}_5.json.gz",
            "metadata": f"meta_{title}.json.gz",
        }


class Amazon2014(tfds.core.GeneratorBasedBuilder):
    """Items of the 5-core with their metadata and reviews, in file order.

    `info.metadata` keeps the SHA-256 of the two files, how many metadata lines
    could not be read, and how many items have none.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [Amazon2014Config(name) for name in CATEGORIES]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Place reviews_NAME_5.json.gz and meta_NAME.json.gz from {HOST} here."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return _LocalInfo(
            builder=self,
            description="Amazon product reviews until July 2014, users and items with "
            "at least five reviews, with product metadata.",
            homepage="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
            citation=_CITATION,
            features=tfds.features.FeaturesDict(
                {
                    "item_id": text,
                    "title": text,
                    "brand": text,
                    "price": np.float32,  # NaN where unknown
                    "categories": tfds.features.Sequence(tfds.features.Sequence(text)),
                    "reviews": tfds.features.Sequence(
                        {
                            "user_id": text,
                            "rating": np.float32,
                            "timestamp": np.int64,  # seconds
                            "row": np.int64,  # place in the file of reviews
                        }
                    ),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def download_and_prepare(
        self, *, download_dir: Any = None, download_config: Any = None, **options: Any
    ) -> None:
        """Prepares the files, or takes what was prepared from the very same ones.

        Raises:
            InputError: Others were prepared under this name.
        """
        folder = getattr(download_config, "manual_dir", None)
        files = self.builder_config.files
        paths = {key: Path(folder or "") / name for key, name in files.items()}
        has_files = folder is not None and all(p.exists() for p in paths.values())
        if has_files and Path(self.data_path).exists():
            digests = {key: hash_file(path) for key, path in paths.items()}
            if digests != self.info.metadata["sha256"]:
                raise InputError(
                    f"{self.data_path} was prepared from other files than those in "
                    f"{folder}: give TFDS another data_dir, or delete that folder"
                )
        super().download_and_prepare(
            download_dir=download_dir, download_config=download_config, **options
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        paths = self._find_files(dl_manager)
        reviews = amazon.read_reviews(paths["reviews"])
        items = set(reviews.item_ids)
        metadata, skipped = amazon.read_metadata(paths["metadata"], items)
        self.info.metadata.update(
            sha256={key: hash_file(path) for key, path in paths.items()},
            skipped_lines=len(skipped),
            first_skipped_lines=skipped[:5],
            items_without_metadata=len(items) - len(metadata),
        )
        return {"items": self._generate_examples(reviews, metadata)}

    def _find_files(self, dl_manager: Any) -> dict[str, Path]:
        files = self.builder_config.files
        try:
            manual_dir = dl_manager.manual_dir
        except AssertionError:  # TFDS's word for: there is none, or it is empty
            manual_dir = None
        if manual_dir is not None:
            paths = {key: Path(manual_dir) / name for key, name in files.items()}
            if all(path.exists() for path in paths.values()):
                return paths
        return _download(files, dl_manager)

    def _generate_examples(
        self, reviews: Reviews, metadata: dict[str, Metadata]
    ) -> Any:
        rows_of: dict[str, list[int]] = {}
        for row, item_id in enumerate(reviews.item_ids):
            rows_of.setdefault(item_id, []).append(row)
        for number, (item_id, rows) in enumerate(rows_of.items()):
            about = metadata.get(item_id, Metadata())
            example = {
                "item_id": item_id,
                "title": about.title,
                "brand": about.brand,
                "price": about.price,
                "categories": [list(path) for path in about.categories],
                "reviews": {
                    "user_id": [reviews.user_ids[row] for row in rows],
                    "rating": [reviews.ratings[row] for row in rows],
                    "timestamp": [reviews.timestamps[row] for row in rows],
                    "row": rows,
                },
            }
            yield number, example


def download_amazon(name: str, *, data_dir: Path | None = None) -> RawShop:
    """Downloads a category, if that isn't done, and reads it.

    Args:
        data_dir: Where TFDS keeps downloads (its default if None, which the variable
            TFDS_DATA_DIR sets).

    Raises:
        InputError: The name is unknown, the files can't be had, differ from those
            downloaded first, or are damaged.
    """
    if name not in CATEGORIES:
        raise InputError(
            f"no Amazon data set is called {name!r}: choose {', '.join(CATEGORIES)}"
        )
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # ours prints plain lines
    builder = Amazon2014(config=name, data_dir=data_dir)
    files = builder.builder_config.files
    folder = Path(builder.data_dir_root) / "downloads"
    try:
        paths = _download(files, tfds.download.DownloadManager(download_dir=folder))
    except (tfds.download.DownloadError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{', '.join(files.values())} could not be fetched from {HOST} ({error}): "
            "download them by hand and give their folder as --data_dir"
        ) from error
    return amazon.read_amazon(paths["metadata"], [paths["reviews"]], name, year=2014)


def _download(files: dict[str, str], dl_manager: Any) -> dict[str, Path]:
    """Downloads files, whose checksums must be those of the first time."""
    urls = {key: HOST + name for key, name in files.items()}
    paths = {key: Path(path) for key, path in dl_manager.download(urls).items()}
    record = Path(dl_manager.download_dir) / _CHECKSUMS
    known = read_json(record) if record.exists() else {}
    for key, path in paths.items():
        url, digest = urls[key], hash_file(path)
        if known.setdefault(url, digest) != digest:
            raise InputError(
                f"{path} (from {url}) has SHA-256 {digest}, but the file first "
                f"downloaded from there had {known[url]}: delete it to fetch it "
                f"again, or delete {record} if the source has changed"
            )
    with contextlib.suppress(FileNotFoundError):  # another run has just put it there
        write_json(record, known)
    return paths
