import dataclasses
import json
import shutil

import numpy as np
import pytest
from small_workdir import make_workdir, small_table

from tiger_jax.data.item_vectors import fill_collaborative, load_quantized_vectors
from tiger_jax.data.prepared import PreparedData
from tiger_jax.embedding.collaborative import (
    CollaborativeConfig,
    embed_cooccurrence,
)
from tiger_jax.errors import InputError
from tiger_jax.models.rqvae import RqVaeConfig
from tiger_jax.quantizers.fitting import Corpus
from tiger_jax.quantizers.hashing import Lsh, RandomCodes
from tiger_jax.quantizers.quantizer import usual_codebook_size
from tiger_jax.quantizers.residual_kmeans import FlatVq, ResidualKMeans
from tiger_jax.quantizers.rqvae_training import Batches, RqVaeTraining, _Training
from tiger_jax.quantizers.store import load_quantizer
from tiger_jax.semantic_ids import collisions
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stages.assign_semantic_ids import assign_semantic_ids
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.train_rqvae import train_rqvae
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.arrays import save_arrays
from tiger_jax.workdir.hashing import hash_arrays
from tiger_jax.workdir.json_files import read_json

TRAINING = RqVaeTraining(
    model=RqVaeConfig((8, 4), hidden_sizes=(16,), latent_size=4),
    num_steps=40,
    batch_size=32,
    reset_every=10,
    steps_per_dispatch=10,
)
KMEANS = ResidualKMeans((8, 4))
NUM_ITEMS = 50


def make_embeddings(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(NUM_ITEMS, 6)).astype(np.float32)


def write_embeddings(workdir, embeddings):
    run = artifacts.begin(
        workdir,
        "embeddings",
        stage="embed_items",
        inputs=("data",),
        config={"hash": hash_arrays({"": np.nan_to_num(embeddings)})},
    )
    save_arrays(run.folder, {"embeddings": embeddings})
    run.commit()


@pytest.fixture
def workdir(tmp_path):
    make_workdir(tmp_path)
    for made_by_hand in ("rqvae", "semantic_ids"):
        shutil.rmtree(tmp_path / made_by_hand)
    write_embeddings(tmp_path, make_embeddings())
    return tmp_path


def content_hash(folder):
    return artifacts.load_manifest(folder).content_hash


def test_a_collaborative_signal_is_quantized_with_the_text(workdir):
    context = RunContext(workdir)
    train_rqvae(context, quantizer=KMEANS, collaborative=CollaborativeConfig(dims=3))
    assign_semantic_ids(context, collision_level_size=32)

    folder = workdir / "rqvae"
    vectors = np.load(folder / "collaborative.npy")
    data = PreparedData.load(workdir / "data")
    expected = embed_cooccurrence(data.train, NUM_ITEMS, CollaborativeConfig(dims=3))
    expected = fill_collaborative(make_embeddings(), expected)
    np.testing.assert_array_equal(vectors, expected)
    joined = load_quantized_vectors(make_embeddings(), folder)
    assert joined.shape == (NUM_ITEMS, 6 + 3)
    table = SemanticIdTable.load(workdir / "semantic_ids")
    np.testing.assert_array_equal(
        table.codes[:, :2], load_quantizer(folder).encode(joined)
    )
    assert artifacts.load_manifest(folder).config["collaborative"]["dims"] == 3

    before = content_hash(folder)
    train_rqvae(context, quantizer=KMEANS)
    assert content_hash(folder) != before
    assert not (folder / "collaborative.npy").exists()


def test_one_scale_for_all_dimensions_keeps_their_proportions():
    config = dataclasses.replace(TRAINING, standardize_each=False)
    embeddings = make_embeddings() * np.array([1, 1, 1, 9, 9, 9], np.float32)
    trainer = _Training(config, embeddings, 0, None)
    assert len(np.unique(trainer.scale)) == 1
    scaled = embeddings / trainer.scale
    assert np.mean(scaled.var(0)) == pytest.approx(1.0, rel=1e-4)


def test_an_rqvae_is_trained_measured_and_used(workdir, capsys):
    context = RunContext(workdir)
    train_rqvae(context, quantizer=TRAINING)
    assign_semantic_ids(context, collision_level_size=32)

    quality = read_json(workdir / "rqvae" / "quality.json")
    assert [level["codewords_used"] for level in quality["levels"]] == [8, 4]
    assert quality["levels"][0]["category_purity"] > 0
    assert quality["levels"][1]["reconstruction_error"] > 0
    rows = (workdir / "rqvae" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [10, 20, 30, 40]
    assert not (workdir / "rqvae" / "checkpoints").exists()

    table = SemanticIdTable.load(workdir / "semantic_ids")
    assert table.codebook_sizes == (8, 4, 32)
    quantizer = load_quantizer(workdir / "rqvae")
    np.testing.assert_array_equal(
        table.codes[:, :2], quantizer.encode(make_embeddings())
    )
    assert table.item_ids == PreparedData.load(workdir / "data").item_ids
    printed = capsys.readouterr().out
    assert printed.count("% collisions") == 1  # the table is shown once
    assert "WARNING: assign_semantic_ids" in printed  # 50 items over 32 codes

    train_rqvae(context, quantizer=TRAINING)
    assign_semantic_ids(context, collision_level_size=32)
    printed = capsys.readouterr().out
    assert "train_rqvae: up to date" in printed
    assert "assign_semantic_ids: up to date" in printed


class Killed(BaseException):
    pass


def curves(workdir):
    """The metrics that no clock decides."""
    rows = (workdir / "rqvae" / "metrics.jsonl").read_text().splitlines()
    timed = ("train/examples_per_s", "train/tokens_per_s", "train/seconds")
    rows = [json.loads(row) for row in rows]
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


@pytest.mark.parametrize(
    "dispatches", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 3, 4))]
)
def test_a_killed_training_ends_as_if_it_had_not_been(workdir, monkeypatch, dispatches):
    context = RunContext(workdir)
    train_rqvae(context, quantizer=TRAINING)
    expected, metrics = content_hash(workdir / "rqvae"), curves(workdir)
    shutil.rmtree(workdir / "rqvae")

    def draw_or_die(self):
        if self._step == 10 * dispatches:
            raise Killed
        return draw(self)

    def die(*args):
        raise Killed

    draw, drawn = Batches.__next__, []
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__next__", draw_or_die)
        patch.setattr(Corpus, "measure", die)
        with pytest.raises(Killed):
            train_rqvae(context, quantizer=TRAINING, seconds_between_checkpoints=0.0)
    assert not (workdir / "rqvae").exists()

    def draw_and_note(self):
        drawn.append(self._step)
        return draw(self)

    monkeypatch.setattr(Batches, "__next__", draw_and_note)
    train_rqvae(context, quantizer=TRAINING)
    assert drawn == list(range(10 * dispatches, 40))
    assert content_hash(workdir / "rqvae") == expected
    assert curves(workdir) == metrics


def test_poor_codebooks_are_accepted_without_new_training(workdir, monkeypatch, capsys):
    """Poor codebooks are refused, then accepted without new training."""
    context = RunContext(workdir)
    with pytest.raises(InputError, match="poor codebooks.*accept_poor_codebooks"):
        train_rqvae(context, quantizer=TRAINING, minimum_use=1.01)
    assert not (workdir / "rqvae").exists()

    def never(self):
        raise AssertionError("trained again")

    monkeypatch.setattr(Batches, "__next__", never)
    train_rqvae(
        context, quantizer=TRAINING, minimum_use=1.01, accept_poor_codebooks=True
    )
    assert "WARNING: train_rqvae: poor codebooks" in capsys.readouterr().out
    # Committed knowingly; without the flag the next run refuses again.
    with pytest.raises(InputError, match="poor codebooks"):
        train_rqvae(context, quantizer=TRAINING, minimum_use=1.01)
    train_rqvae(context, quantizer=TRAINING)


def test_a_refused_quantizer_leaves_the_old_one_standing(workdir):
    context = RunContext(workdir)
    train_rqvae(context, quantizer=KMEANS)
    before = content_hash(workdir / "rqvae")
    same = np.repeat(make_embeddings()[:5], 10, axis=0)  # five distinct items
    write_embeddings(workdir, same)
    advice = r"poor codebooks.*--gin\.quantizers\.ResidualKMeans\.codebook_sizes="
    with pytest.raises(InputError, match=advice):
        train_rqvae(context, quantizer=KMEANS)
    assert content_hash(workdir / "rqvae") == before


@pytest.mark.parametrize(
    "quantizer",
    [KMEANS, FlatVq(16), Lsh(2, 2), RandomCodes((3, 3, 3))],
    ids=lambda q: type(q).__name__,
)
def test_every_quantizer_takes_the_rqvaes_place(workdir, quantizer):
    context = RunContext(workdir)
    train_rqvae(context, quantizer=quantizer)
    assign_semantic_ids(context)
    table = SemanticIdTable.load(workdir / "semantic_ids")
    codes = quantizer.fit(make_embeddings(), seed=0).encode(make_embeddings())
    np.testing.assert_array_equal(table.codes[:, :-1], codes)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (make_embeddings()[:-1], r"shape \(49, 6\), but there are 50 items"),
        (make_embeddings()[0], r"shape \(6,\)"),
        (np.where(np.eye(50, 6) > 0, np.nan, 1.0), "row 0 is not finite"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(tmp_path, embeddings, message):
    make_workdir(tmp_path)
    write_embeddings(tmp_path, embeddings.astype(np.float32))
    with pytest.raises(InputError, match=message):
        train_rqvae(RunContext(tmp_path), quantizer=KMEANS)


def test_too_few_items_for_the_codebooks_are_refused(workdir):
    model = dataclasses.replace(TRAINING.model, codebook_sizes=(64, 4))
    training = dataclasses.replace(TRAINING, model=model)
    with pytest.raises(InputError, match="64 codewords needs as many items") as error:
        train_rqvae(RunContext(workdir), quantizer=training)
    assert "--gin.rqvae.RqVaeConfig.codebook_sizes='()'" in str(error.value)


OPEN = dataclasses.replace(TRAINING.model, codebook_sizes=())


@pytest.mark.parametrize(
    ("quantizer", "sizes"),
    [
        (dataclasses.replace(TRAINING, model=OPEN), (4, 4, 4)),
        (ResidualKMeans(), (4,)),
        (FlatVq(), (4,)),
        (Lsh(), (4, 4, 4, 4)),
        (RandomCodes(), (4, 4, 4, 4)),
    ],
    ids=lambda q: type(q).__name__,
)
def test_sizes_left_open_follow_the_number_of_items(workdir, quantizer, sizes):
    context = RunContext(workdir)
    train_rqvae(context, quantizer=quantizer)
    folder = workdir / "rqvae"
    assert load_quantizer(folder).codebook_sizes == sizes
    assert "'()'" not in str(artifacts.load_manifest(folder).config)
    # Asked for by name, they are the same, and the folder is up to date.
    named = quantizer.resolved(make_embeddings())
    assert named != quantizer
    before = content_hash(folder)
    train_rqvae(context, quantizer=named)
    assert content_hash(folder) == before


def test_the_papers_shops_have_the_papers_codebooks():
    embeddings = np.arange(12_101.0)[:, None]
    assert usual_codebook_size(embeddings) == 256
    assert usual_codebook_size(embeddings, largest=255) == 255
    assert usual_codebook_size(embeddings[:2048]) == 256
    assert usual_codebook_size(embeddings[:2047]) == 128
    same = np.zeros((12_101, 3))
    assert usual_codebook_size(same) == 2


def test_k_means_takes_a_second_level_where_a_collision_level_would_tell_too_many():
    def sizes(num_items):
        items = (np.full(1, item) for item in range(num_items))
        return ResidualKMeans().resolved(items).codebook_sizes

    assert sizes(12_101) == (1024,)
    assert sizes(64 * 2048) == (2048,)
    assert sizes(64 * 2048 + 1) == (2048, 2048)


def test_a_collision_level_left_open_holds_the_largest_group(workdir, monkeypatch):
    monkeypatch.setattr(collisions, "COLLISION_LEVEL_SIZE", 8)
    embeddings = np.repeat(
        make_embeddings()[:2], 25, axis=0
    )  # two items, 25 times each
    write_embeddings(workdir, embeddings)
    context = RunContext(workdir)
    train_rqvae(context, quantizer=FlatVq(2))
    assign_semantic_ids(context)
    table = SemanticIdTable.load(workdir / "semantic_ids")
    assert table.codebook_sizes == (2, 32)
    assert np.bincount(table.codes[:, 1]).tolist() == [2] * 25


def test_a_full_collision_level_is_an_input_error(workdir):
    context = RunContext(workdir)
    train_rqvae(context, quantizer=FlatVq(2))
    with pytest.raises(InputError, match=r"collision_level_size=(32|64)"):
        assign_semantic_ids(context, collision_level_size=8)
    assert not (workdir / "semantic_ids.partial" / "codes.npy").exists()


def write_peer_codes(workdir, codes, item_ids):
    path = workdir / "peer.json"
    pairs = zip(item_ids, codes.tolist(), strict=True)
    path.write_text(json.dumps(dict(pairs)))
    return str(path)


def test_a_peers_codes_keep_their_collision_level(workdir):
    peer = small_table(seed=5)
    path = write_peer_codes(workdir, peer.codes[::-1], peer.item_ids[::-1])
    context = RunContext(workdir)
    assign_semantic_ids(
        context,
        peer_codes=path,
        peer_num_levels=3,
        peer_codebook_sizes=(8, 8, 8),
        collision_level_size=4,
    )
    table = SemanticIdTable.load(workdir / "semantic_ids")
    assert table.content_hash == peer.content_hash
    manifest = artifacts.load_manifest(workdir / "semantic_ids")
    assert list(manifest.inputs) == ["data"]  # no quantizer is needed

    assign_semantic_ids(context, peer_codes=path)
    table = SemanticIdTable.load(workdir / "semantic_ids")
    np.testing.assert_array_equal(table.codes[:, :4], peer.codes)
    assert (table.codes[:, 4] == 0).all()
    assert table.num_levels == 4


def test_items_that_a_peer_lacks(workdir, capsys):
    """Items that a peer lacks are refused or get their neighbours' codes."""
    peer = small_table(seed=5)
    path = write_peer_codes(workdir, peer.codes[2:], peer.item_ids[2:])
    context = RunContext(workdir)
    with pytest.raises(InputError, match=r"no codes for 2 of 50 items .*'item-0'"):
        assign_semantic_ids(context, peer_codes=path)
    with pytest.raises(InputError, match="'error' or 'nearest'"):
        assign_semantic_ids(context, peer_codes=path, missing_items="drop")

    assign_semantic_ids(
        context, peer_codes=path, peer_num_levels=3, missing_items="nearest"
    )
    table = SemanticIdTable.load(workdir / "semantic_ids")
    np.testing.assert_array_equal(table.codes[2:], peer.codes[2:])
    embeddings = make_embeddings()
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for item in (0, 1):
        nearest = 2 + int((unit[2:] @ unit[item]).argmax())
        np.testing.assert_array_equal(table.codes[item, :3], peer.codes[nearest, :3])
    assert "no codes for 2 of 50" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peer_num_levels": 2}, "can't be 2 learned levels"),
        ({"peer_num_levels": 5}, "can't be 5 learned levels"),
        ({"peer_codebook_sizes": (8, 8)}, "2 sizes for 4 levels"),
        ({"peer_codebook_sizes": (8, 8, 8, 2)}, "whose codebook has 2"),
    ],
)
def test_peer_codes_of_another_shape_are_refused(workdir, change, message):
    peer = small_table(seed=5)
    path = write_peer_codes(workdir, peer.codes, peer.item_ids)
    with pytest.raises(InputError, match=message):
        assign_semantic_ids(RunContext(workdir), peer_codes=path, **change)


def test_a_missing_peer_file_is_an_input_error(workdir):
    with pytest.raises(InputError, match=r"none\.json is no file"):
        assign_semantic_ids(RunContext(workdir), peer_codes="none.json")
