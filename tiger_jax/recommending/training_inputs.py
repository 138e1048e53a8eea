"""What the stage `train_recommender` reads: histories, or token files in shards.

From a work directory's histories come the examples (resident, or streamed by a task
of `tasks.tiger`) and the users to validate on. Token files stand for both: training
streams from them, validation reads the few examples that the seed draws, and nobody's
history is loaded. The catalogue's Semantic IDs are read whole, for the trie.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt32

from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError, flag
from tiger_jax.histories import Histories
from tiger_jax.input_pipeline.item_content import SpelledItems
from tiger_jax.input_pipeline.microbatches import BucketedBatches
from tiger_jax.input_pipeline.packed_histories import PackedConfig, PackedHistories
from tiger_jax.input_pipeline.resident import ResidentConfig, ResidentInput
from tiger_jax.models.generator import has_dense_head, needs_content
from tiger_jax.recommending.codeword_embeddings import load_codebooks
from tiger_jax.recommending.recipe import Recipe
from tiger_jax.recommending.trained_model import load_content, load_table
from tiger_jax.recommending.validation import ValidationSample, draw_rows
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir import artifacts

# How `semantic_ids/` says that it was made of shards: the name of their hash.
SEMANTIC_ID_SHARDS = "shards/semantic_ids"
# Where the tasks of `tasks.tiger` look for a work directory.
_TASKS_WORKDIR = "TIGER_WORKDIR"


@dataclasses.dataclass(frozen=True)
class TrainingInputs:
    """What a recommender is trained on and chosen by.

    Attributes:
        table: The items' Semantic IDs.
        layout: How codewords and users become tokens.
        examples: Endless updates, with `save` and `restore`.
        sample: Held-out examples that a checkpoint is judged by.
        num_pairs: Training pairs of an epoch: (history, next item).
        num_examples: Examples of an epoch, if one holds several pairs.
        codebooks: What the codewords' token embeddings start from, if anything.
        content: The items' content vectors, if the model takes these.
        occurrences: Of each item in the histories of training, with `content`.
    """

    table: SemanticIdTable
    layout: TokenLayout
    examples: Any
    sample: ValidationSample
    num_pairs: int
    num_examples: int
    codebooks: list[jax.Array] | None = None
    content: Float32[np.ndarray, "N E"] | None = None
    occurrences: Int64[np.ndarray, " N"] | None = None

    @property
    def content_shape(self) -> tuple[int, int]:
        """Of the content vectors, [N E]; zeros if there are none."""
        return (0, 0) if self.content is None else self.content.shape


@contextlib.contextmanager
def tasks_read(workdir: Path) -> Iterator[None]:
    """Lets the tasks of `tasks.tiger` read this work directory, meanwhile.

    Raises:
        InputError: The user has set another one.
    """
    named = os.environ.get(_TASKS_WORKDIR)
    if named is not None and Path(named).resolve() != workdir.resolve():
        raise InputError(
            f"{_TASKS_WORKDIR}={named} makes seqio's tasks read another work "
            f"directory than --workdir={workdir}: unset it, or make both the same"
        )
    os.environ[_TASKS_WORKDIR] = str(workdir)
    try:
        yield
    finally:
        if named is None:
            del os.environ[_TASKS_WORKDIR]


def open_inputs(workdir: Path, recipe: Recipe, token_shards: Any) -> TrainingInputs:
    """Opens what a recipe trains on: histories, or token files if there are any.

    Raises:
        InputError: A folder can't be read, the token files are of other Semantic IDs,
            or were made with other settings than the recipe's.
    """
    if token_shards is not None:
        inputs = open_token_shards(token_shards, workdir, recipe)
    else:
        inputs = open_histories(workdir, recipe)
    if not recipe.codeword_embeddings:
        return inputs
    codebooks = load_codebooks(workdir / "rqvae", inputs.table)
    return dataclasses.replace(inputs, codebooks=codebooks)


def open_histories(workdir: Path, recipe: Recipe) -> TrainingInputs:
    """Reads `data/` and `semantic_ids/`."""
    data = PreparedData.load(workdir / "data")
    table = load_table(workdir, data)
    layout = TokenLayout(table.codebook_sizes, recipe.num_user_tokens)
    config, model = recipe.input[0], recipe.model
    content = load_content(workdir, data.num_items) if needs_content(model) else None
    num_pairs = num_examples = int(np.maximum(data.train.lengths - 1, 0).sum())
    examples: Any
    if content is not None and isinstance(config, ResidentConfig):
        raise InputError(
            f"{type(model).__name__} with content vectors trains on whole histories: "
            "--gin.train_recommender.resident='@packed_histories.PackedConfig()'"
        )
    if isinstance(config, ResidentConfig | PackedConfig):
        examples = make_resident(
            data.train, table.codes, layout, recipe, data.user_hashes, content
        )
        num_examples = examples.num_rows
    else:
        items = None
        if content is not None:
            items = SpelledItems.of(table.codes, layout, content, data.occurrences)
        examples = _open_stream(recipe, layout, workdir, items)
        num_examples = examples.num_examples
    if isinstance(examples, ResidentInput):
        num_pairs = examples.num_examples
    sample = ValidationSample.of_users(
        data.validation,
        table,
        layout,
        num_users=recipe.validation.num_users,
        max_items=config.max_items,
        user_hashes=data.user_hashes,
        seed=recipe.seed,
        with_items=content is not None,
    )
    return TrainingInputs(
        table,
        layout,
        examples,
        sample,
        num_pairs,
        num_examples,
        content=content,
        occurrences=data.occurrences,
    )


def make_resident(
    histories: Histories,
    codes: Int32[np.ndarray, "N T"],
    layout: TokenLayout,
    recipe: Recipe,
    user_hashes: UInt32[np.ndarray, " U"],
    content: Float32[np.ndarray, "N E"] | None,
) -> ResidentInput | PackedHistories:
    """The resident input that a recipe asks for, over some training histories."""
    config = recipe.input[0]
    if isinstance(config, PackedConfig):
        return PackedHistories(
            histories,
            codes,
            layout,
            config,
            seed=recipe.seed,
            content=content,
            ranks_items=has_dense_head(recipe.model),
        )
    return ResidentInput(
        histories,
        codes,
        layout,
        config,
        user_hashes=user_hashes,
        seed=recipe.seed,
        only_last=recipe.only_last,
    )


def find_token_shards(input: tuple[Any, ...]) -> Any:
    """The `TokenShards` that the input's task reads, or None."""
    if isinstance(input[0], ResidentConfig | PackedConfig):
        return None
    # Only here, so that the resident input trains without TensorFlow.
    from tiger_jax.input_pipeline.token_shards import token_shards_of

    return token_shards_of(input[0].task)


def open_token_shards(source: Any, workdir: Path, recipe: Recipe) -> TrainingInputs:
    """Reads `semantic_ids/`, and of the token files what validation needs.

    The users to validate on are those that `open_histories` draws.
    """
    folder = workdir / "semantic_ids"
    made_of = artifacts.load_manifest(folder, verify=False).external
    if made_of.get(SEMANTIC_ID_SHARDS) != source.semantic_ids:
        raise InputError(
            f"the token files in {source.folder} were made of other Semantic IDs than "
            f"{folder}: run --stage=assign_shards again"
        )
    config, table = recipe.input[0], SemanticIdTable.load(folder)
    if needs_content(recipe.model):
        raise InputError(
            "token files hold no content vectors: train on data/, or turn "
            "two_level.TwoLevelConfig.reads_content and dense_head off"
        )
    if config.max_items != source.max_items:
        raise InputError(
            f"the token files in {source.folder} hold up to {source.max_items} items "
            f"an example, and here they are {config.max_items}: "
            + flag("batches.SeqioConfig.max_items", source.max_items)
        )
    layout = TokenLayout(table.codebook_sizes, recipe.num_user_tokens)
    examples = _open_stream(recipe, layout, workdir)
    num_inputs, num_users = examples.buckets[-1], recipe.validation.num_users
    rows = draw_rows(source.num_pairs("validation"), num_users, recipe.seed)
    inputs, targets = source.read_examples("validation", rows, num_inputs=num_inputs)
    sample = ValidationSample.of_tokens(inputs, targets, table, layout)
    num_pairs = source.num_pairs("train")
    return TrainingInputs(table, layout, examples, sample, num_pairs, num_pairs)


def _open_stream(
    recipe: Recipe,
    layout: TokenLayout,
    workdir: Path,
    items: SpelledItems | None = None,
) -> BucketedBatches:
    from tiger_jax.input_pipeline.batches import SeqioBatches

    config, buckets = recipe.input
    stream = SeqioBatches(config, seed=recipe.seed)
    if stream.layout != layout:
        raise InputError(
            f"the task {config.task} has the token layout {stream.layout}, and "
            f"{workdir} the layout {layout}: register the task with this work "
            "directory, or train with "
            + flag("train_recommender.num_user_tokens", stream.layout.num_user_tokens)
        )
    return BucketedBatches(
        stream,
        buckets,
        max_length=stream.max_length,
        items=items,
        ranks_items=has_dense_head(recipe.model),
    )
