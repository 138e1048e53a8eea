"""The tasks `tiger_<data set>`, and functions that register more.

A task is made from a work directory: histories from `data/`, Semantic IDs from
`semantic_ids/`. Where that is, a task learns from the argument `workdir` (of
`register_tiger_task`, in Python or in gin), or else from the environment variable
``TIGER_WORKDIR``. Nothing is read before a task is first used, so that tasks can be
registered before the stages have made anything.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np
from jaxtyping import Float32

from tasks.metrics import make_beam_metric_fn
from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.input_pipeline.pair_source import PairSource, Shop
from tiger_jax.input_pipeline.preprocessors import make_preprocessors
from tiger_jax.input_pipeline.quiet_tensorflow import seqio, tf
from tiger_jax.input_pipeline.vocabulary import TigerVocabulary
from tiger_jax.progress import say
from tiger_jax.recommending.trained_model import load_content
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir import artifacts

WORKDIR_VARIABLE = "TIGER_WORKDIR"
# Registered on import, over the work directory that TIGER_WORKDIR names.
DATA_SETS = ("demo", "beauty", "sports", "toys", "movielens", "own_data")


def find_workdir(lacks: str, parameter: str) -> Path:
    """The work directory that TIGER_WORKDIR names; an InputError if it names none."""
    workdir = os.environ.get(WORKDIR_VARIABLE)
    if not workdir:
        raise InputError(
            f"the task has no {lacks}: set {WORKDIR_VARIABLE}, or {parameter} in gin"
        )
    return Path(workdir)


class WorkdirShop(Shop):
    """A shop read from a work directory when it is first used.

    Once the stages have made something else there, that is read instead.
    """

    def __init__(self, workdir: str | None, num_user_tokens: int) -> None:
        """Takes the work directory; None leaves it to TIGER_WORKDIR."""
        self._workdir = workdir
        self._num_user_tokens = num_user_tokens

    @property
    def workdir(self) -> Path:
        """The one in force; InputError if none was given, nor TIGER_WORKDIR is set."""
        if self._workdir:
            return Path(self._workdir)
        return find_workdir("work directory", "tasks.tiger.register_tiger_task.workdir")

    def load_content(self) -> Float32[np.ndarray, "N E"]:
        """The items' content vectors, for a model that takes them."""
        return load_content(self.workdir, self.table.num_items)

    def __getattr__(self, name: str) -> Any:
        if name not in Shop.__dataclass_fields__:
            raise AttributeError(f"a shop has no {name!r}")
        hashes = tuple(
            artifacts.load_manifest(
                self.workdir / folder, needed_by="the task", verify=False
            ).content_hash
            for folder in ("data", "semantic_ids")
        )
        return getattr(_load(self.workdir, self._num_user_tokens, hashes), name)


@functools.lru_cache(maxsize=4)
def _load(workdir: Path, num_user_tokens: int, content_hashes: tuple[str, ...]) -> Shop:
    """Reads a work directory; the hashes only tell its states apart."""
    del content_hashes
    data = PreparedData.load(workdir / "data")
    table = SemanticIdTable.load(workdir / "semantic_ids")
    if table.item_ids != data.item_ids:
        raise InputError(
            f"{workdir / 'semantic_ids'} and {workdir / 'data'} are about different "
            "items: run --stage=assign_semantic_ids again"
        )
    layout = TokenLayout(table.codebook_sizes, num_user_tokens)
    return Shop(data.train, data.validation, data.test, data.user_hashes, table, layout)


@gin.register(module="tiger")
def register_tiger_task(
    name: str,
    workdir: str | None = None,
    num_user_tokens: int = 2000,
    num_items: int = 20,
    whole_histories: bool = False,
) -> str:
    """Registers a work directory as a seqio task; again replaces it.

    Args:
        name: By custom tiger_<data set>. It is returned, so that gin can register and
            name a task in one line.
        workdir: By default what TIGER_WORKDIR names when the task is used.
        num_user_tokens: Tokens that users are hashed to; 0 for none.
        num_items: Most recent items that the model sees.
        whole_histories: Training examples are histories with a target at every item,
            for `two_level.TwoLevelConfig`, in place of prefixes with one each. Their
            targets are as long as their inputs; held-out ones have one item.
    """
    if whole_histories and num_user_tokens:
        raise InputError(
            f"{name}: whole histories have no user token: set num_user_tokens = 0"
        )
    shop = WorkdirShop(workdir, num_user_tokens)
    preprocessors = make_preprocessors(shop, num_items=num_items)
    # The source shuffles, better than a buffer.
    source = PairSource(shop, whole_histories=whole_histories)
    return add_task(name, source, preprocessors, TigerVocabulary(shop), None)


def add_task(
    name: str,
    source: seqio.DataSource,
    preprocessors: Sequence[Any],
    vocabulary: TigerVocabulary,
    shuffle_buffer_size: int | None,
) -> str:
    """Registers a task of tokens, in place of one of that name; returns the name."""
    feature = seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=preprocessors,
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[make_beam_metric_fn(vocabulary)],
        shuffle_buffer_size=shuffle_buffer_size,
    )
    return name


@gin.register(module="tiger")
def register_tiger_mixture(name: str, rates: Mapping[str, float] | None = None) -> str:
    """Registers a mixture of tasks over one codebook; again replaces it.

    InputError if the tasks' tokens mean different things: other codebook sizes or
    numbers of user tokens, or Semantic IDs from different quantizers.

    Args:
        rates: Task name to its share of the examples; a rate of 0 or less is that
            task's number of training examples.
    """
    if not rates:
        raise InputError(f"mixture {name}: rates names no tasks")
    _check_same_codebook(name, [seqio.TaskRegistry.get(task) for task in rates])
    if name in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(
        name,
        [(t, rate if rate > 0 else count_training_pairs) for t, rate in rates.items()],
    )
    return name


def count_training_pairs(task: seqio.Task) -> float:
    """A mixing rate: every example of every task is equally likely."""
    return float(task.source.num_pairs("train"))


def _check_same_codebook(mixture: str, tasks: list[seqio.Task]) -> None:
    first = tasks[0]
    for task in tasks[1:]:
        mine, other = (
            t.output_features["targets"].vocabulary.layout for t in (first, task)
        )
        if mine != other:
            raise InputError(
                f"mixture {mixture}: {first.name} has {mine} and {task.name} has "
                f"{other}: assign their Semantic IDs with one quantizer"
            )
        made, other_made = (_quantizer_hash(t.source.shop) for t in (first, task))
        if made != other_made:
            raise InputError(
                f"mixture {mixture}: {first.name} has the codebooks {made[:12]} and "
                f"{task.name} {other_made[:12]}: assign their Semantic IDs with one "
                "quantizer"
            )
        if made == "unknown":
            say(
                f"mixture {mixture}: taking it that {first.name} and {task.name} were "
                "quantized alike; no RQ-VAE is recorded with their Semantic IDs"
            )


def _quantizer_hash(shop: Shop) -> str:
    """The content hash of the RQ-VAE that a work directory's IDs come from."""
    if not isinstance(shop, WorkdirShop):
        return "unknown"
    manifest = artifacts.load_manifest(shop.workdir / "semantic_ids", verify=False)
    return manifest.inputs.get("rqvae", "unknown")


for _data_set in DATA_SETS:
    register_tiger_task(f"tiger_{_data_set}")
