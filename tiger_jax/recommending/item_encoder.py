"""New items' fields to embeddings, as the items of the training were embedded."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from tiger_jax.data.item_text import ItemTextConfig, build_item_texts
from tiger_jax.embedding import encoders
from tiger_jax.embedding.tfidf import FrozenTfidf
from tiger_jax.errors import InputError
from tiger_jax.progress import say
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
        encoder: A fitted TF-IDF, or another encoder, which is loaded at use.
    """

    text: ItemTextConfig
    encoder: FrozenTfidf | encoders.Encoder

    def encode(self, items: pa.Table) -> Float32[np.ndarray, "N E"]:
        """Embeds the rows of a table with the columns of the catalogue's items.

        Raises:
            InputError: An item has no text, or the encoder can't be loaded.
        """
        texts = build_item_texts(items, self.text)
        for item_id, text in zip(items["item_id"].to_pylist(), texts, strict=True):
            if not text:
                raise InputError(
                    f"item {item_id!r} has no text to embed: give it a title, or an "
                    "embedding of its own"
                )
        if isinstance(self.encoder, FrozenTfidf):
            return self.encoder.encode(texts)
        encode = self.encoder.prepare(texts, seed=0)
        size = self.encoder.batch_size
        parts = [encode(texts[i : i + size]) for i in range(0, len(texts), size)]
        return np.concatenate(parts).astype(np.float32)

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
        write_json(folder / _FACTS, facts)

    @classmethod
    def load(cls, folder: Path) -> "ItemEncoder":
        """Reads what `save` wrote; InputError if it isn't whole."""
        with reading(folder):
            facts = read_json(folder / _FACTS)
            text = _read_template(facts["text"])
            if facts["kind"] == "TfidfEncoder":
                return cls(text, FrozenTfidf.load(folder))
            return cls(text, encoders.encoder_from_facts(facts, folder / _FACTS))


def _read_template(text: Mapping[str, Any]) -> ItemTextConfig:
    return ItemTextConfig(tuple(text["sentences"]), text["price_format"])


def freeze_encoder(folder: Path, embeddings: np.ndarray) -> ItemEncoder | None:
    """Makes what filled `embeddings/` fit for new items; None if vectors were brought.

    Raises:
        InputError: Fitted again, it gives other vectors than `embeddings`.
    """
    path = folder / "encoder.json"
    if not path.exists():
        return None
    facts = read_json(path)
    if facts["kind"] == "ready-made":
        return None
    text = _read_template(facts["text"])
    encoder = encoders.encoder_from_facts(facts, path)
    if isinstance(encoder, encoders.SentenceTransformerEncoder):
        return ItemEncoder(text, encoder)
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
