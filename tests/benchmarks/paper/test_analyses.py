import json

import pytest
from trained_workdir import make_trained_workdir

from benchmarks.paper import analyses as paper_analyses


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    workdir = make_trained_workdir(tmp_path_factory.mktemp("study") / "work")
    return paper_analyses.Study(workdir, max_users=12, seed=0)


@pytest.mark.slow
def test_only_a_search_without_the_catalogue_finds_invalid_ids(
    study, monkeypatch, tmp_path
):
    monkeypatch.setattr(paper_analyses, "BEAMS", (30,))
    free, bound = paper_analyses.measure_invalid_ids(study)
    assert free["case"] == {"beams": 30, "constraint": "none"}
    # 50 items among the hundreds of IDs that an untrained model may say.
    assert free["invalid_share"] > 0.3
    assert bound["invalid_share"] == 0
    low, high = bound["intervals"]["recall@10"]
    assert low <= bound["metrics"]["recall@10"] <= high
    json.dumps([free, bound])
    table = paper_analyses.build_table("invalid_ids", [free, bound])
    assert f"| 30 | {free['invalid_share']:.2%} |" in table
    paper_analyses.draw("invalid_ids", [free, bound], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.slow
def test_lists_drawn_at_a_high_temperature_are_more_varied(study, monkeypatch):
    monkeypatch.setattr(paper_analyses, "TEMPERATURES", (0.0, 1000.0))
    monkeypatch.setattr(paper_analyses, "CUTOFFS", (10,))
    searched, drawn = paper_analyses.measure_diversity(study)
    assert searched["users"] == 12
    assert drawn["metrics"]["coverage@10"] > searched["metrics"]["coverage@10"]
    table = paper_analyses.build_table("diversity", [searched, drawn])
    assert "| beam search |" in table
    assert "| 1000.0 |" in table
    low, high = drawn["intervals"]["entropy@10"]
    assert low <= drawn["metrics"]["entropy@10"] <= high
