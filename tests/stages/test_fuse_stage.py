"""Stages list_candidates and fuse on a tiny untrained model."""

import shutil

import numpy as np
import pytest
from shared_folder import made_once
from trained_workdir import NUM_ITEMS, NUM_USERS, make_trained_workdir

from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation import evaluator, lists
from tiger_jax.evaluation.baselines.semantic_knn import DenseKnn
from tiger_jax.evaluation.metrics import compute_metrics
from tiger_jax.recommending.numbered_recommender import load_numbered_recommender
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.reporting import tables
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.evaluate import EvaluateConfig, evaluate
from tiger_jax.stages.fuse import FusionConfig, fuse
from tiger_jax.stages.list_candidates import CandidatesConfig, list_candidates
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json

SEARCH = SearchConfig(num_beams=25)
CANDIDATES = CandidatesConfig(depth=25, batch_size=15, max_validation_users=None)
FUSION = FusionConfig(normalizations=("z_score", "reciprocal_rank"), depth=30)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    def make(folder):
        make_trained_workdir(folder, with_quantizer=True, collaborative_dims=4)
        list_candidates(RunContext(folder), config=CANDIDATES, search=SEARCH)
        fuse(RunContext(folder), config=FUSION)

    return made_once(tmp_path_factory, "fused", make)


def _load(workdir, split):
    held_out = getattr(PreparedData.load(workdir / "data"), split)
    found = lists.SavedLists.load(workdir / "candidates", split)
    return found, held_out.select(found.rows)


def test_lists_on_disk_are_those_of_the_recommender(workdir):
    data = PreparedData.load(workdir / "data")
    found, held_out = _load(workdir, "test")
    listed = lists.ListedRecommender(held_out.user_numbers, found.items, found.scores)
    assert len(held_out.targets) == NUM_USERS
    ours = load_numbered_recommender(workdir, data, SEARCH)
    expected = evaluator.evaluate(
        ours,
        data.test,
        num_items=NUM_ITEMS,
        exclude_seen=False,
        history_length=ours.max_items,
        batch_size=15,
    )
    metrics = read_json(workdir / "fusion" / "metrics.json")
    assert metrics["parts"]["tiger"]["test"] == pytest.approx(
        compute_metrics(expected.ranks)
    )
    nothing = np.empty((3, 0), np.int32)
    users = np.array([4, 0, 9], np.int32)
    items, _ = listed(users, np.zeros((3, 1), np.int32), nothing, 20)
    np.testing.assert_array_equal(items, expected.item_numbers[users])


def test_fusion_is_no_worse_on_validation_than_any_part(workdir):
    """The fused recommender is no worse on validation than any part."""
    result = read_json(workdir / "fusion" / "metrics.json")
    parts = {"tiger", "item_cooccurrence", "dense_knn"}
    weights = result["settings"]["weights"]
    assert set(weights) == set(result["parts"]) == parts
    assert sum(weights.values()) == pytest.approx(1, abs=1e-3)
    chosen = result["validation_masked"]
    assert chosen["fusion"] >= max(chosen["parts"].values()) - 1e-9
    assert set(chosen["without"]) == parts
    for part, (gain, low, high) in chosen["gains"].items():
        # Of the same users, beside which the part is left out.
        assert gain == pytest.approx(chosen["fusion"] - chosen["without"][part])
        assert low <= gain <= high
    for split in ("test", "test_masked"):
        for name, (low, high) in result["intervals"][split].items():
            assert low <= result[split][name] <= high
    assert len(result["differences"]) == 3 * 2 * 2
    assert artifacts.load_manifest(workdir / "fusion").summary["test_reads"] == 1


def test_another_choice_counts_as_a_reading_of_test(workdir, capsys):
    """Both are up to date, and another choice counts as a reading of the test split."""
    list_candidates(RunContext(workdir), config=CANDIDATES, search=SEARCH)
    fuse(RunContext(workdir), config=FUSION)
    assert capsys.readouterr().out.count("up to date") == 2
    fuse(RunContext(workdir), config=FusionConfig(parts=("tiger", "dense_knn")))
    result = read_json(workdir / "fusion" / "metrics.json")
    assert set(result["parts"]) == {"tiger", "dense_knn"}
    assert artifacts.load_manifest(workdir / "fusion").summary["test_reads"] == 2


def test_lists_that_evaluate_wrote_are_not_searched_again(
    workdir, tmp_path, monkeypatch
):
    copy = tmp_path / "work"
    shutil.copytree(workdir, copy)
    config = CandidatesConfig(depth=18, batch_size=15, max_validation_users=30)
    list_candidates(RunContext(copy), config=config, search=SEARCH)
    searched = {split: _load(copy, split)[0] for split in ("test", "validation")}
    evaluate(
        RunContext(copy),
        config=EvaluateConfig(batch_size=15, guard_users=0, baselines=()),
        search=SEARCH,
    )

    def refuse(*arguments, **settings):
        raise AssertionError("searched again")

    monkeypatch.setattr(lists, "list_items", refuse)
    list_candidates(RunContext(copy), config=config, search=SEARCH)
    for split, wanted in searched.items():
        found, _ = _load(copy, split)
        np.testing.assert_array_equal(found.rows, wanted.rows)
        np.testing.assert_array_equal(found.items, wanted.items)
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-6)

    # Without them, fuse takes evaluate's lists, whole.
    shutil.rmtree(copy / "candidates")
    fuse(RunContext(copy), config=FusionConfig(parts=("tiger", "popularity")))
    fused = read_json(copy / "fusion" / "metrics.json")["parts"]["tiger"]
    measured = read_json(copy / "evaluation" / "metrics.json")
    assert fused["test"] == measured["test"]


def test_a_killed_search_goes_on_with_the_users_that_are_left(
    workdir, monkeypatch, capsys
):
    monkeypatch.setattr(lists, "CHUNK", 15)
    searched = []
    list_items = evaluator.list_items

    def dying(recommend, held_out, **settings):
        if len(searched) == 2:
            raise KeyboardInterrupt
        searched.append(len(held_out.targets))
        return list_items(recommend, held_out, **settings)

    config = CandidatesConfig(depth=24, batch_size=15, max_validation_users=None)
    monkeypatch.setattr(lists, "list_items", dying)
    with pytest.raises(KeyboardInterrupt):
        list_candidates(RunContext(workdir), config=config, search=SEARCH)
    damaged, *_ = (workdir / "candidates.partial").glob("chunk_*_scores_*.npy")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    count = []

    def counted(recommend, held_out, **settings):
        count.append(len(held_out.targets))
        return list_items(recommend, held_out, **settings)

    monkeypatch.setattr(lists, "list_items", counted)
    list_candidates(RunContext(workdir), config=config, search=SEARCH)
    assert len(count) == 2 * 3 - 1  # of two chunks, one was damaged
    assert f"{damaged} is damaged" in capsys.readouterr().out
    _, held_out = _load(workdir, "validation")
    assert len(held_out.targets) == NUM_USERS
    assert not list((workdir / "candidates").glob("chunk_*"))


def test_unknown_parts_and_too_few_beams_are_refused(tmp_path):
    with pytest.raises(InputError, match="known are popularity"):
        FusionConfig(parts=("bert",))
    with pytest.raises(InputError, match="known are reciprocal_rank"):
        FusionConfig(normalizations=("sum",))
    with pytest.raises(InputError, match="between 1 and"):
        list_candidates(
            RunContext(tmp_path), config=CANDIDATES, search=SearchConfig(num_beams=3)
        )


def test_the_fused_recommender_has_a_row_of_its_own(workdir):
    result = read_json(workdir / "fusion" / "metrics.json")
    rows = tables.build_fusion_rows(result, "test_masked", besides={"dense_knn"})
    assert rows[-1].name == tables.FUSED
    assert rows[-1].values == result["test_masked"]
    assert "TIGER" in rows[-1].note
    assert DenseKnn.title not in [row.name for row in rows]
