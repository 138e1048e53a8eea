"""Stage `export`: everything a recommender needs -> `bundle/`, one folder to serve."""

import math
from pathlib import Path

import gin
import jax
import numpy as np
import pyarrow.parquet as pq

from tiger_jax.data.item_text import ItemTextConfig
from tiger_jax.data.item_vectors import load_embeddings, load_quantized_vectors
from tiger_jax.data.prepared import PreparedData
from tiger_jax.decoding.trie.planner import make_plan, worst_case
from tiger_jax.embedding.encoders import SentenceTransformerEncoder, TfidfEncoder
from tiger_jax.embedding.tfidf import FrozenTfidf
from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.quantizers.quantizer import Quantizer
from tiger_jax.quantizers.rqvae_quantizer import load_quantizer
from tiger_jax.recommending.bundle import BUNDLE, FORMAT, Parts, save_bundle
from tiger_jax.recommending.item_encoder import ItemEncoder
from tiger_jax.recommending.programs import Shapes
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.recommending.trained_model import (
    load_card_and_table,
    load_recommender,
)
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts

# A text embedded again must come out as it was, but for the order of sums.
_TOLERANCE = 1e-3
_SAMPLE = 200
# A vector that lies between two codewords may go to the other one on other hardware.
_AGREEMENT = 0.97


@gin.configurable(module="stages")
def export(
    context: RunContext,
    *,
    num_beams: int = 50,
    normalize: str = "auto",
    batch_sizes: tuple[int, ...] = (1, 4, 16),
    max_excluded: int = 64,
    room: float = 1.5,
) -> None:
    """Writes the bundle that `Recommender.load` reads.

    Args:
        num_beams: Beams of the search, and the most items a list can have.
        normalize: See `recommendation.SearchConfig`.
        batch_sizes: Requests a program takes at once; others are filled up.
        max_excluded: Excluded items a request that cost nothing extra.
        room: Factor by which the catalogue can grow before a new export is due.

    Raises:
        InputError: The work directory holds no trained recommender, its parts don't
            belong together, or an option makes no sense.
    """
    if (
        not batch_sizes
        or min(batch_sizes) < 1
        or list(batch_sizes) != sorted(set(batch_sizes))
    ):
        raise InputError(f"export.batch_sizes must rise from 1 on, not {batch_sizes}")
    if room < 1 or max_excluded < 1:
        raise InputError("export.room and export.max_excluded must be at least 1")
    search = SearchConfig(num_beams=num_beams, normalize=normalize)
    names = ["data", "embeddings", "semantic_ids", "recommender"]
    if (context.workdir / "rqvae").exists():
        names.insert(2, "rqvae")
    run = artifacts.begin(
        context.workdir,
        BUNDLE,
        stage="export",
        inputs=names,
        config={
            "format": FORMAT,
            "search": search,
            "batch_sizes": batch_sizes,
            "max_excluded": max_excluded,
            "room": room,
        },
    )
    if run.is_current:
        return
    parts = read_parts(context.workdir, room=room)
    shapes = make_shapes(parts, search, batch_sizes, max_excluded)
    say(f"export: {2 * len(batch_sizes)} programs for CPU, GPU and TPU")
    save_bundle(run.folder, parts, shapes)
    manifest = run.commit(summary={"items": parts.table.num_items})
    size = sum(file["bytes"] for file in manifest.files.values())
    say(
        f"export: {run.final}, {size / 1e6:.1f} MB, {parts.table.num_items:,} items, "
        f"room for {parts.plan.item_capacity:,}"
    )


def make_shapes(
    parts: Parts,
    search: SearchConfig,
    batch_sizes: tuple[int, ...],
    max_excluded: int,
) -> Shapes:
    """What the programs are made for."""
    layout = parts.model.layout
    length = layout.semantic_id_length
    return Shapes(
        batch_sizes=batch_sizes,
        num_beams=search.num_beams,
        max_excluded=max_excluded,
        encoder_length=min(layout.num_user_tokens, 1) + parts.max_items * length,
        semantic_id_length=length,
        normalize=search.normalize_for(parts.model.config),
    )


def read_parts(workdir: Path, *, room: float = 1.0) -> Parts:
    """Reads what a recommender needs from a work directory.

    Args:
        workdir: With `data/`, `semantic_ids/` and `recommender/`; what else there is
            comes along.
        room: Factor of room to grow that the trie's shapes have.

    Raises:
        InputError: A part can't be read, or the parts don't belong together.
    """
    data = PreparedData.load(workdir / "data")
    folder = workdir / "recommender"
    card, table = load_card_and_table(workdir, data)
    _, _, model, params = load_recommender(folder)
    embeddings = encoder = quantizer = None
    if (workdir / "embeddings").exists():
        embeddings = load_embeddings(workdir / "embeddings", data.num_items)
        encoder = _freeze_encoder(workdir / "embeddings", embeddings)
    collaborative_dims = 0
    made_from = artifacts.load_manifest(workdir / "semantic_ids", verify=False).inputs
    if "rqvae" in made_from and embeddings is not None:
        quantizer = load_quantizer(workdir / "rqvae")
        joined = load_quantized_vectors(embeddings, workdir / "rqvae")
        collaborative_dims = joined.shape[1] - embeddings.shape[1]
        _check_quantizer(quantizer, joined, table, workdir)
    is_new = np.zeros(data.num_items, bool)
    is_new[data.unseen_items] = True
    # 50 items with room 1.1 are 55, though 50 * 1.1 is a little more.
    capacity = math.ceil(round(data.num_items * room, 6))
    return Parts(
        model=model,
        params=jax.device_get(params),
        max_items=card.max_items,
        table=table,
        items=data.items,
        popularity=np.bincount(data.histories.items, minlength=data.num_items),
        is_new=is_new,
        user_hashes=np.unique(data.user_hashes),
        embeddings=embeddings,
        encoder=encoder,
        quantizer=quantizer,
        collaborative_dims=collaborative_dims,
        plan=make_plan(worst_case(table.codebook_sizes, capacity)),
    )


def _check_quantizer(
    quantizer: Quantizer, vectors: np.ndarray, table: SemanticIdTable, workdir: Path
) -> None:
    """Refuses a quantizer that would give the catalogue's own items other codes."""
    sample = np.linspace(0, len(vectors) - 1, min(_SAMPLE, len(vectors))).astype(int)
    again = quantizer.encode(vectors[sample])
    agree = (again == table.codes[sample, :-1]).all(axis=1).mean()
    if agree < _AGREEMENT:
        raise InputError(
            f"{workdir / 'rqvae'} gives only {agree:.1%} of the items the codes that "
            "semantic_ids/ has, so new items would not fit the old: run "
            "--stage=assign_semantic_ids and the stages after it again"
        )


def _freeze_encoder(folder: Path, embeddings: np.ndarray) -> ItemEncoder | None:
    """Makes the stage's encoder fit for new items; None if vectors were brought."""
    path = folder / "encoder.json"
    if not path.exists():
        return None
    facts = artifacts.read_json(path)
    if facts["kind"] == "ready-made":
        return None
    text = ItemTextConfig(
        tuple(facts["text"]["sentences"]), facts["text"]["price_format"]
    )
    settings = {k: v for k, v in facts["encoder"].items() if k != "class"}
    if facts["kind"] == "SentenceTransformerEncoder":
        return ItemEncoder(text, SentenceTransformerEncoder(**settings))
    texts = pq.read_table(folder / "texts.parquet")["text"].to_pylist()
    if (folder / "tfidf").exists():  # of shards: fitted to some of the texts
        fitted = FrozenTfidf.load(folder / "tfidf")
    else:
        distinct = list(dict.fromkeys(texts))
        fitted = TfidfEncoder(**settings).fit(distinct, seed=facts["seed"])
    sample = np.linspace(0, len(texts) - 1, min(_SAMPLE, len(texts))).astype(int)
    again = fitted.encode([texts[row] for row in sample])
    if np.abs(again - embeddings[sample]).max() > _TOLERANCE:
        raise InputError(
            f"{folder}: fitting TF-IDF to the same texts gives other vectors here, so "
            "new items would not fit the old: run --stage=embed_items and the stages "
            "after it again on this machine"
        )
    return ItemEncoder(text, fitted)
