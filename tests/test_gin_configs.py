"""Every gin file parses, and what it binds exists."""

import re
from pathlib import Path

import gin
import pytest

from tiger_jax.models.tiger import Tiger, TigerConfig, init_params
from tiger_jax.semantic_ids.token_ids import TokenLayout

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
        if f"@gin.configurable\ndef {path.stem}(" in path.read_text(encoding="utf-8")
    }
    pipeline = (GIN_CONFIGS / "base" / "pipeline.gin").read_text(encoding="utf-8")
    included = set(re.findall(r"include 'base/(\w+)\.gin'", pipeline))
    assert configured <= included
    assert len(configured) > 9


@pytest.mark.parametrize("name", WHOLE)
def test_an_experiment_says_how_to_run_it_and_builds_its_model(name):
    import jax

    header = (GIN_CONFIGS / name).read_text(encoding="utf-8")
    assert "# Expect:" in header
    assert "# Run:" in header
    gin.parse_config_file(name)
    gin.finalize()
    config = gin.query_parameter("train_recommender.model").scoped_configurable_fn()
    assert isinstance(config, TigerConfig)
    model = Tiger(config, TokenLayout((256, 256, 256, 256), 2000))
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    assert jax.tree.leaves(params)
