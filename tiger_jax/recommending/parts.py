"""What a recommender is made of, and reading it from a work directory."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from flax import linen as nn
from jaxtyping import Bool, Float32, Int64, UInt32

from tiger_jax.data.item_vectors import (
    load_collaborative,
    load_embeddings,
    load_quantized_vectors,
)
from tiger_jax.data.prepared import PreparedData
from tiger_jax.decoding.trie import TriePlan, make_plan, worst_case
from tiger_jax.errors import InputError
from tiger_jax.models.generator import needs_content
from tiger_jax.quantizers.quantizer import Quantizer
from tiger_jax.quantizers.store import load_quantizer
from tiger_jax.recommending.catalogue import Catalogue
from tiger_jax.recommending.item_encoder import (
    SAMPLE,
    ItemCoder,
    ItemEncoder,
    freeze_encoder,
)
from tiger_jax.recommending.searcher import NO_DENSE_HEAD, DenseWeights, Params
from tiger_jax.recommending.trained_model import load_card_and_table, load_recommender
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.hashing import hash_arrays, hash_json

PARAMS = "params.safetensors"
# A vector that lies between two codewords may go to the other one on other hardware.
_AGREEMENT = 0.97


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """What a bundle holds, beside its programs.

    Attributes:
        items: The columns of `PreparedData.items`, by item number.
        popularity: How often each item occurs in all histories.
        is_new: Items held out of the training.
        collaborative_dims: Of the vectors that the quantizer takes beside the
            embeddings; 0 if there are none.
        plan: The trie's shapes, with room for more items.
        collaborative: These vectors, kept where the model takes content vectors.
        occurrences: How often each item occurs in the histories of training.
        dense_weights: How a dense head's log p(item) counts beside log p(codes).
    """

    model: nn.Module
    params: Params
    max_items: int
    table: SemanticIdTable
    items: pa.Table
    popularity: Int64[np.ndarray, " N"]
    occurrences: Int64[np.ndarray, " N"]
    is_new: Bool[np.ndarray, " N"]
    user_hashes: UInt32[np.ndarray, " U"]
    embeddings: Float32[np.ndarray, "N E"] | None
    encoder: ItemEncoder | None
    quantizer: Quantizer | None
    collaborative_dims: int
    plan: TriePlan
    collaborative: Float32[np.ndarray, "N C"] | None = None
    dense_weights: DenseWeights = NO_DENSE_HEAD

    @classmethod
    def of_workdir(
        cls, workdir: Path, *, room: float = 1.0, for_new_items: bool = True
    ) -> "Parts":
        """Reads `data/`, `semantic_ids/` and `recommender/`, and what else there is.

        InputError if a part can't be read, or the parts don't belong together.

        Args:
            room: Factor of room to grow that the trie's shapes have.
            for_new_items: With what embeds and quantizes items that join; an encoder
                may have to be fitted again.
        """
        data = PreparedData.load(workdir / "data")
        card, table = load_card_and_table(workdir, data)
        _, _, model, params = load_recommender(workdir / "recommender")
        embeddings = encoder = quantizer = None
        is_read = for_new_items or needs_content(card.config)
        if is_read and (workdir / "embeddings").exists():
            embeddings = load_embeddings(workdir / "embeddings", data.num_items)
        if for_new_items and embeddings is not None:
            encoder = freeze_encoder(workdir / "embeddings", embeddings)
        collaborative, collaborative_dims = None, 0
        ids = artifacts.load_manifest(workdir / "semantic_ids", verify=False)
        if "rqvae" in ids.inputs and embeddings is not None:
            quantizer = load_quantizer(workdir / "rqvae")
            joined = load_quantized_vectors(embeddings, workdir / "rqvae")
            if needs_content(card.config):
                collaborative = load_collaborative(workdir / "rqvae")
            collaborative_dims = joined.shape[1] - embeddings.shape[1]
            _check_quantizer(quantizer, joined, table, workdir)
        is_new = np.zeros(data.num_items, bool)
        is_new[data.unseen_items] = True
        # 50 items with room 1.1 are 55, though 50 * 1.1 is a little more.
        capacity = math.ceil(round(data.num_items * room, 6))
        return cls(
            model=model,
            params=jax.device_get(params),
            max_items=card.max_items,
            table=table,
            items=data.items,
            popularity=np.bincount(data.histories.items, minlength=data.num_items),
            occurrences=data.occurrences,
            is_new=is_new,
            user_hashes=np.unique(data.user_hashes),
            embeddings=embeddings,
            encoder=encoder,
            quantizer=quantizer,
            collaborative_dims=collaborative_dims,
            plan=make_plan(worst_case(table.codebook_sizes, capacity)),
            collaborative=collaborative,
            dense_weights=card.dense_weights,
        )

    def catalogue(self) -> Catalogue:
        """Version 0 of the catalogue."""
        return Catalogue(
            self.table,
            self.items,
            popularity=self.popularity,
            occurrences=self.occurrences,
            is_new=self.is_new,
            embeddings=self.embeddings,
            collaborative=self.collaborative,
            plan=self.plan,
        )

    @property
    def content_facts(self) -> dict[str, Any]:
        """What a model that takes content vectors needs; nothing for another one."""
        if not needs_content(self.model.config):
            return {}
        weights = self.dense_weights
        return {
            "content_shape": self.model.content_shape,
            "dense_weight": weights.item,
            "popularity_weight": weights.popularity,
        }

    def coder(self) -> ItemCoder:
        """What gives new items their codes."""
        dims = 0 if self.embeddings is None else self.embeddings.shape[1]
        return ItemCoder(self.encoder, self.quantizer, dims, self.collaborative_dims)

    @property
    def part_hashes(self) -> dict[str, str]:
        """Names each part by its content."""
        columns = self.items.to_pydict()
        facts = {"popularity": self.popularity, "is_new": self.is_new}
        hashes = {
            PARAMS: hash_arrays(self.params),
            "semantic_ids": self.table.content_hash,
            "items": hash_json({"columns": columns, "facts": hash_arrays(facts)}),
            "occurrences.npy": hash_arrays({"": self.occurrences}),
            "user_hashes.npy": hash_arrays({"": self.user_hashes}),
        }
        if self.embeddings is not None:
            hashes["embeddings.npy"] = hash_arrays({"": self.embeddings})
        if self.collaborative is not None:
            hashes["collaborative.npy"] = hash_arrays({"": self.collaborative})
        if self.encoder is not None:
            hashes["encoder"] = self.encoder.content_hash
        if self.quantizer is not None:
            hashes["quantizer"] = hash_json(
                {
                    "kind": self.quantizer.kind,
                    "settings": self.quantizer.settings(),
                    "arrays": hash_arrays(self.quantizer.to_arrays()),
                }
            )
        return hashes


def _check_quantizer(
    quantizer: Quantizer, vectors: np.ndarray, table: SemanticIdTable, workdir: Path
) -> None:
    """Refuses a quantizer that would give the catalogue's own items other codes."""
    sample = np.linspace(0, len(vectors) - 1, min(SAMPLE, len(vectors))).astype(int)
    again = quantizer.encode(vectors[sample])
    agree = (again == table.codes[sample, :-1]).all(axis=1).mean()
    if agree < _AGREEMENT:
        raise InputError(
            f"{workdir / 'rqvae'} gives only {agree:.1%} of the items the codes that "
            "semantic_ids/ has, so new items would not fit the old: run "
            "--stage=assign_semantic_ids and the stages after it again"
        )
