"""Stage evaluate on a tiny untrained model: what it writes, and what it refuses."""

import copy
import json

import numpy as np
import pytest
from shared_folder import made_once
from trained_workdir import NUM_ITEMS, NUM_USERS, make_trained_workdir

from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation.lists import SavedLists
from tiger_jax.evaluation.metrics import REPORTED
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.reporting import tables
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.evaluate import EvaluateConfig, evaluate
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import read_json

CONFIG = EvaluateConfig(batch_size=16, guard_users=16)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return made_once(
        tmp_path_factory,
        "evaluated",
        lambda f: evaluate(RunContext(make_trained_workdir(f)), config=CONFIG),
    )


def _read(workdir):
    return read_json(workdir / "evaluation" / "metrics.json")


def test_the_metrics_file_has_the_agreed_form(workdir):
    metrics = _read(workdir)
    splits = {"test", "test_masked", "validation"}
    more = {"intervals", "baselines", "titles", "ceiling", "invalid_ids", "settings"}
    assert set(metrics) == splits | more
    for split in splits:
        assert set(metrics[split]) == set(REPORTED)
        for name, (low, high) in metrics["intervals"][split].items():
            assert 0 <= low <= metrics[split][name] <= high <= 1
    assert set(metrics["baselines"]) == {
        "popularity",
        "item_cooccurrence",
        "semantic_knn",
    }
    for found in metrics["baselines"].values():
        assert set(found) == {"test", "test_masked"}
    assert metrics["ceiling"] == {"recall@10": 0.8, "ndcg@10": 0.5}
    assert metrics["invalid_ids"] == 0
    assert metrics["settings"]["num_beams"] == 50
    assert metrics["settings"]["normalize"] == "level"


def test_predictions_say_the_same_as_the_metrics(workdir):
    data = PreparedData.load(workdir / "data")
    text = (workdir / "evaluation" / "predictions.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["user"] for line in lines] == list(data.user_ids)
    hits = 0
    for user, line in enumerate(lines):
        history = [data.item_ids[i] for i in data.histories.of(user).tolist()]
        assert line["history"] == history[:-1]
        assert line["target"] == history[-1]
        items = [entry["item_id"] for entry in line["recommended"]]
        scores = [entry["score"] for entry in line["recommended"]]
        assert len(set(items)) == len(items) == 20
        assert scores == sorted(scores, reverse=True)
        hits += line["target"] in items[:10]
        place = items.index(line["target"]) if line["target"] in items else None
        assert line["rank"] == place
    assert _read(workdir)["test"]["recall@10"] == pytest.approx(hits / NUM_USERS)


def test_lists_are_kept_whole_beside_those_for_people(workdir):
    text = (workdir / "evaluation" / "predictions.jsonl").read_text()
    data = PreparedData.load(workdir / "data")
    folder = workdir / "evaluation" / "lists"
    found = SavedLists.load(folder, "tiger_test")
    assert (found.items.dtype, found.scores.dtype) == (np.int32, np.float32)
    for row, line in zip(found.rows, text.splitlines(), strict=True):
        listed = json.loads(line)["recommended"]
        items = [data.item_ids[item] for item in found.items[row]]
        assert items == [entry["item_id"] for entry in listed]
        scores = [entry["score"] for entry in listed]
        np.testing.assert_allclose(found.scores[row], scores, atol=5.1e-5)
    names = {path.name for path in folder.glob("*_items.npy")}
    assert "tiger_validation_items.npy" in names
    assert "popularity_test_masked_items.npy" in names


def test_with_a_beam_for_every_item_the_search_is_exact(workdir):
    details = read_json(workdir / "evaluation" / "details.json")
    checks = {check["name"]: check for check in details["guards"]}
    assert set(checks) == {"history_matters", "search_is_exact", "lists_differ"}
    assert checks["search_is_exact"]["value"] == 1.0
    assert checks["history_matters"]["value"] > 0
    assert sum(details["by_target_count"]["sizes"]) == NUM_USERS


def test_the_exact_method_agrees_and_counts_as_a_second_reading(
    workdir, tmp_path, capsys
):
    import shutil

    copy = tmp_path / "work"
    shutil.copytree(workdir, copy)
    evaluate(RunContext(copy), config=CONFIG)
    assert "up to date" in capsys.readouterr().out
    before = _read(copy)
    evaluate(RunContext(copy), config=CONFIG, search=SearchConfig(method="exact"))
    after = _read(copy)
    for split in ("test", "test_masked", "validation"):
        assert after[split] == pytest.approx(before[split])
    out = capsys.readouterr().out
    assert "search.method was beam and is exact" in out
    assert "Best possible" in out
    summary = artifacts.load_manifest(copy / "evaluation").summary
    assert summary["test_reads"] == 2


def test_a_sample_of_users_is_stated(tmp_path, workdir, monkeypatch):
    """Also where the table can't be shown: results are committed before."""
    import shutil

    shutil.copytree(workdir, tmp_path / "work")
    config = EvaluateConfig(batch_size=16, guard_users=0, max_users=20, baselines=())
    monkeypatch.setattr(tables, "format_evaluation", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(RunContext(tmp_path / "work"), config=config)
    metrics = _read(tmp_path / "work")
    assert metrics["settings"]["users"] == metrics["settings"]["validation_users"] == 20
    assert metrics["baselines"] == {}


def test_other_semantic_ids_than_those_of_training_are_refused(tmp_path, workdir):
    import shutil

    copy = tmp_path / "work"
    shutil.copytree(workdir, copy)
    old = artifacts.load_manifest(copy / "semantic_ids").content_hash
    table = SemanticIdTable.load(copy / "semantic_ids")
    run = artifacts.begin(
        copy, "semantic_ids", stage="assign_semantic_ids", config={"other": True}
    )
    other = table.codes[::-1].copy()
    SemanticIdTable(other, table.codebook_sizes, 3, table.item_ids).save(run.folder)
    new = run.commit().content_hash
    with pytest.raises(InputError, match=f"{old[:12]}.*{new[:12]}.*train_recommender"):
        evaluate(RunContext(copy), config=CONFIG)


def test_too_few_beams_for_the_metrics_are_refused(workdir):
    with pytest.raises(InputError, match="num_beams=21"):
        evaluate(RunContext(workdir), search=SearchConfig(num_beams=20))


def test_a_missing_recommender_names_the_stage(tmp_path):
    with pytest.raises(InputError, match="prepare_data first"):
        evaluate(RunContext(tmp_path))


@pytest.mark.parametrize(
    ("made", "field", "value"),
    [
        (SearchConfig(), "method", "greedy"),
        (SearchConfig(), "normalize", "softmax"),
        (SearchConfig(), "num_beams", 0),
        (EvaluateConfig(), "baselines", ("sasrec",)),
    ],
)
def test_unknown_settings_are_refused(made, field, value):
    # Past the annotations, which only tests check at every call.
    made = copy.copy(made)
    vars(made)[field] = value
    with pytest.raises(InputError, match="Config"):
        made.__post_init__()


def test_the_catalogue_is_whole(workdir):
    assert _read(workdir)["settings"]["catalogue"] == f"all {NUM_ITEMS} items compete"
