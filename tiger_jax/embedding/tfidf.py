"""A fitted TF-IDF embedding as plain arrays: the same words, weights and projection."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from tiger_jax.vectors import to_unit_length
from tiger_jax.workdir.arrays import load_arrays, save_arrays
from tiger_jax.workdir.json_files import read_json, write_json

# Single characters count: they tell size S from L, and volume 2 from 3.
_WORD = re.compile(r"\w+")
# Scripts without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Japanese,
# Chinese.
_SPACELESS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
)
_RUN_OR_WORD = re.compile(rf"([{_SPACELESS}]+)|(?:(?![{_SPACELESS}])\w)+")

_FACTS, _ARRAYS = "tfidf.json", ("idf", "components", "mean", "rotation")


@dataclass(frozen=True, eq=False)
class FrozenTfidf:
    """Embeds texts of today and of later alike.

    Attributes:
        words: The vocabulary; a text's other words don't count.
        max_ngram: Longest run of words that counts as one.
        idf: Inverse document frequency of each word.
        components: The truncated SVD's directions.
        mean: Mean direction of the texts that were fitted: what a text without words
            is taken for.
        rotation: Makes all dimensions alike in variance.
        cuts_scripts: Scripts without spaces are cut (`find_words`); what was fitted
            before that took whole phrases for words.
    """

    words: tuple[str, ...]
    max_ngram: int
    idf: Float32[np.ndarray, " W"]
    components: Float32[np.ndarray, "E W"]
    mean: Float32[np.ndarray, " E"]
    rotation: Float32[np.ndarray, "E E"]
    cuts_scripts: bool = True

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "B E"]:
        """Embeds texts; rows have length 1."""
        vectors = np.asarray(self._vectorizer.transform(texts) @ self._directions)
        vectors[~vectors.any(axis=1)] = self.mean @ self.rotation
        return to_unit_length(vectors)

    @cached_property
    def _directions(self) -> Float32[np.ndarray, "W E"]:
        """Projection and rotation in one, so that texts go through a sparse product.

        It sums each row by itself. BLAS rounds a row by how many stand beside it, and a
        text's vector must not depend on its company.
        """
        return self.components.T @ self.rotation

    @cached_property
    def _vectorizer(self) -> Any:
        vectorizer = make_vectorizer(
            self.max_ngram,
            vocabulary=list(self.words),
            tokenizer=find_words if self.cuts_scripts else _WORD.findall,
        )
        vectorizer.idf_ = self.idf
        return vectorizer

    def save(self, folder: Path) -> None:
        save_arrays(folder, {name: getattr(self, name) for name in _ARRAYS})
        facts = {
            "words": self.words,
            "max_ngram": self.max_ngram,
            "cuts_scripts": self.cuts_scripts,
        }
        write_json(folder / _FACTS, facts)

    @classmethod
    def load(cls, folder: Path) -> "FrozenTfidf":
        """Reads what `save` wrote; OSError, ValueError or KeyError if it isn't."""
        facts = read_json(folder / _FACTS)
        return cls(
            tuple(facts["words"]),
            int(facts["max_ngram"]),
            **load_arrays(folder, _ARRAYS),
            cuts_scripts=bool(facts.get("cuts_scripts", False)),
        )


def find_words(text: str) -> list[str]:
    """Finds the words of a text; in scripts without spaces, characters and pairs.

    Examples:
        >>> find_words("soap n5 红色香皂")
        ['soap', 'n5', '红', '色', '香', '皂', '红色', '色香', '香皂']
    """
    words = []
    for found in _RUN_OR_WORD.finditer(text):
        if run := found[1]:
            words += [*run, *map("".join, itertools.pairwise(run))]
        else:
            words.append(found[0])
    return words


def make_vectorizer(max_ngram: int, **settings: Any) -> Any:
    """scikit-learn's TF-IDF, with the settings that never change."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        **{"tokenizer": find_words, **settings},
        token_pattern=None,
        ngram_range=(1, max_ngram),
        sublinear_tf=True,
        dtype=np.float32,
    )
