"""What is asked of a trained work directory, and the tables made of the answers."""

import json
import shutil

import numpy as np
import pytest
from trained_workdir import TINY_TWO_LEVEL, make_trained_workdir

from benchmarks import lib
from benchmarks.paper import analyses
from benchmarks.paper.study import Study
from tiger_jax.errors import InputError
from tiger_jax.recommending.searcher import DenseWeights
from tiger_jax.workdir.json_files import write_json

KNOWN = {"run": "mine", "seed": 0, "budget": "full", "minutes": 0.1}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    workdir = make_trained_workdir(tmp_path_factory.mktemp("study") / "work")
    return Study(workdir, max_users=12, seed=0)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    workdir = make_trained_workdir(
        tmp_path_factory.mktemp("dense") / "work",
        model=TINY_TWO_LEVEL,
        num_user_tokens=0,
        with_quantizer=True,
        collaborative_dims=3,
        dense_weights=DenseWeights(1.0, 0.0),
        summary={"seconds": 7.0},
    )
    levels = [{"use": 1.0, "perplexity": 7.5, "category_purity": None}] * 3
    quality = {"levels": levels, "collision_rate": 0.1}
    write_json(workdir / "rqvae" / "quality.json", quality)
    return Study(workdir, max_users=12, seed=0)


def rows_of(study, rows):
    return [{**study.about, **KNOWN, **row} for row in rows]


@pytest.mark.slow
def test_only_a_search_without_the_catalogue_finds_invalid_ids(study, tmp_path):
    (row,) = rows_of(study, analyses.measure_invalid_ids(study, [30]))
    # 50 items among the hundreds of IDs that an untrained model may say.
    assert row["metrics"]["invalid IDs"] > 0.3
    low, high = row["intervals"]["recall@10, trie"]
    assert low <= row["metrics"]["recall@10, trie"] <= high
    json.dumps(row)
    table = analyses.build_table("invalid_ids", [row])
    assert f"| 30 | {lib.format_short(row['metrics']['invalid IDs'])} |" in table
    analyses.draw("invalid_ids", [row], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.slow
def test_lists_drawn_at_a_high_temperature_are_more_varied(study, monkeypatch):
    monkeypatch.setattr(analyses, "CUTOFFS", (10,))
    rows = rows_of(study, analyses.measure_diversity(study, [0.0, 1000.0]))
    searched, drawn = rows
    assert searched["users"] == 12
    assert drawn["metrics"]["coverage@10"] > searched["metrics"]["coverage@10"]
    assert "| 1000 |" in analyses.build_table("diversity", rows)
    low, high = drawn["intervals"]["entropy@10"]
    assert low <= drawn["metrics"]["entropy@10"] <= high


@pytest.mark.slow
def test_every_kept_checkpoint_is_measured(tmp_path):
    workdir = make_trained_workdir(tmp_path / "work")
    recommender = workdir / "recommender"
    kept = recommender / "checkpoints"
    shutil.copytree(kept / "checkpoint_0", kept / "checkpoint_3")
    seen = {"validation/recall@10": 0.25, "validation/ndcg@10": 0.125}
    lines = [
        {"step": step, "validation/loss": 3.5 - step, **seen} for step in (0, 2, 3)
    ]
    text = "".join(json.dumps(line) + "\n" for line in [{"step": 1}, *lines])
    (recommender / "metrics.jsonl").write_text(text)
    study = Study(workdir, max_users=12, seed=0)
    assert [r["case"]["updates"] for r in analyses.measure_curve(study)] == [0, 2, 3]
    rows = rows_of(study, analyses.measure_checkpoints(study))
    chosen, other = rows
    assert chosen["case"] == {"updates": 0, "chosen": "yes"}
    assert other["case"] == {"updates": 3, "chosen": ""}
    assert chosen["users"] == len(study.data.validation.targets)  # not the sample
    assert other["metrics"]["loss, in training"] == 0.5
    assert other["metrics"]["recall@10"] == chosen["metrics"]["recall@10"]
    assert "| 0 | yes | 3.50 | .2500 |" in analyses.build_table("checkpoints", rows)


@pytest.mark.slow
def test_all_weights_of_a_dense_head_are_measured(dense, study):
    rows = rows_of(dense, analyses.measure_ranking_weights(dense))
    assert rows[0]["case"] == {"weight of log p(item)": 0.0, "popularity": 0.0}
    assert len(rows) == 1 + 5 * 4
    for row in rows:
        assert 0 <= row["metrics"]["ndcg@10"] <= row["metrics"]["recall@10"]
    assert "| 0.25 | 0.5 | ." in analyses.build_table("ranking_weights", rows)
    with pytest.raises(InputError, match="no dense head"):
        list(analyses.measure_ranking_weights(study))


@pytest.mark.slow
def test_neighbours_are_found_by_text_and_what_is_joined(dense):
    rows = list(analyses.measure_vectors(dense))
    names = ["text (6)", "collaborative (3)", "joined (9)"]
    assert [row["case"]["vectors"] for row in rows] == names
    for row in rows:
        low, high = row["intervals"]["recall@10"]
        assert low <= row["metrics"]["recall@10"] <= high


@pytest.mark.slow
def test_codes_say_some_of_the_vectors(dense):
    (row,) = rows_of(dense, analyses.measure_code_quality(dense))
    assert 0.2 < row["metrics"]["variance said"] < 1
    others = [
        {
            **row,
            "run": str(n),
            "case": {"codes": str(n)},
            "metrics": dict.fromkeys(row["metrics"], n / 10),
        }
        for n in range(3)
    ]
    table = analyses.build_table("code_quality", others)
    assert "| variance said | +1.00 |" in table


@pytest.mark.slow
def test_new_items_cost_each_method_something(dense):
    rows = rows_of(dense, analyses.measure_new_items(dense))
    assert [row["case"]["method"].partition(":")[0] for row in rows] == [
        *("TIGER", "Semantic KNN", "Item co-occurrence", "TIGER")
    ]
    assert all(row["metrics"]["seconds"] > 0 for row in rows)


def test_segments_cover_all_users(study):
    rows = rows_of(study, analyses.measure_segments(study))
    by_kind = analyses.groups_of([r | r["case"] for r in rows], "by")
    assert len(by_kind) == 3
    for own in by_kind.values():
        assert sum(row["users"] for row in own) == 12
    whole = [
        sum(r["users"] * r["metrics"]["TIGER"] for r in own) for own in by_kind.values()
    ]
    assert np.allclose(whole, whole[0])
    assert "Item co-occurrence" in analyses.build_table("segments", rows)


def test_seeds_become_one_line_with_their_mean():
    rows = [
        {**KNOWN, "data": "d", "split": "validation", "users": 9, "device": "1 x cpu"}
        | {"commit": "abc", "seed": seed, "case": {"vectors": "text"}}
        | {"metrics": {"recall@10": 0.1 + seed / 100}, "intervals": {}}
        for seed in (0, 1)
    ]
    table = analyses.build_table("vectors", rows)
    assert "| text | .1050 ± .0635 |" in table
    assert "over 2 seeds" in table
