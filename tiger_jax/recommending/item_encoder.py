"""New items' fields to embeddings, as the items of the training were embedded."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from tiger_jax.data.item_text import ItemTextConfig, build_item_texts
from tiger_jax.embedding.encoders import SentenceTransformerEncoder
from tiger_jax.embedding.tfidf import FrozenTfidf
from tiger_jax.errors import InputError
from tiger_jax.workdir import artifacts

_FACTS = "item_encoder.json"
KINDS = ("TfidfEncoder", "SentenceTransformerEncoder")


@dataclasses.dataclass(frozen=True, eq=False)
class ItemEncoder:
    """The text template and the encoder, frozen.

    Attributes:
        text: The sentence about an item.
        encoder: A fitted TF-IDF, or the sentence encoder's name and settings.
    """

    text: ItemTextConfig
    encoder: FrozenTfidf | SentenceTransformerEncoder

    def encode(self, items: pa.Table) -> Float32[np.ndarray, "N E"]:
        """Embeds items.

        Args:
            items: A table with the columns of the catalogue's items.

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
            facts["arrays"] = artifacts.hash_arrays(arrays)
        else:
            facts["encoder"] = self.encoder
        return artifacts.hash_json(facts)

    def save(self, folder: Path) -> None:
        """Writes the template, and the encoder or its settings."""
        folder.mkdir(parents=True, exist_ok=True)
        facts: dict[str, Any] = {"text": dataclasses.asdict(self.text)}
        if isinstance(self.encoder, FrozenTfidf):
            self.encoder.save(folder)
            facts["kind"] = "TfidfEncoder"
        else:
            facts["kind"] = "SentenceTransformerEncoder"
            facts["settings"] = dataclasses.asdict(self.encoder)
        artifacts.write_json(folder / _FACTS, facts)

    @classmethod
    def load(cls, folder: Path) -> "ItemEncoder":
        """Reads what `save` wrote.

        Raises:
            InputError: There is no whole encoder in the folder.
        """
        try:
            facts = artifacts.read_json(folder / _FACTS)
            text = facts["text"]
            config = ItemTextConfig(tuple(text["sentences"]), text["price_format"])
            if facts["kind"] == "TfidfEncoder":
                return cls(config, FrozenTfidf.load(folder))
            return cls(config, SentenceTransformerEncoder(**facts["settings"]))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"no encoder can be read from {folder} ({error})"
            ) from error
