import json
import shutil

import pytest
from trained_workdir import make_trained_workdir

from benchmarks.paper import checkpoint_choice
from benchmarks.paper.study import Study


@pytest.mark.slow
def test_every_kept_checkpoint_is_measured(tmp_path):
    """Every kept checkpoint is measured beside what training saw."""
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
    chosen, other = checkpoint_choice.measure(study)
    assert (chosen["step"], other["step"]) == (0, 3)
    assert chosen["is_chosen"]
    assert not other["is_chosen"]
    assert chosen["users"] == 12
    assert chosen["sampled_users"] == 7
    assert other["sampled"] == {"recall@10": 0.25, "ndcg@10": 0.125, "loss": 0.5}
    assert other["metrics"] == chosen["metrics"]  # the same parameters
    table = checkpoint_choice.build_table([chosen, other])
    assert "| 0 | **0** | 3.500 | .2500 / .1250 |" in table
    assert "| 0 | 3 | 0.500 | .2500 / .1250 |" in table
