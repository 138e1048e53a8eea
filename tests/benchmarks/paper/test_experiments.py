"""The tables of ablations: what a row says, and what is shown of several seeds."""

import numpy as np
import pytest
from trained_workdir import make_trained_workdir

from benchmarks.paper import analyses, experiments, plan
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import write_json

SHOP = plan.Shop("small")
TABLE = "paper_experiments"


def job(name, root, seed=0):
    return plan.Job(plan.RUNS[name], SHOP, seed, plan.FULL, root)


def add_codes_summary(workdir):
    """What the stage `train_rqvae` would have said of the codes."""
    run = artifacts.begin(
        workdir, "rqvae", stage="train_rqvae", inputs=("embeddings",), config={}
    )
    write_json(run.folder / "quality.json", {})
    run.commit(summary={"collision_rate": 0.1, "category_purity": 0.5})


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    root = tmp_path_factory.mktemp("experiments")
    found = []
    for name in ("rqvae", "layers_3"):
        summary = {"seconds": 60, "steps": 300, "parameters": 1000}
        one = job(name, root)
        add_codes_summary(make_trained_workdir(one.workdir, summary=summary))
        about = {"run": name, "seed": 0, "budget": plan.FULL}
        found += [row | about for row in experiments.measure(one, 20)]
    return found


def test_a_row_is_compared_user_by_user_with_its_counterpart(rows, tmp_path):
    first, other = rows
    assert experiments.AGAINST not in first["metrics"]
    # The same model: no user differs.
    assert other["metrics"][experiments.AGAINST] == 0
    assert other["intervals"][experiments.AGAINST] == [0, 0]
    table = analyses.build_table(TABLE, rows)
    assert "| Transformer | 3 + 3 layers | " in table
    assert "| .0000 (.0000–.0000) | .1000 |" in table
    analyses.draw(TABLE, rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_a_difference_is_of_the_same_users(tmp_path):
    for name, ranks in (("rqvae", [0, 50, 50]), ("layers_3", [0, 0, 50])):
        found = np.array(ranks, np.int32)
        one = job(name, tmp_path)
        one.workdir.mkdir(parents=True)
        users = [3, 1, 2] if name == "rqvae" else [1, 2, 9]
        named = {"users": users, "ranks": found, "ranks, masked": found}
        np.savez(one.workdir / "ranks.npz", **named)
    found = experiments.difference(job("layers_3", tmp_path))
    # Users 1 and 2: hits of two against none.
    assert found["metrics"][experiments.AGAINST] == 1
    assert experiments.difference(job("layers_5", tmp_path, seed=1)) == {}


def test_several_seeds_are_a_mean_and_budgets_stand_apart(rows):
    other = {**rows[1], "seed": 1}
    other["metrics"] = {k: v + 0.01 for k, v in rows[1]["metrics"].items()}
    small = {**rows[1], "budget": plan.REDUCED}
    table = analyses.build_table(TABLE, [*rows, small, other])
    whole, reduced = table.split("budget full")
    assert "± " in whole.partition("3 + 3 layers")[2]
    assert "± " not in reduced.partition("3 + 3 layers")[2]
