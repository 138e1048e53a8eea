"""The stage: embeddings by item number, from texts or from a file, resumable."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tiger_jax.data.item_text import ItemTextConfig, build_item_texts
from tiger_jax.data.prepared import PreparedData
from tiger_jax.data.synthetic import SyntheticShopConfig
from tiger_jax.embedding.encoders import TfidfEncoder
from tiger_jax.errors import InputError
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.embed_items import embed_items
from tiger_jax.stages.prepare_data import prepare_data
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.hashing import hash_file
from tiger_jax.workdir.json_files import read_json

SHOP = SyntheticShopConfig(
    num_items=80, num_users=40, max_history=20, items_per_series=6.0
)
ENCODER = TfidfEncoder(dims=16)


@pytest.fixture
def context(tmp_path):
    context = RunContext(tmp_path / "run")
    prepare_data(context, synthetic=SHOP)
    return context


def load(context):
    folder = context.workdir / "embeddings"
    return np.load(folder / "embeddings.npy"), read_json(folder / "encoder.json")


def test_texts_are_embedded_in_item_number_order(context, capsys):
    """Texts are embedded in the order of item numbers; the encoder is named."""
    embed_items(context, encoder=ENCODER)
    assert "no --embeddings" in (said := capsys.readouterr().out)
    assert "TF-IDF with truncated SVD to 16" in said
    data = PreparedData.load(context.workdir / "data")
    texts = build_item_texts(data.items, ItemTextConfig())
    vectors, made_by = load(context)
    expected = ENCODER.prepare(list(dict.fromkeys(texts)), seed=0)(texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert made_by["kind"] == "TfidfEncoder"
    assert made_by["encoder"]["dims"] == made_by["embedding_dim"] == 16
    assert made_by["text"]["sentences"] == list(ItemTextConfig().sentences)
    stored = pq.read_table(context.workdir / "embeddings" / "texts.parquet")
    assert stored["text"].to_pylist() == texts
    assert tuple(stored["item_id"].to_pylist()) == data.item_ids
    manifest = artifacts.load_manifest(context.workdir / "embeddings")
    assert set(manifest.files) == {"embeddings.npy", "encoder.json", "texts.parquet"}
    assert manifest.summary["text"] == made_by["text"]


def test_a_second_run_has_nothing_to_do_and_another_template_has(context, capsys):
    embed_items(context, encoder=ENCODER)
    first = artifacts.load_manifest(context.workdir / "embeddings")
    capsys.readouterr()
    embed_items(context, encoder=ENCODER)
    assert "up to date" in capsys.readouterr().out
    embed_items(context, encoder=ENCODER, text=ItemTextConfig(("{title}",)))
    second = artifacts.load_manifest(context.workdir / "embeddings")
    assert second.content_hash != first.content_hash


def ready_vectors(context, path, num_rows=None):
    data = PreparedData.load(context.workdir / "data")
    num_rows = num_rows or data.statistics["raw_items"]
    array = np.random.default_rng(5).normal(size=(num_rows, 8)).astype(np.float16)
    np.save(path, array)
    return array, data


def test_ready_made_vectors_go_from_file_order_to_item_numbers(context, tmp_path):
    array, data = ready_vectors(context, tmp_path / "ready.npy")
    embed_items(dataclasses.replace(context, embeddings=tmp_path / "ready.npy"))
    vectors, made_by = load(context)
    np.testing.assert_array_equal(vectors, array[data.items_file_rows])
    assert vectors.dtype == np.float32
    digest = hash_file(tmp_path / "ready.npy")
    assert made_by["kind"] == "ready-made"
    assert made_by["embeddings"] == digest
    manifest = artifacts.load_manifest(context.workdir / "embeddings")
    assert manifest.external == {"embeddings": digest}


def test_other_vectors_build_again_a_moved_file_does_not(context, tmp_path, capsys):
    """Another file of vectors builds again, and the same one elsewhere does not."""
    array, _ = ready_vectors(context, tmp_path / "ready.npy")
    embed_items(dataclasses.replace(context, embeddings=tmp_path / "ready.npy"))
    (tmp_path / "ready.npy").rename(tmp_path / "moved.npy")
    capsys.readouterr()
    moved = dataclasses.replace(context, embeddings=tmp_path / "moved.npy")
    embed_items(moved)
    assert "up to date" in capsys.readouterr().out
    np.save(tmp_path / "moved.npy", 2 * array)
    embed_items(moved)
    assert "building again" in capsys.readouterr().out


def test_bad_vectors_leave_what_was_there(context, tmp_path):
    embed_items(context, encoder=ENCODER)
    before = artifacts.load_manifest(context.workdir / "embeddings")
    ready_vectors(context, tmp_path / "short.npy", num_rows=70)
    with pytest.raises(InputError, match=r"short\.npy has shape .* has 80 rows"):
        embed_items(dataclasses.replace(context, embeddings=tmp_path / "short.npy"))
    with pytest.raises(InputError, match=r"absent\.npy is no file"):
        embed_items(dataclasses.replace(context, embeddings=tmp_path / "absent.npy"))
    assert artifacts.load_manifest(context.workdir / "embeddings") == before


def test_without_prepared_data_the_stage_to_run_first_is_named(tmp_path):
    with pytest.raises(InputError, match="--stage=prepare_data"):
        embed_items(RunContext(tmp_path / "empty"))


@dataclasses.dataclass(frozen=True)
class ChunkyEncoder:
    """Vectors from lengths; stops after so many batches, as a kill would."""

    stop_file: str
    batch_size: int = 8
    texts_per_chunk: int = 16

    def describe(self):
        return "a test's encoder"

    def hashes(self):
        return {}

    def prepare(self, texts, *, seed):
        stop = json.loads(Path(self.stop_file).read_text())
        calls = []

        def encode(batch):
            calls.append(len(batch))
            if len(calls) > stop:
                raise KeyboardInterrupt
            return np.array([[len(t), sum(map(ord, t))] for t in batch], np.float32)

        return encode


def test_an_interrupted_stage_ends_with_the_same_content(context, tmp_path, capsys):
    """An interrupted stage goes on and ends with the same content."""
    stop = tmp_path / "stop.json"
    encoder = ChunkyEncoder(str(stop))
    stop.write_text("5")
    with pytest.raises(KeyboardInterrupt):
        embed_items(context, encoder=encoder)
    assert not (context.workdir / "embeddings").exists()
    stop.write_text("6")  # not enough to begin again from nothing
    embed_items(context, encoder=encoder)
    resumed = artifacts.load_manifest(context.workdir / "embeddings")

    other = RunContext(tmp_path / "other")
    prepare_data(other, synthetic=SHOP)
    stop.write_text("1000")
    embed_items(other, encoder=encoder)
    whole = artifacts.load_manifest(other.workdir / "embeddings")
    assert resumed.content_hash == whole.content_hash
    assert resumed.files["embeddings.npy"] == whole.files["embeddings.npy"]


def test_killed_just_before_the_end_nothing_is_embedded_twice(
    context, tmp_path, monkeypatch
):
    stop = tmp_path / "stop.json"
    stop.write_text("1000")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.StageRun, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            embed_items(context, encoder=ChunkyEncoder(str(stop)))
    stop.write_text("0")
    embed_items(context, encoder=ChunkyEncoder(str(stop)))
    assert load(context)[0].shape == (80, 2)
