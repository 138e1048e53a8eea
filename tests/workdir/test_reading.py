from pathlib import Path

import pyarrow as pa
import pytest

from tiger_jax.errors import InputError, LockedError
from tiger_jax.workdir.reading import reading


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file", "x"),
        EOFError(),
        KeyError("kind"),
        IndexError("3"),
        TypeError("an int"),
        ValueError("two\nlines"),
        pa.ArrowNotImplementedError("a type"),
    ],
)
def test_a_failure_to_read_is_one_line_with_the_stage_to_run(error):
    expected = r"^work/rqvae/quantizer.json can't be read \(.*\): run --stage=train_rqv"
    with pytest.raises(InputError, match=expected) as caught:
        with reading(Path("work/rqvae/quantizer.json")):
            raise error
    assert "\n" not in str(caught.value)
    assert type(error).__name__ in str(caught.value)


def test_a_remedy_of_its_own_is_said():
    with pytest.raises(InputError, match="read .*: ask somebody$"):
        with reading("a/b", "ask somebody"):
            raise KeyError("c")


@pytest.mark.parametrize(
    "error",
    [InputError("mine"), LockedError("held"), RuntimeError("ours"), MemoryError()],
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught:
        with reading("a"):
            raise error
    assert caught.value is error
