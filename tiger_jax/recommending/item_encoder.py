"""From a new item to its embedding and codewords, by what the training left frozen."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int32

from tiger_jax.data.item_text import ItemTextConfig, build_item_texts
from tiger_jax.data.item_vectors import join_text
from tiger_jax.embedding import encoders
from tiger_jax.embedding.tfidf import FrozenTfidf
from tiger_jax.errors import InputError
from tiger_jax.progress import say
from tiger_jax.quantizers.quantizer import Quantizer
from tiger_jax.recommending.new_items import NewItem
from tiger_jax.workdir.hashing import hash_arrays, hash_json
from tiger_jax.workdir.json_files import read_json, write_json
from tiger_jax.workdir.reading import reading

_FACTS = "item_encoder.json"
SAMPLE = 200
# A text embedded again must come out as it was, but for the order of sums.
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class ItemEncoder:
    """The text template and the encoder, frozen.

    Attributes:
        encoder: A fitted TF-IDF, or another encoder, which is loaded at first use.
        model_hash: Of the folder that holds the encoder's model, if one does.
    """

    text: ItemTextConfig
    encoder: FrozenTfidf | encoders.Encoder
    model_hash: str = ""

    def encode(self, items: pa.Table) -> Float32[np.ndarray, "N E"]:
        """Embeds rows of the catalogue's columns; InputError if one has no text."""
        texts = build_item_texts(items, self.text)
        for item_id, text in zip(items["item_id"].to_pylist(), texts, strict=True):
            if not text:
                raise InputError(
                    f"item {item_id!r} has no text to embed: give it a title, or an "
                    "embedding of its own"
                )
        if isinstance(self.encoder, FrozenTfidf):
            return self.encoder.encode(texts)
        size = self.encoder.batch_size
        parts = [self._encode(texts[i : i + size]) for i in range(0, len(texts), size)]
        return np.concatenate(parts).astype(np.float32)

    @functools.cached_property
    def _encode(self) -> encoders.EncodeFn:
        """Loads the encoder, once, from this machine alone."""
        assert not isinstance(self.encoder, FrozenTfidf)
        encoder = self.encoder
        if isinstance(encoder, encoders.SentenceTransformerEncoder):
            encoder.check_local(self.model_hash)
            encoder = dataclasses.replace(encoder, is_local=True)
        return encoder.prepare([], seed=0)

    @property
    def content_hash(self) -> str:
        """Names the encoder by its values."""
        facts: dict[str, Any] = {"text": self.text}
        if isinstance(self.encoder, FrozenTfidf):
            arrays = dataclasses.asdict(self.encoder)
            facts["words"] = [arrays.pop("words"), arrays.pop("max_ngram")]
            facts["arrays"] = hash_arrays(arrays)
        else:
            facts["encoder"] = self.encoder
            facts |= {"model_hash": self.model_hash} if self.model_hash else {}
        return hash_json(facts)

    def save(self, folder: Path) -> None:
        """Writes the template, and the encoder or its settings."""
        folder.mkdir(parents=True, exist_ok=True)
        facts: dict[str, Any] = {"text": dataclasses.asdict(self.text)}
        if isinstance(self.encoder, FrozenTfidf):
            self.encoder.save(folder)
            facts["kind"] = "TfidfEncoder"
        else:
            facts |= encoders.encoder_facts(self.encoder)
            facts["model_hash"] = self.model_hash
        write_json(folder / _FACTS, facts)

    @classmethod
    def load(cls, folder: Path) -> "ItemEncoder":
        """Reads what `save` wrote; InputError if it isn't whole."""
        with reading(folder):
            facts = read_json(folder / _FACTS)
            text = _read_template(facts["text"])
            if facts["kind"] == "TfidfEncoder":
                return cls(text, FrozenTfidf.load(folder))
            encoder = encoders.encoder_from_facts(facts, folder / _FACTS)
            return cls(text, encoder, facts.get("model_hash", ""))


def _read_template(text: Mapping[str, Any]) -> ItemTextConfig:
    return ItemTextConfig(tuple(text["sentences"]), text["price_format"])


def freeze_encoder(folder: Path, embeddings: np.ndarray) -> ItemEncoder | None:
    """Makes what filled `embeddings/` fit for new items; None if vectors were brought.

    InputError if, fitted again, it gives other vectors than `embeddings`.
    """
    path = folder / "encoder.json"
    made = path.exists()
    facts: dict[str, Any] = read_json(path) if made else {"kind": "ready-made"}
    if facts["kind"] == "ready-made":
        return None
    text = _read_template(facts["text"])
    encoder = encoders.encoder_from_facts(facts, path)
    if isinstance(encoder, encoders.SentenceTransformerEncoder):
        revision = encoder.revision or encoder.cached_revision()
        encoder = dataclasses.replace(encoder, revision=revision)
        return ItemEncoder(text, encoder, encoder.hashes().get("model", ""))
    texts = pq.read_table(folder / "texts.parquet")["text"].to_pylist()
    sample = np.linspace(0, len(texts) - 1, min(SAMPLE, len(texts))).astype(int)
    sampled = [texts[row] for row in sample]
    if not isinstance(encoder, encoders.TfidfEncoder):
        again = encoder.prepare(sampled, seed=facts["seed"])(sampled)
        if np.abs(again - embeddings[sample]).max() > _TOLERANCE:
            say(
                f"{folder}: a text's vector depends on the other texts, so new items "
                "will have to bring their embeddings"
            )
            return None
        return ItemEncoder(text, encoder)
    if (folder / "tfidf").exists():  # of shards: fitted to some of the texts
        fitted = FrozenTfidf.load(folder / "tfidf")
    else:
        distinct = list(dict.fromkeys(texts))
        fitted = encoder.fit(distinct, seed=facts["seed"])
    if np.abs(fitted.encode(sampled) - embeddings[sample]).max() > _TOLERANCE:
        raise InputError(
            f"{folder}: fitting TF-IDF to the same texts gives other vectors here, so "
            "new items would not fit the old: run --stage=embed_items and the stages "
            "after it again on this machine"
        )
    return ItemEncoder(text, fitted)


@dataclasses.dataclass(frozen=True, eq=False)
class ItemCoder:
    """Embeds and quantizes as the items of the training were.

    Attributes:
        encoder: None where the embeddings were ready-made: then items bring theirs.
        quantizer: None where the codes came from elsewhere: then nothing can join.
        num_dims: E, of the catalogue's embeddings.
        collaborative_dims: C. If not 0, the quantizer also takes a vector of what an
            item is bought with, which a new item has by its neighbours in text.
    """

    encoder: ItemEncoder | None
    quantizer: Quantizer | None
    num_dims: int
    collaborative_dims: int = 0

    def embed(
        self, items: Sequence[NewItem], table: pa.Table
    ) -> Float32[np.ndarray, "n E"]:
        """Each item's own vector, or what the encoder makes of its row of `table`.

        InputError if a vector doesn't fit, or can't be made.
        """
        vectors = np.zeros((len(items), self.num_dims), np.float32)
        to_encode = [row for row, item in enumerate(items) if item.embedding is None]
        for row, item in enumerate(items):
            if item.embedding is not None:
                vectors[row] = self._check(item)
        if not to_encode:
            return vectors
        if self.encoder is None:
            raise InputError(
                f"item {items[to_encode[0]].item_id!r} brings no embedding, and this "
                "bundle has no encoder to make one, since its embeddings were "
                f"ready-made: give it an embedding of {self.num_dims} numbers, made "
                "as the others were"
            )
        vectors[to_encode] = self.encoder.encode(table.take(to_encode))
        return vectors

    def encode(
        self,
        embeddings: Float32[np.ndarray, "n E"],
        collaborative: Float32[np.ndarray, "n C"] | None = None,
    ) -> Int32[np.ndarray, "n L"]:
        """The learned codewords of embeddings; InputError if there is no quantizer.

        Args:
            collaborative: What is joined to them, if the quantizer takes such; None is
                zeros, where the catalogue keeps none to estimate them from.
        """
        if self.quantizer is None:
            raise InputError(
                "this bundle has no quantizer, since its Semantic IDs were not made by "
                "one here: new items can't get codes"
            )
        if not self.collaborative_dims:
            return self.quantizer.encode(embeddings)
        if collaborative is None:
            shape = len(embeddings), self.collaborative_dims
            collaborative = np.zeros(shape, np.float32)
        return self.quantizer.encode(join_text(embeddings, collaborative))

    def _check(self, item: NewItem) -> Float32[np.ndarray, " E"]:
        try:
            vector = np.asarray(item.embedding, np.float32)
        except (TypeError, ValueError, OverflowError):
            vector = np.empty(0, np.float32)
        if vector.shape != (self.num_dims,):
            raise InputError(
                f"item {item.item_id!r}: the embedding must be {self.num_dims} "
                f"numbers, and has the shape {list(vector.shape)}"
            )
        if not np.isfinite(vector).all():
            raise InputError(f"item {item.item_id!r}: the embedding isn't finite")
        return vector
