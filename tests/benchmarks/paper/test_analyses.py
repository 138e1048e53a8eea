import json

import pytest
from trained_workdir import make_trained_workdir

from benchmarks.paper import analyses
from benchmarks.paper.study import Study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    workdir = make_trained_workdir(tmp_path_factory.mktemp("study") / "work")
    return Study(workdir, max_users=12, seed=0)


@pytest.mark.slow
def test_only_a_search_without_the_catalogue_finds_invalid_ids(study, tmp_path):
    free, bound = analyses.measure_invalid_ids(study, [30])
    assert free["case"] == {"beams": 30, "constraint": "none"}
    # 50 items among the hundreds of IDs that an untrained model may say.
    assert free["invalid_share"] > 0.3
    assert bound["invalid_share"] == 0
    low, high = bound["intervals"]["recall@10"]
    assert low <= bound["metrics"]["recall@10"] <= high
    json.dumps([free, bound])
    table = analyses.build_table("invalid_ids", [free, bound])
    assert f"| 30 | {free['invalid_share']:.2%} |" in table
    analyses.draw("invalid_ids", [free, bound], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.mark.slow
def test_lists_drawn_at_a_high_temperature_are_more_varied(study, monkeypatch):
    monkeypatch.setattr(analyses, "CUTOFFS", (10,))
    searched, drawn = analyses.measure_diversity(study, [0.0, 1000.0])
    assert searched["users"] == 12
    assert drawn["metrics"]["coverage@10"] > searched["metrics"]["coverage@10"]
    table = analyses.build_table("diversity", [searched, drawn])
    assert "| beam search |" in table
    assert "| 1000.0 |" in table
    low, high = drawn["intervals"]["entropy@10"]
    assert low <= drawn["metrics"]["entropy@10"] <= high
