"""A baseline and a metric of one's own go through every stage."""

import numpy as np
import pytest
from trained_workdir import make_trained_workdir

from tiger_jax.config import config
from tiger_jax.errors import InputError
from tiger_jax.evaluation import metrics
from tiger_jax.evaluation.baselines.baseline import Baseline
from tiger_jax.evaluation.recommend_fn import ScoredCatalogue
from tiger_jax.recommending.searcher import SearchConfig
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.evaluate import EvaluateConfig, evaluate
from tiger_jax.stages.fuse import FusionConfig, fuse
from tiger_jax.stages.report import report
from tiger_jax.workdir.json_files import read_json


@config("own_baseline")
class ByNumber(Baseline):
    """The item numbers themselves, from a number on."""

    name, title = "by_number", "By number"
    first: int = 0

    def build(self, data, workdir):
        scores = np.roll(np.arange(data.num_items), -self.first).astype(np.float32)

        def score(user_numbers, histories):
            return np.tile(scores, (len(histories), 1))

        return ScoredCatalogue(score, data.num_items)


@pytest.fixture(scope="module", autouse=True)
def _halves():
    @metrics.metric("halves")
    def halves(ranks, k):
        return 0.5 * (ranks < k)

    yield
    del metrics._METRIC_FNS["halves"]


def test_they_go_through_every_stage(tmp_path, capsys):
    workdir = make_trained_workdir(tmp_path / "work")
    own = ByNumber(first=3)
    evaluate(
        RunContext(workdir),
        config=EvaluateConfig(
            batch_size=15,
            guard_users=0,
            baselines=("popularity", own),
            metrics=("halves@10",),
        ),
        search=SearchConfig(num_beams=25),
    )
    found = read_json(workdir / "evaluation" / "metrics.json")
    assert list(found["baselines"]) == ["popularity", "by_number"]
    for values in (found["test"], found["baselines"]["by_number"]["test_masked"]):
        assert values["halves@10"] == pytest.approx(values["recall@10"] / 2)
    fuse(
        RunContext(workdir),
        config=FusionConfig(
            parts=("tiger", own), metric="halves@10", metrics=("halves@10",)
        ),
    )
    fused = read_json(workdir / "fusion" / "metrics.json")
    assert set(fused["settings"]["weights"]) == {"tiger", "by_number"}
    assert fused["test"]["halves@10"] == pytest.approx(fused["test"]["recall@10"] / 2)
    printed = capsys.readouterr().out
    assert printed.count("By number") >= 4
    assert "Halves@10" in printed
    report(RunContext(workdir))
    page = (workdir / "report" / "index.html").read_text()
    assert "<td>By number</td>" in page
    assert ">Halves@10</th>" in page


def test_what_can_not_be_measured_is_refused_before_any_search():
    with pytest.raises(InputError, match="unknown metric 'thirds@10': known are"):
        EvaluateConfig(metrics=("thirds@10",))
    with pytest.raises(InputError, match="cut at 20"):
        FusionConfig(metrics=("halves@50",))
    with pytest.raises(InputError, match="'by_number' is taken"):
        EvaluateConfig(baselines=(ByNumber(), ByNumber(first=1)))
    with pytest.raises(ValueError, match="there already"):
        metrics.metric("recall")(lambda ranks, k: ranks)
