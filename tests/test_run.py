"""The command line as a stranger meets it: every call in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiger_jax import cli

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def test_help_says_what_the_flags_are_and_exits_with_0():
    done = run("--help")
    assert done.returncode == 0
    for flag in "stage workdir data_dir embeddings gin_file gin.NAME".split():
        assert f"--{flag}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage=fly"], "there is no stage 'fly'"),
        (["--no_such_flag=1"], "no_such_flag"),
        (["extra"], "unexpected argument 'extra'"),
        (["--data_dir=nowhere"], "--data_dir=nowhere is not a folder"),
        (["--embeddings=nowhere.npy"], "--embeddings=nowhere.npy is not a file"),
        (["--gin_file=nowhere.gin"], "--gin_file=nowhere.gin is neither a file"),
        (["--gin.x"], "must read --gin.NAME=VALUE"),
        (["--gin.NoSuch.thing=1"], "NoSuch"),
        (["--gin.prepare_data.no_such_option=1"], "no_such_option"),
        (["--gin.prepare_data.seed=]"], "gin:"),
        (["--gin.prepare_data.seed=(1,"], "gin:"),  # the tokenizer's own error
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments, message, tmp_path):
    done = run(*arguments, f"--workdir={tmp_path / 'work'}")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "work" / "data").exists()


def test_a_stage_without_its_input_names_the_stage_to_run_first(tmp_path):
    done = run("--stage=embed_items", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "--stage=prepare_data first" in done.stderr


def test_a_disk_that_fails_is_one_line(tmp_path):
    done = run("--stage=prepare_data", "--workdir=/dev/null/x", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Not a directory" in done.stderr


def test_gin_bindings_on_the_command_line_are_split_off():
    bindings, rest = cli._take_gin_bindings(
        ["run.py", "--gin.a.B.c='x=1'", "--stage=evaluate", "-gin.SEED=3"]
    )
    assert bindings == ["a.B.c = 'x=1'", "SEED = 3"]
    assert rest == ["run.py", "--stage=evaluate"]


def test_what_storage_did_is_found_in_other_errors():
    from tiger_jax.errors import storage_problem

    full = OSError(28, "No space left on device", "somewhere")
    behind = RuntimeError("could not save")
    behind.__cause__ = full
    assert storage_problem(behind) == "No space left on device (somewhere)"
    quoted = ValueError("write failed: No space left on device [errno 28]")
    assert storage_problem(quoted) == "No space left on device (ValueError)"
    assert storage_problem(ValueError("no such item")) is None
