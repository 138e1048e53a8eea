"""New items' texts become vectors and codes as the training's did."""

import importlib.machinery
import sys
import types
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from joining import HISTORIES

from tiger_jax.data.item_text import ItemTextConfig
from tiger_jax.embedding.encoders import SentenceTransformerEncoder, TfidfEncoder
from tiger_jax.errors import InputError
from tiger_jax.recommending.item_encoder import ItemCoder, ItemEncoder
from tiger_jax.recommending.updates import update

TEMPLATE = ItemTextConfig(("{title}", "{brand}"))


@pytest.fixture(scope="module")
def encoder(recommender):
    titles = [f"{title} acme" for title in recommender.catalogue.titles]
    return ItemEncoder(TEMPLATE, TfidfEncoder(dims=6).fit(titles, seed=0))


@pytest.fixture(scope="module")
def text_coder(coder, encoder):
    return ItemCoder(encoder, coder.quantizer, 6)


def test_a_text_gets_the_codes_of_its_vector(recommender, text_coder, encoder):
    add = [
        {"item_id": "a", "title": "Thing of sort 3 number 10", "brand": "Acme"},
        {"item_id": "b", "title": "brings its own", "embedding": [1.0] * 6},
    ]
    catalogue, _ = update(recommender.catalogue, text_coder, add=add)
    vector = encoder.encoder.encode(["Thing of sort 3 number 10. Acme."])
    expected = text_coder.quantizer.encode(vector)
    np.testing.assert_allclose(catalogue.embeddings[50:], [*vector, np.ones(6)])
    assert catalogue.table.codes[50, :3].tolist() == expected[0].tolist()
    answer = recommender.fork(catalogue).recommend(HISTORIES[0], k=10, epsilon=0.2)
    assert {i.item_id for i in answer.items if i.is_new} == {"a", "b"}


def test_an_item_without_text_is_refused(recommender, text_coder):
    with pytest.raises(InputError, match="'a' has no text to embed"):
        update(recommender.catalogue, text_coder, add=[{"item_id": "a", "price": 3}])


def test_an_encoder_reads_back_and_a_damaged_one_does_not(encoder, tmp_path):
    encoder.save(tmp_path)
    again = ItemEncoder.load(tmp_path)
    assert again.content_hash == encoder.content_hash
    texts = ["thing number 4", "acme"]
    np.testing.assert_array_equal(
        again.encoder.encode(texts), encoder.encoder.encode(texts)
    )
    np.save(tmp_path / "idf.npy", encoder.encoder.idf + 1)
    assert ItemEncoder.load(tmp_path).content_hash != encoder.content_hash
    (tmp_path / "idf.npy").unlink()
    with pytest.raises(InputError, match="can't be read"):
        ItemEncoder.load(tmp_path)


class _Library:
    """Stands in for Sentence-Transformers: counts loads, embeds by length."""

    loads: ClassVar[list] = []

    def __init__(self, name, **options):
        self.loads.append((name, options))

    def encode(self, texts, **_):
        return np.array([[len(text)] * 6 for text in texts], np.float32)


def test_a_sentence_encoder_is_loaded_once_from_this_machine(tmp_path, monkeypatch):
    library = types.SimpleNamespace(SentenceTransformer=_Library)
    library.__spec__ = importlib.machinery.ModuleSpec("sentence_transformers", None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"1")
    sentence = SentenceTransformerEncoder(name=str(model))
    ItemEncoder(TEMPLATE, sentence, sentence.hashes()["model"]).save(tmp_path / "own")
    again = ItemEncoder.load(tmp_path / "own")
    rows = pa.table({"item_id": ["a"], "title": ["Soap"], "brand": [""]})
    for _ in range(3):
        assert again.encode(rows).shape == (1, 6)
    ((name, options),) = _Library.loads
    assert (name, options["local_files_only"]) == (str(model), True)
    (model / "weights").write_bytes(b"2")
    with pytest.raises(InputError, match="items were embedded by"):
        ItemEncoder.load(tmp_path / "own").encode(rows)
    (model / "weights").unlink()
    model.rmdir()
    with pytest.raises(InputError, match="folder .* is missing, and"):
        ItemEncoder.load(tmp_path / "own").encode(rows)
    with pytest.raises(InputError, match="is missing: put it back"):
        sentence.prepare([], seed=0)
    assert len(_Library.loads) == 1
