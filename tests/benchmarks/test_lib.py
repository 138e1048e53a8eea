"""What the benchmarks share: rows, tables between marks, turns, one-line errors."""

import subprocess
import sys

import pytest

from benchmarks import lib
from benchmarks.__main__ import main
from tiger_jax.errors import InputError


def test_missing_data_are_named_before_anything_runs(monkeypatch):
    monkeypatch.delenv("TIGER_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(InputError, match="no amazon2014_beauty .* give TIGER_DATA"):
        main()


def test_a_table_replaces_only_what_stands_between_its_marks(tmp_path):
    file = tmp_path / "a.md"
    file.write_text("a\n<!-- t -->\nold\n<!-- /t -->\nb <!-- u -->\n")
    lib.write_between(file, "t", "new\n\n")
    assert file.read_text() == "a\n<!-- t -->\nnew\n<!-- /t -->\nb <!-- u -->\n"


@pytest.mark.parametrize(
    "text", ["", "<!-- /t --> <!-- t -->", "<!-- t --> <!-- t --> <!-- /t -->"]
)
def test_a_document_without_its_marks_is_refused(tmp_path, text):
    (tmp_path / "a.md").write_text(text)
    with pytest.raises(InputError, match="needs one <!-- t -->"):
        lib.write_between(tmp_path / "a.md", "t", "new")
    assert (tmp_path / "a.md").read_text() == text


def test_rows_are_kept_replaced_in_place_and_read_again(tmp_path):
    path = tmp_path / "sub" / "rows.jsonl"
    assert lib.read_rows(path) == []
    for row in ({"a": 1, "x": 1}, {"a": 2, "x": 2}):
        lib.report(row, path)
    merged = lib.merge_rows(lib.read_rows(path), [{"a": 1, "x": 3}, {"a": 4}], "a")
    assert merged == [{"a": 1, "x": 3}, {"a": 2, "x": 2}, {"a": 4}]
    lib.write_rows(path, [*merged, {"a": 2, "x": 5}])
    newest = lib.newest_rows(path, lambda row: row["a"])
    assert newest == [{"a": 1, "x": 3}, {"a": 2, "x": 5}, {"a": 4}]


def test_sides_take_turns_and_their_work_is_summed():
    calls = []
    sides = {name: lambda name=name: calls.append(name) or name for name in "ab"}
    turns = lib.race(sides, 2, 0.0, weigh=lambda name: (ord(name), 1))
    assert calls == ["a", "b", "a", "b", "a", "b"]  # the first of each isn't timed
    assert turns["a"].shape == (2, 4)
    assert turns["b"][:, 2:].tolist() == [[98, 1], [98, 1]]
    turns = lib.race(sides, 1, 0.01)
    assert turns["a"][0, 0] >= 0.01
    assert turns["a"][0, 2] > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["training.step"], "$TIGER_DATA, which is not set: give --data_dir"),
        (
            ["paper.analyses", "cold_start", "--workdir=nowhere"],
            "no trained recommender in nowhere",
        ),
        (["paper"], "or --shops=demo for the generated shop"),
        (["scale", "--rows=no", "--document=README.md"], "no rows in no: measure"),
    ],
)
def test_missing_input_is_one_line_before_anything_is_measured(words, message):
    name, *options = words
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options],
        capture_output=True,
        text=True,
        cwd=lib.ROOT,
        env={"PYTHONPATH": str(lib.ROOT), "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    lines = [x for x in done.stderr.splitlines() if not x.startswith("without ")]
    assert len(lines) == 1
    assert message in lines[0]
