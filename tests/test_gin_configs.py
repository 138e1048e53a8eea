"""Every gin file parses, and what it binds exists."""

import ast
import functools
import inspect
import re

import gin
import jax
import pytest
from gin.config import _REGISTRY

from tiger_jax.cli import CONFIG_MODULES, GIN_CONFIGS, parse_gin, stage_function
from tiger_jax.errors import InputError
from tiger_jax.models.generator import GeneratorConfig, build_model, init_params
from tiger_jax.semantic_ids.token_ids import TokenLayout
from tiger_jax.stage_table import STAGES
from tiger_jax.training.optimizers import make_optimizer

# t5x's own names stand in these; tests/t5x_bridge runs them where t5x is installed.
FILES = sorted(
    p.relative_to(GIN_CONFIGS).as_posix()
    for p in GIN_CONFIGS.rglob("*.gin")
    if p.parent.name != "t5x"
)
WHOLE = ["demo.gin", *(f for f in FILES if f.startswith("experiments/"))]


@pytest.fixture(autouse=True)
def _fresh_gin():
    yield
    gin.clear_config()


@pytest.mark.parametrize("name", FILES)
def test_a_gin_file_parses_without_unknown_names(name):
    parse_gin([name], [])


@pytest.mark.parametrize("stage", STAGES)
def test_gin_configures_the_stages_that_have_a_base_file(stage):
    has_file = (GIN_CONFIGS / "base" / f"{stage}.gin").is_file()
    assert has_file == (_REGISTRY.get_match(f"stages.{stage}") is not None)


def test_the_seed_is_every_stages():
    parse_gin([], ["SEED = 3"])
    seeded = {
        stage
        for stage in STAGES
        if "seed" in inspect.signature(stage_function(stage)).parameters
    }
    assert len(seeded) > 9
    for stage in seeded:
        assert gin.get_bindings(f"stages.{stage}")["seed"] == 3


@pytest.mark.parametrize("stage", STAGES)
def test_a_base_file_restates_no_default(stage):
    parse_gin([], [])
    path = GIN_CONFIGS / "base" / f"{stage}.gin"
    lines = path.read_text(encoding="utf-8") if path.is_file() else ""
    # In a scope, a value also shields from what an experiment binds elsewhere.
    for name, field, value in re.findall(
        r"^([\w.]+)\.(\w+) = ([^@%\n]+)$", lines, re.MULTILINE
    ):
        made = inspect.signature(_REGISTRY.get_match(name).wrapped).parameters
        assert ast.literal_eval(value) != made[field].default, f"{name}.{field}"


def test_whatever_gin_may_bind_is_imported():
    parse_gin([], [])
    rooms = GIN_CONFIGS.parent / "tiger_jax"
    # SeqioConfig imports TensorFlow: base/seqio_input.gin imports it.
    elsewhere = {"t5x_bridge", "config", "batches"}
    for path in rooms.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        module = re.search(r'^@(?:config\(|gin\.\w+\(module=)"(\w+)"', text, re.M)
        if module and not elsewhere & {path.stem, path.parent.name}:
            for name in re.findall(r'^@config\("\w+"\)\nclass (\w+)', text, re.M):
                known = _REGISTRY.get_match(f"{module[1]}.{name}")
                assert known, f"{path}: add it to {CONFIG_MODULES}"


def test_gin_files_of_earlier_versions_still_parse(tmp_path):
    old = tmp_path / "old.gin"
    old.write_text(
        "include 'base/pipeline.gin'\nimport tiger_jax.data.files\n"
        "import tiger_jax.stages.recommendation\ninclude 'base/tiger.gin'\n"
        "files.FilesConfig.item_id = 'asin'\n"
    )
    parse_gin([str(old), "hardware/tpu_v4.gin"], [])
    assert gin.query_parameter("files.FilesConfig.item_id") == "asin"
    assert gin.query_parameter("resident.ResidentConfig.batch_size") == 2048


def test_a_config_that_refuses_its_values_is_one_line():
    parse_gin(["demo.gin"], [])
    config = gin.query_parameter("train_recommender.model").scoped_configurable_fn()
    # Past the annotations, which only tests check at every call.
    vars(config)["dtype"] = "float16"
    with pytest.raises(
        InputError, match=r"two_level\.TwoLevelConfig\.dtype is 'float16'"
    ):
        config.__post_init__()


@functools.cache
def _shapes(config, num_user_tokens):
    """Most experiments train one of a few models: each is traced once."""
    layout = TokenLayout((256, 256, 256, 256), num_user_tokens)
    model = build_model(config, layout, content_shape=(4, 8))
    return jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))


@pytest.mark.parametrize("name", WHOLE)
def test_an_experiment_says_how_to_run_it_and_builds_its_model(name):
    header = (GIN_CONFIGS / name).read_text(encoding="utf-8")
    assert "# Expect:" in header
    assert "# Takes:" in header
    assert "# Run:" in header
    parse_gin([name], [])
    config = gin.query_parameter("train_recommender.model").scoped_configurable_fn()
    assert isinstance(config, GeneratorConfig)
    bound = gin.get_bindings("stages.train_recommender", resolve_references=False)
    assert jax.tree.leaves(_shapes(config, bound.get("num_user_tokens", 2000)))
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
    parse_gin(["experiments/beauty_best.gin"], [])
    optimizer = gin.query_parameter("train_sasrec.optimizer").scoped_configurable_fn()
    loop = gin.query_parameter("train_sasrec.loop").scoped_configurable_fn()
    assert (optimizer.name, optimizer.schedule) == ("adamw", "constant")
    assert (loop.best_metric, loop.max_minutes) == ("ndcg@10", None)
