"""Every gin file parses, and what it binds exists."""

import functools
import re
from pathlib import Path

import gin
import jax
import pytest

from tiger_jax.models.tiger import Tiger, TigerConfig, init_params
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.training.optimizers import make_optimizer

GIN_CONFIGS = Path(__file__).resolve().parent.parent / "gin_configs"
# t5x's own names stand in these; tests/t5x_bridge runs them where t5x is installed.
FILES = sorted(
    p.relative_to(GIN_CONFIGS).as_posix()
    for p in GIN_CONFIGS.rglob("*.gin")
    if p.parent.name != "t5x"
)
WHOLE = ["demo.gin", *(f for f in FILES if f.startswith("experiments/"))]


@pytest.fixture(autouse=True)
def _fresh_gin():
    gin.clear_config()
    gin.add_config_file_search_path(str(GIN_CONFIGS))
    yield
    gin.clear_config()


@pytest.mark.parametrize("name", FILES)
def test_a_gin_file_parses_without_unknown_names(name):
    if name.startswith("hardware/"):  # adds to an experiment, as the header says
        gin.parse_config_file("demo.gin")
    gin.parse_config_file(name)
    gin.finalize()


def test_a_stage_that_gin_configures_is_imported_before_gin_is_locked():
    stages = GIN_CONFIGS.parent / "tiger_jax" / "stages"
    configured = {
        path.stem
        for path in stages.glob("*.py")
        if f'@gin.configurable(module="stages")\ndef {path.stem}('
        in path.read_text(encoding="utf-8")
    }
    pipeline = (GIN_CONFIGS / "base" / "pipeline.gin").read_text(encoding="utf-8")
    included = set(re.findall(r"include 'base/(\w+)\.gin'", pipeline))
    assert configured <= included
    assert len(configured) > 9


@functools.cache
def _shapes(config, num_user_tokens):
    """Most experiments train one of a few models: each is traced once."""
    model = Tiger(config, TokenLayout((256, 256, 256, 256), num_user_tokens))
    return jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))


@pytest.mark.parametrize("name", WHOLE)
def test_an_experiment_says_how_to_run_it_and_builds_its_model(name):
    header = (GIN_CONFIGS / name).read_text(encoding="utf-8")
    assert "# Expect:" in header
    assert "# Takes:" in header
    assert "# Run:" in header
    gin.parse_config_file(name)
    gin.finalize()
    config = gin.query_parameter("train_recommender.model").scoped_configurable_fn()
    assert isinstance(config, TigerConfig)
    num_user_tokens = gin.query_parameter("train_recommender.num_user_tokens")
    assert jax.tree.leaves(_shapes(config, num_user_tokens))
    # What else the recipe says is made, so that a misspelt value is found here.
    for stage, argument in (
        ("prepare_data", "interactions"),
        ("prepare_data", "splits"),
        ("embed_items", "text"),
        ("train_rqvae", "quantizer"),
        ("train_recommender", "optimizer"),
        ("train_recommender", "loop"),
        ("train_sasrec", "model"),
        ("train_sasrec", "optimizer"),
        ("evaluate", "search"),
        ("fuse", "config"),
    ):
        made = gin.query_parameter(f"{stage}.{argument}").scoped_configurable_fn()
        if argument == "optimizer":
            make_optimizer(made, total_steps=100_000)


@pytest.mark.parametrize("folder", ["unstated", "ablations"])
def test_a_variant_says_what_it_changes_and_changes_nothing_else(folder):
    for path in sorted((GIN_CONFIGS / "experiments" / folder).glob("*.gin")):
        text = path.read_text(encoding="utf-8")
        assert "Not run" in text or "not run" in text, path
        assert "include 'experiments/beauty_paper.gin'" in text, path
        assert f"experiments/{folder}/{path.name}" in text, path


def test_the_baseline_is_not_moved_by_what_an_experiment_binds():
    gin.parse_config_file("experiments/beauty_best.gin")
    optimizer = gin.query_parameter("train_sasrec.optimizer").scoped_configurable_fn()
    loop = gin.query_parameter("train_sasrec.loop").scoped_configurable_fn()
    assert (optimizer.name, optimizer.schedule) == ("adamw", "constant")
    assert (loop.best_metric, loop.max_minutes) == ("ndcg@10", None)
