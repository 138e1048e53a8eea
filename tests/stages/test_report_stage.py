"""Stage report: whatever there is, and again when there is more."""

import json

import pytest
from small_workdir import small_table
from trained_workdir import make_trained_workdir

from tiger_jax.errors import InputError
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.report import report
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import write_json


def test_a_report_shows_what_is_there(tmp_path, capsys):
    """A report shows what is there and is made again when there is more."""
    workdir = make_trained_workdir(tmp_path)
    report(RunContext(workdir))
    page = (workdir / "report" / "index.html").read_text()
    assert "python run.py --stage=evaluate" in page
    assert (workdir / "report" / "codebook_use.svg").stat().st_size > 1000
    report(RunContext(workdir))
    assert "report: up to date" in capsys.readouterr().out

    names = ("recall@1", "recall@5", "recall@10", "recall@20")
    values = dict.fromkeys((*names, "ndcg@5", "ndcg@10", "ndcg@20", "mrr@20"), 0.1)
    run = artifacts.begin(
        workdir, "evaluation", stage="evaluate", inputs=("recommender",), config={}
    )
    write_json(
        run.folder / "metrics.json",
        {
            "test": values,
            "intervals": {"test": dict.fromkeys(values, [0.09, 0.11])},
            "baselines": {"popularity": {"test": values}},
            "ceiling": None,
            "invalid_ids": 0,
            "settings": {},
        },
    )
    ids = small_table().item_ids
    prediction = {
        "user": "somebody",
        "history": ids[:2],
        "target": ids[2],
        "rank": 0,
        "recommended": [{"item_id": ids[2], "score": -1.5}],
    }
    (run.folder / "predictions.jsonl").write_text(json.dumps(prediction) + "\n")
    run.commit()
    report(RunContext(workdir))
    assert "building again" in capsys.readouterr().out
    page = (workdir / "report" / "index.html").read_text()
    assert "somebody" in page
    assert "found at place 1" in page
    assert "10.0%" in page


def test_an_empty_work_directory_has_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="nothing to report"):
        report(RunContext(tmp_path))


def test_a_damaged_file_names_its_folder(tmp_path):
    workdir = make_trained_workdir(tmp_path)
    table = workdir / "semantic_ids" / "table.json"
    table.write_text("{")
    with pytest.raises(InputError, match="semantic_ids"):
        report(RunContext(workdir))
