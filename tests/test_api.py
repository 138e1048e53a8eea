"""The pipeline from Python goes the command line's way."""

import subprocess
import sys
from pathlib import Path

import pytest
from trained_workdir import make_trained_workdir

import tiger_jax
from tiger_jax.api import _literal
from tiger_jax.errors import InputError

SMALL_SHOP = {
    "synthetic.SyntheticShopConfig.num_items": 300,
    "synthetic.SyntheticShopConfig.num_users": 400,
}


def test_stages_run_and_what_they_made_is_there(tmp_path):
    options = {"workdir": tmp_path / "work", "bindings": SMALL_SHOP}
    result = tiger_jax.run(["prepare_data", "embed_items"], **options)
    assert set(result.manifests) == {"data", "embeddings"}
    assert 0 < result.data.num_items <= 300
    again = tiger_jax.run("prepare_data", **options)
    assert again.manifests["data"] == result.manifests["data"]  # skipped
    with pytest.raises(InputError, match="--stage=assign_semantic_ids first"):
        _ = result.semantic_ids


def test_a_work_directory_recommends(tmp_path):
    result = tiger_jax.RunResult(make_trained_workdir(tmp_path))
    answer = result.recommender.recommend(["item-1", "item-2"], k=3)
    assert len(answer.items) == 3
    assert result.semantic_ids.num_items == result.data.num_items


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ["fly"]}, "there is no stage 'fly'"),
        ({"data_dir": "nowhere"}, "--data_dir=nowhere is not a folder"),
        ({"workdir": ""}, "--workdir= is not a folder"),
        ({"gin_files": "nowhere.gin"}, "--gin_file=nowhere.gin is neither"),
        ({"bindings": {"NoSuch.thing": 1}}, "NoSuch"),
        ({"bindings": {"evaluate.seed": object()}}, "which gin has no writing for"),
    ],
)
def test_bad_input_is_refused_as_on_the_command_line(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        tiger_jax.run(**{"workdir": tmp_path / "work", **options})
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("it's", '"it\'s"'),
        (Path("a b"), "'a b'"),
        ((1, 2.5, None), "(1, 2.5, None)"),
        ("@two_level.TwoLevelConfig()", "@two_level.TwoLevelConfig()"),
        ("%SEED", "%SEED"),
    ],
)
def test_values_are_written_as_gin_reads_them(value, written):
    assert _literal("x", value) == written


def test_not_a_number_has_no_writing():
    with pytest.raises(InputError, match="no writing"):
        _literal("x", float("nan"))


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, tiger_jax; assert 'run' in dir(tiger_jax); "
        "assert not {'jax', 'gin', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no_such"):
        _ = tiger_jax.no_such
