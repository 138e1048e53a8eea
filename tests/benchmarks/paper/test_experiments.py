"""The reduced ablations: what they run, what a row says, what the table shows."""

import ast
import re

import gin
import numpy as np
import pytest
from trained_workdir import make_trained_workdir

from benchmarks.paper import experiments
from tiger_jax import cli as command_line
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import write_json

# A name and its value, which may be a tuple over several lines; no configurable.
BOUND = r"^([\w.]+) = (\([^)]*\)|[^@(\n]+)$"
SHOP = experiments.Shop("data", "vectors.npy")
REDUCED = (command_line.GIN_CONFIGS / "base" / "reduced.gin").read_text()


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_an_experiment_is_small_and_keeps_what_its_file_binds(name, tmp_path):
    experiment = experiments.EXPERIMENTS[name]
    words = experiments.command(experiment, tmp_path, SHOP, SHOP)
    bindings, rest = command_line._take_gin_bindings(words)
    files = [w.partition("=")[2] for w in rest if w.startswith("--gin_file=")]
    assert files[-1] == "base/reduced.gin"
    gin.clear_config()
    try:
        command_line.parse_gin(files, bindings)
        loop = gin.query_parameter("train_recommender.loop").scoped_configurable_fn()
        assert loop.total_steps == 300
        own = command_line.GIN_CONFIGS / "experiments" / f"{experiment.gin_file}.gin"
        replaced = {binding.partition(" = ")[0] for binding in bindings}
        replaced |= set(re.findall(r"^([\w.]+) = ", REDUCED, re.MULTILINE))
        bound = re.findall(BOUND, own.read_text(), re.MULTILINE)
        for parameter, value in bound:
            if parameter not in replaced:
                assert gin.query_parameter(parameter) == ast.literal_eval(value)
    finally:
        gin.clear_config()


def test_what_is_compared_comes_first():
    names = list(experiments.EXPERIMENTS)
    assert names[0] == experiments.FIRST
    for name, experiment in experiments.EXPERIMENTS.items():
        assert names.index(experiment.against) <= names.index(name)


def test_a_row_is_compared_user_by_user_with_its_counterpart(tmp_path):
    for name in ("reduced", "layers_3"):
        summary = {"seconds": 60, "steps": 300, "parameters": 1000}
        workdir = make_trained_workdir(tmp_path / name, summary=summary)
        _add_codes_summary(workdir)
    first, other = (
        experiments.measure(experiments.EXPERIMENTS[name], tmp_path, 20, 0)
        for name in ("reduced", "layers_3")
    )
    assert first["difference"] is None
    # The same model: no user differs.
    assert other["difference"]["recall@10"] == (0.0, 0.0, 0.0)
    assert other["difference"]["users"] == 20
    table = experiments.build_table([first, other])
    assert "| 3 + 3 layers | " in table
    assert "| +.0000 (+.0000 to +.0000) |" in table
    assert "| LSH | *not run* |" in table
    experiments.draw([first, other], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_a_difference_has_its_sign():
    ranks = np.array([0, 99, 99, 99], np.int32)
    difference = {"recall@10": (-0.25, -0.5, 0.0), "users": len(ranks)}
    assert experiments._signed(difference) == "−.2500 (−.5000 to +.0000)"


def _add_codes_summary(workdir):
    """What the stage `train_rqvae` would have said of the codes."""
    run = artifacts.begin(
        workdir, "rqvae", stage="train_rqvae", inputs=("embeddings",), config={}
    )
    write_json(run.folder / "quality.json", {})
    run.commit(summary={"collision_rate": 0.1, "category_purity": 0.5})
