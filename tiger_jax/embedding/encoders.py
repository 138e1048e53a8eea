"""Encoders: texts to vectors, by TF-IDF or by a sentence encoder.

Each encoder is its own config: a frozen dataclass to choose and set in gin.
"""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from tiger_jax.config import config
from tiger_jax.embedding.tfidf import FrozenTfidf, make_vectorizer
from tiger_jax.errors import InputError
from tiger_jax.extensions import class_name, find_class
from tiger_jax.progress import say
from tiger_jax.vectors import to_unit_length
from tiger_jax.workdir.hashing import hash_file, hash_json
from tiger_jax.workdir.json_files import ADDED_LATER, canonical

EncodeFn = Callable[[Sequence[str]], np.ndarray]
"""Texts -> float32[len(texts), E]."""


@runtime_checkable
class Encoder(Protocol):
    """What `embed_texts` needs."""

    @property
    def batch_size(self) -> int:
        """How many texts are encoded at a time."""

    @property
    def texts_per_chunk(self) -> int | None:
        """How many texts an interruption may cost; None if all count as one."""

    def describe(self) -> str:
        """A few words for the user."""

    def hashes(self) -> dict[str, str]:
        """Hashes of the files that decide the vectors, by what they are."""

    def prepare(self, texts: Sequence[str], *, seed: int) -> EncodeFn:
        """Loads the model, or fits it to all the texts."""


@config("encoders")
class TfidfEncoder:
    """TF-IDF and a truncated SVD (latent semantic analysis): scikit-learn alone.

    Fitted to the texts at hand, so that vectors of two runs over different
    catalogues can't be compared. Rows have length 1, and no dimension stands out; a
    text without words gets the mean direction of the others, since zero has none.
    Chinese, Japanese, Thai and their kin count by characters and pairs of them.

    Attributes:
        dims: Dimensions E; fewer if there are fewer distinct words or texts.
        max_words: The most frequent words that count.
        max_ngram: Longest run of words that counts as one; 1 is single words.
    """

    dims: int = 384
    max_words: int = 50_000
    max_ngram: int = 1

    @property
    def batch_size(self) -> int:
        """Encoding is a sparse product: large batches cost nothing."""
        return 4096

    @property
    def texts_per_chunk(self) -> None:
        """The fit is most of the work, and must be that of one run."""

    def describe(self) -> str:
        return f"TF-IDF with truncated SVD to {self.dims} dimensions"

    def hashes(self) -> dict[str, str]:
        """See `Encoder`: the texts, an input of the stage, decide everything."""
        return {}

    def prepare(self, texts: Sequence[str], *, seed: int) -> EncodeFn:
        return self.fit(texts, seed=seed).encode

    def fit(self, texts: Sequence[str], *, seed: int) -> FrozenTfidf:
        """Fits words, weights and projection; InputError if the texts have no words."""
        from sklearn.decomposition import TruncatedSVD

        if min(self.dims, self.max_words, self.max_ngram) < 1:
            raise InputError(f"{self}: every number must be at least 1")
        vectorizer = make_vectorizer(self.max_ngram, max_features=self.max_words)
        try:
            weights = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise InputError(
                f"the items' texts can't be embedded ({error}): they need titles or "
                "other fields that ItemTextConfig.sentences names; or bring ready "
                "vectors with --embeddings"
            ) from error
        dims = min(self.dims, *weights.shape)
        say(f"TF-IDF: {weights.shape[1]:,} words of {weights.shape[0]:,} texts")
        svd = TruncatedSVD(dims, random_state=seed)
        mean = to_unit_length(svd.fit_transform(weights)).mean(axis=0)
        # The SVD's dimensions fall off in variance, and whoever standardises each of
        # them (an RQ-VAE does) would blow up the least telling ones. After a random
        # rotation all are alike, as in a neural encoder's vectors; distances stay.
        gaussian = np.random.default_rng(seed).normal(size=(dims, dims))
        rotation = np.linalg.qr(gaussian)[0].astype(np.float32)
        return FrozenTfidf(
            words=tuple(vectorizer.get_feature_names_out().tolist()),
            max_ngram=self.max_ngram,
            idf=vectorizer.idf_.astype(np.float32),
            components=svd.components_.astype(np.float32),
            mean=mean,
            rotation=rotation,
        )


@config("encoders")
class SentenceTransformerEncoder:
    """A model of the Sentence-Transformers library; Sentence-T5 in the paper.

    Attributes:
        name: A name on the Hugging Face hub, or a folder with a model.
        texts_per_chunk: An interrupted run goes on after the last whole chunk.
        device: "cpu", "cuda", "mps"; the best there is if None.
        revision: A commit of the hub's model; the newest if None.
        is_local: Take what this machine has, and ask no hub.
    """

    name: str = "sentence-t5-base"
    batch_size: int = 32
    texts_per_chunk: int = 512
    device: str | None = None
    revision: str | None = dataclasses.field(default=None, metadata=ADDED_LATER)
    is_local: bool = dataclasses.field(default=False, metadata=ADDED_LATER)

    def describe(self) -> str:
        return f"Sentence-Transformers model {self.name}"

    def hashes(self) -> dict[str, str]:
        """See `Encoder`: of a model in a folder, the content; a name says enough."""
        folder = Path(self.name)
        if not folder.is_dir():
            return {}
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        names = {str(path.relative_to(folder)): hash_file(path) for path in files}
        return {"model": hash_json(names)}

    def cached_revision(self) -> str | None:
        """The commit of the hub's model that this machine has, if it has one."""
        if importlib.util.find_spec("huggingface_hub") is None:
            return None
        from huggingface_hub import try_to_load_from_cache

        name = self.name if "/" in self.name else f"sentence-transformers/{self.name}"
        with contextlib.suppress(ValueError):  # no name of a hub
            found = try_to_load_from_cache(name, "config.json", revision=self.revision)
            return Path(found).parent.name if isinstance(found, str) else None
        return None

    def check_local(self, model_hash: str) -> None:
        """Refuses, by an InputError, a folder that isn't there or isn't the one."""
        if not model_hash:
            return
        found = self.hashes().get("model", "missing")
        if found != model_hash:
            raise InputError(
                f"the encoder's folder {self.name} is {found[:12]}, and the "
                f"catalogue's items were embedded by {model_hash[:12]}: put that "
                "folder back, or give new items their embeddings"
            )

    def prepare(self, texts: Sequence[str], *, seed: int) -> EncodeFn:
        """Loads the model, from a folder or the hub; InputError if there is none."""
        del texts, seed  # nothing is fitted, nothing is random
        if min(self.batch_size, self.texts_per_chunk) < 1:
            raise InputError(
                f"{self}: batch_size and texts_per_chunk must be at least 1"
            )
        if importlib.util.find_spec("sentence_transformers") is None:
            raise InputError(
                f"{self.describe()} needs the package sentence-transformers: pip "
                "install 'tiger_jax[text]', or choose encoders.TfidfEncoder, or bring "
                "ready vectors with --embeddings"
            )
        is_path = self.name.startswith(("/", ".", "~")) or self.name.count("/") > 1
        if is_path and not Path(self.name).is_dir():
            raise InputError(
                f"the encoder's folder {self.name} is missing: put it back"
            )
        from sentence_transformers import SentenceTransformer

        try:
            model: Any = SentenceTransformer(
                self.name,
                device=self.device,
                revision=self.revision,
                local_files_only=self.is_local,
            )
        except Exception as error:
            # Hub, network, file system and model code each have their own errors.
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"the Sentence-Transformers model {self.name!r} can't be loaded "
                f"({type(error).__name__}: {reason}): give "
                "SentenceTransformerEncoder.name a model of the hub, or the path of a "
                "folder that holds one"
            ) from error

        def encode(batch: Sequence[str]) -> Float32[np.ndarray, "B E"]:
            vectors = model.encode(
                list(batch),
                batch_size=self.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
            return np.asarray(vectors, np.float32)

        return encode


_OURS = {cls.__name__: cls for cls in (TfidfEncoder, SentenceTransformerEncoder)}


def encoder_facts(encoder: Encoder) -> dict[str, Any]:
    """What `encoder_from_facts` reads: an encoder's class and settings, for JSON."""
    cls = type(encoder)
    settings = canonical(encoder)
    del settings["class"]
    facts = {"kind": cls.__name__, "settings": settings}
    if _OURS.get(cls.__name__) is not cls:
        facts["class"] = class_name(cls)
    return facts


def encoder_from_facts(facts: Mapping[str, Any], path: Path) -> Encoder:
    """Makes the encoder that a file at `path` describes.

    Raises:
        InputError: As `extensions.find_class`.
        KeyError, TypeError: These are no such facts.
    """
    name, settings = facts.get("class"), facts.get("settings")
    if settings is None:  # as in folders of versions that knew two encoders
        settings = {k: v for k, v in facts["encoder"].items() if k != "class"}
    cls: Any = _OURS[facts["kind"]] if name is None else find_class(str(name), path)
    return cls(**settings)
