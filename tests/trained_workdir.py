"""A work directory up to `recommender/`, with a tiny model that nobody trained."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
from small_workdir import small_table

from tiger_jax.data.item_vectors import join_text
from tiger_jax.data.prepared import PreparedData, hash_user_ids
from tiger_jax.data.splits import Splits
from tiger_jax.data.statistics import compute_statistics
from tiger_jax.histories import Histories
from tiger_jax.models.generator import (
    GeneratorConfig,
    build_model,
    init_params,
    needs_content,
)
from tiger_jax.models.tiger import TigerConfig
from tiger_jax.models.two_level import TwoLevelConfig
from tiger_jax.quantizers.quantizer import Quantizer
from tiger_jax.quantizers.residual_kmeans import ResidualKMeans
from tiger_jax.quantizers.store import save_quantizer
from tiger_jax.recommending.searcher import NO_DENSE_HEAD, DenseWeights
from tiger_jax.recommending.trained_model import (
    CHECKPOINTS,
    DENSE_WEIGHT,
    POPULARITY_WEIGHT,
    ModelCard,
    load_content,
)
from tiger_jax.semantic_ids.collisions import add_collision_level
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.training.checkpoints import Checkpointer
from tiger_jax.training.train_state import TrainState
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import save_arrays

NUM_USERS, NUM_ITEMS, MAX_ITEMS = 45, 50, 5
TINY_TWO_LEVEL = TwoLevelConfig(
    num_layers=1,
    num_depth_layers=1,
    d_model=8,
    num_heads=2,
    mlp_dim=16,
    reads_content=True,
    dense_head=True,
    item_embeddings=True,
)


def short_histories(seed: int = 0) -> Histories:
    """3 to 7 items a user, none twice: few shapes to compile for."""
    rng = np.random.default_rng(seed)
    return Histories.from_lists(
        rng.choice(NUM_ITEMS, rng.integers(3, 8), replace=False).tolist()
        for _ in range(NUM_USERS)
    )


def make_trained_workdir(
    workdir: Path,
    *,
    seed: int = 0,
    with_quantizer: bool = False,
    collaborative_dims: int = 0,
    summary: dict[str, Any] | None = None,
    model: GeneratorConfig | None = None,
    num_user_tokens: int = 11,
    dense_weights: DenseWeights = NO_DENSE_HEAD,
) -> Path:
    """Writes data/, embeddings/, semantic_ids/ and recommender/, as stages do.

    With a quantizer, there is rqvae/ too, and the Semantic IDs are what it gives,
    of the embeddings alone or with vectors of `collaborative_dims` joined to them.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    table, histories = small_table(NUM_ITEMS, seed), short_histories(seed)
    if with_quantizer:
        vectors, joined = embeddings, np.empty((NUM_ITEMS, 0), np.float32)
        if collaborative_dims:
            shape = (NUM_ITEMS, collaborative_dims)
            joined = rng.normal(size=shape).astype(np.float32)
            vectors = join_text(embeddings, joined)
        quantizer = ResidualKMeans((8, 8, 8)).fit(vectors, seed=seed)
        table = _quantize(quantizer, vectors, table)
    empty = np.empty(0, np.int32)
    user_ids = [f"user-{number}" for number in range(NUM_USERS)]
    statistics = compute_statistics(
        histories, Splits.leave_one_out(histories, empty), num_items=NUM_ITEMS
    )
    data = PreparedData(
        name="small",
        items=pa.table(
            {
                "item_id": list(table.item_ids),
                "title": [
                    f"Thing of sort {n % 7} number {n}" for n in range(NUM_ITEMS)
                ],
                "brand": ["Acme" if n % 2 else "" for n in range(NUM_ITEMS)],
                "categories": [[["All", f"Shelf {n % 5}"]] for n in range(NUM_ITEMS)],
            }
        ),
        user_ids=tuple(user_ids),
        user_hashes=hash_user_ids(user_ids),
        histories=histories,
        items_file_rows=np.arange(NUM_ITEMS),
        unseen_items=empty,
        statistics={**statistics, "notes": []},
        ceiling={"recall@10": 0.8, "ndcg@10": 0.5},
    )
    run = artifacts.begin(workdir, "data", stage="prepare_data", config={"seed": seed})
    data.save(run.folder)
    run.commit()
    run = artifacts.begin(
        workdir, "embeddings", stage="embed_items", inputs=("data",), config={}
    )
    save_arrays(run.folder, {"embeddings": embeddings})
    run.commit()
    if with_quantizer:
        run = artifacts.begin(
            workdir, "rqvae", stage="train_rqvae", inputs=("embeddings",), config={}
        )
        save_quantizer(quantizer, run.folder)
        if collaborative_dims:
            save_arrays(run.folder, {"collaborative": joined})
        run.commit()
    run = artifacts.begin(
        workdir,
        "semantic_ids",
        stage="assign_semantic_ids",
        inputs=("embeddings", "rqvae") if with_quantizer else ("embeddings",),
        config={},
    )
    table.save(run.folder)
    run.commit()
    run = artifacts.begin(
        workdir,
        "recommender",
        stage="train_recommender",
        inputs=("data", "semantic_ids"),
        config={"seed": seed, "validation": {"num_users": 7}},
        opaque=(CHECKPOINTS,),
    )
    config = model or TigerConfig(
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_model=8,
        num_heads=2,
        head_dim=4,
        mlp_dim=16,
    )
    card = ModelCard(
        config=config,
        layout=TokenLayout(table.codebook_sizes, num_user_tokens=num_user_tokens),
        max_items=MAX_ITEMS,
        best_step=0,
        best_metrics={
            DENSE_WEIGHT: dense_weights.item,
            POPULARITY_WEIGHT: dense_weights.popularity,
        },
        semantic_ids=table.content_hash,
    )
    if needs_content(config):
        shape = load_content(workdir, NUM_ITEMS).shape
        card = dataclasses.replace(card, content_shape=shape)
    model = build_model(config, card.layout, card.content_shape)
    init = jax.jit(functools.partial(init_params, model))
    params = nn.meta.unbox(init(jax.random.key(seed)))
    state = TrainState(params, optax.sgd(0.1).init(params), jnp.int32(0))
    checkpointer = Checkpointer(run.folder / CHECKPOINTS)
    checkpointer.save(state, _NoInput(), {})
    checkpointer.close()
    card.save(run.folder)
    run.commit(summary=summary, contents={"params": jax.device_get(params)})
    return workdir


def _quantize(
    quantizer: Quantizer, embeddings: np.ndarray, table: SemanticIdTable
) -> SemanticIdTable:
    """The same items with the codes that a quantizer gives them."""
    codes = add_collision_level(
        quantizer.encode(embeddings),
        table.item_ids,
        collision_level_size=table.codebook_sizes[-1],
    )
    return dataclasses.replace(table, codes=codes)


@dataclasses.dataclass
class _NoInput:
    def save(self, path) -> None:
        (path / "position.json").write_text("{}")
