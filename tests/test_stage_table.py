from pathlib import Path

import pytest

import tiger_jax
from tiger_jax.stage_table import MADE_BY, STAGES

FOLDER = Path(tiger_jax.__file__).parent / "stages"


def test_every_stage_is_a_file_and_every_file_a_stage():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "context"}
    assert files == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_one_function_of_at_most_150_lines(stage):
    text = (FOLDER / f"{stage}.py").read_text(encoding="utf-8")
    assert f"\ndef {stage}(" in text
    assert len(text.splitlines()) <= 150


def test_a_stage_reads_what_a_stage_writes():
    for stage in STAGES.values():
        assert set(stage.reads) <= set(MADE_BY), stage.name
