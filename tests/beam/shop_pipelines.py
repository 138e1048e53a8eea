"""A small shop through every pipeline, and through the local stages."""

import functools

import numpy as np

from tiger_jax.beam.assign import assign, load_table
from tiger_jax.beam.embed import embed
from tiger_jax.beam.prepare import prepare, read_histories
from tiger_jax.beam.raw import write_raw_shards
from tiger_jax.beam.runner import RunnerConfig
from tiger_jax.beam.tokens import make_tokens
from tiger_jax.data.item_text import ItemTextConfig, build_item_texts
from tiger_jax.data.prepare import prepare_shop
from tiger_jax.data.splits import SplitsConfig
from tiger_jax.data.synthetic import SyntheticShopConfig, generate_shop
from tiger_jax.embedding.embed import embed_texts
from tiger_jax.embedding.encoders import TfidfEncoder
from tiger_jax.input_pipeline.pair_source import PairSource, Shop
from tiger_jax.input_pipeline.pairs import SPLITS
from tiger_jax.input_pipeline.preprocessors import make_preprocessors
from tiger_jax.input_pipeline.quiet_tensorflow import tf
from tiger_jax.input_pipeline.token_shards import TokenShards
from tiger_jax.quantizers.residual_kmeans import ResidualKMeans
from tiger_jax.quantizers.store import save_quantizer
from tiger_jax.semantic_ids.collisions import add_collision_level
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.vector_shards import read_vectors

ENCODER = TfidfEncoder(dims=16)
SEED = 3
NUM_USER_TOKENS = 10


def small_shop(seed=0):
    return generate_shop(
        SyntheticShopConfig(num_items=120, num_users=150, max_history=30, seed=seed)
    )


class LocalShop:
    """What the local stages make of a shop."""

    def __init__(self, shop, folder, *, interactions, unseen_share=0.0, quantizer=None):
        self.shop = shop
        self.interactions = interactions
        self.splits = SplitsConfig(unseen_share)
        self.data = prepare_shop(shop, interactions, self.splits, seed=SEED)
        texts = build_item_texts(self.data.items, ItemTextConfig())
        self.embeddings = embed_texts(texts, ENCODER, folder / "chunks", seed=SEED)
        config = quantizer or ResidualKMeans((4, 4), max_iterations=5)
        fitted = config.fit(self.embeddings, seed=SEED)
        (folder / "work").mkdir(exist_ok=True)
        run = artifacts.begin(folder / "work", "rqvae", stage="train_rqvae", config={})
        if not run.is_current:
            save_quantizer(fitted, run.folder)
            run.commit()
        self.rqvae = folder / "work" / "rqvae"
        codes = fitted.encode(self.embeddings)
        full = add_collision_level(codes, self.data.item_ids)
        self.table = SemanticIdTable(
            full, (*fitted.codebook_sizes, 256), codes.shape[1], self.data.item_ids
        )
        self.layout = TokenLayout(self.table.codebook_sizes, NUM_USER_TOKENS)

    @functools.cached_property
    def examples(self):
        """Of each split, a matrix: a row is the inputs' tokens and the targets'."""
        data = self.data
        shop = Shop(
            data.train,
            data.validation,
            data.test,
            data.user_hashes,
            self.table,
            self.layout,
        )
        found = {}
        for split in SPLITS:
            dataset = PairSource(shop).get_dataset(split, shuffle=False)
            for preprocess in make_preprocessors(shop):
                dataset = preprocess(dataset)
            found[split] = read_matrix(dataset, self.layout)
        return found


class ShardedShop:
    """What the pipelines make of the same."""

    def __init__(self, local, folder, *, shards, workers=1, runner=None):
        runner = runner or RunnerConfig(workers=workers)
        how = {"num_shards": shards, "runner": runner}
        self.folder = folder
        self.raw = write_raw_shards(local.shop, folder / "raw", num_shards=shards + 1)
        self.data = prepare(
            self.raw,
            folder / "data",
            interactions=local.interactions,
            splits=local.splits,
            seed=SEED,
            **how,
        )
        self.embeddings = embed(
            self.data,
            folder / "embedded",
            text=ItemTextConfig(),
            encoder=ENCODER,
            seed=SEED,
            **how,
        )
        self.semantic_ids = assign(
            self.embeddings, local.rqvae, folder / "semantic_ids", runner=runner
        )
        self.tokens = make_tokens(
            self.data,
            self.semantic_ids,
            folder / "tokens",
            num_user_tokens=NUM_USER_TOKENS,
            max_items=20,
            runner=runner,
        )

    def all_shards(self):
        """Every folder that the pipelines wrote, by name."""
        return {
            "items": self.data.items,
            "histories": self.data.histories,
            "embeddings": self.embeddings,
            "semantic_ids": self.semantic_ids,
            **self.tokens,
        }


def assert_equal(found, local):
    """Every array, text and example of the pipelines is that of the local stages."""
    assert found.data.items.read().equals(local.data.items)
    whole = found.data.histories.read()
    assert tuple(whole["user_id"].to_pylist()) == local.data.user_ids
    np.testing.assert_array_equal(whole["user_hash"].to_numpy(), local.data.user_hashes)
    histories = read_histories(whole)
    np.testing.assert_array_equal(histories.items, local.data.histories.items)
    np.testing.assert_array_equal(histories.offsets, local.data.histories.offsets)
    rows = np.load(found.data.folder / "items_file_rows.npy")
    np.testing.assert_array_equal(rows, local.data.items_file_rows)
    np.testing.assert_array_equal(found.data.unseen_items, local.data.unseen_items)
    counted = ("users", "items", "interactions", "k_core", "unseen_items")
    counted += ("raw_users", "raw_items", "raw_interactions")
    for name in (*counted, "users_with_too_short_history"):
        assert found.data.facts[name] == local.data.statistics[name], name

    embedded = found.embeddings.read()
    np.testing.assert_array_equal(read_vectors(embedded, "embedding"), local.embeddings)
    table = load_table(found.semantic_ids)
    assert table.content_hash == local.table.content_hash
    assert_same_examples(found, local)


def assert_same_examples(found, local):
    """Held-out examples in the users' order; training examples in any."""
    files = TokenShards(found.folder / "tokens", cycle_length=1)
    assert files.layout == local.layout
    for split, expected in local.examples.items():
        read = read_matrix(files.get_dataset(split, shuffle=False), files.layout)
        assert files.num_pairs(split) == len(expected)
        if split == "train":
            expected, read = in_some_order(expected), in_some_order(read)
        np.testing.assert_array_equal(read, expected, split)


def read_matrix(dataset, layout):
    """All examples of a data set, a row each."""
    lengths = {
        "inputs": 1 + 20 * layout.semantic_id_length,
        "targets": layout.semantic_id_length,
    }
    dataset = dataset.map(lambda e: {n: tf.cast(e[n], tf.int32) for n in lengths})
    batches = dataset.padded_batch(1024, {n: [k] for n, k in lengths.items()})
    rows = [np.hstack([b[n] for n in lengths]) for b in batches.as_numpy_iterator()]
    return np.concatenate(rows)


def in_some_order(matrix):
    """The same rows, in an order that they alone decide."""
    return matrix[np.lexsort(matrix.T)]


def hashes(shop):
    return {name: s.content_hash for name, s in shop.all_shards().items()}
