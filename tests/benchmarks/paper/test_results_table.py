"""The results in the documents are what the rows say."""

import json
from pathlib import Path

import pytest

from benchmarks.lib import read_rows
from benchmarks.paper import results_table
from benchmarks.paper.results_rows import KEY
from tiger_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
ROWS = read_rows(ROOT / "docs" / "results.jsonl")


def test_the_documents_have_the_tables_that_the_rows_give():
    for name, build in (
        ("README.md", results_table.build_headline),
        ("docs/results.md", results_table.build_results),
    ):
        assert build(ROWS) in (ROOT / name).read_text(encoding="utf-8"), name


def test_the_headline_shows_every_method_of_its_and_the_paper():
    lines = results_table.build_headline(ROWS).splitlines()
    lacking = [n for *_, n in results_table.HEADLINE if not any(n in x for x in lines)]
    assert set(lacking) <= set(results_table.MAY_LACK)
    assert len(lines) == 2 + len(results_table.HEADLINE) - len(lacking) + 1
    without = [row for row in ROWS if row["method"] != "sasrec"]
    with pytest.raises(InputError, match="no row of sasrec"):
        results_table.build_headline(without)


def test_a_row_of_the_plan_takes_the_place_of_an_earlier_one():
    old = [r for r in ROWS if r["method"] == "sasrec"]
    (line,) = (
        x for x in results_table.build_headline(ROWS).split("\n") if "SASRec" in x
    )
    new = [{**r, "experiment": "sasrec"} for r in old]
    for row in new:
        row["metrics"] = {k: v / 2 for k, v in row["metrics"].items()}
    (now,) = (
        x
        for x in results_table.build_headline([*ROWS, *new]).split("\n")
        if "SASRec" in x
    )
    assert now != line


def test_stale_rows_are_marked_with_what_makes_them_so():
    table = results_table.build_results(ROWS)
    assert "**TIGER, `beauty_best, max_minutes=None`**† |" in table
    assert "`beauty_best, max_minutes=None`" in table.partition(" †")[2]
    assert "chosen on 2,000 validation users" in table


def test_what_was_published_masked_stands_under_masked():
    line = next(
        x for x in results_table.build_results(ROWS).splitlines() if "RecBoard" in x
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:] == ["", "", "", "", ".0468", ".0312", ".0704", ".0388"]


def test_every_row_says_what_made_it():
    assert len({json.dumps([row[k] for k in KEY]) for row in ROWS}) == len(ROWS)
    for row in ROWS:
        for name, (low, high) in row["intervals"].items():
            assert low <= row["metrics"][name] <= high
        if row["seed"] is not None:
            for fact in ("config_hash", "commit", "hardware", "minutes", "command"):
                assert row[fact] or row[fact] == 0
        assert "/tmp" not in json.dumps(row)


def test_seeds_become_a_mean_with_an_interval_and_gaps_say_so():
    one = next(r for r in ROWS if r["method"] == "tiger" and r["split"] == "test")
    two = {
        **one,
        "seed": 99,
        "metrics": {k: v + 0.002 for k, v in one["metrics"].items()},
    }
    table = results_table.build_results([one, two])
    line = next(x for x in table.splitlines() if x.startswith("| **TIGER"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "2"
    mean = one["metrics"]["recall@5"] + 0.001
    assert cells[2].startswith(f"{mean:.4f}".removeprefix("0") + " ± ")
    assert cells[6:] == ["*not run*"] * 4  # no masked row was given
    assert "not run: needs Sentence-T5 weights" in table


def test_two_trainings_of_one_name_are_told_apart_by_experiment():
    one = next(r for r in ROWS if r["method"] == "sasrec")
    table = results_table.build_results([one, {**one, "experiment": "other"}])
    names = [line.split("|")[1].strip() for line in table.splitlines()[2:4]]
    assert names == [f"{one['name']} (`{e}`)" for e in (one["experiment"], "other")]
    assert f"| {one['name']} |" in results_table.build_results([one])


def test_a_data_set_nobody_published_on_has_its_own_rows_alone():
    row = {**ROWS[0], "data": "mine", "data_users": 7}
    table = results_table.build_results([row]).splitlines()
    assert table[0].startswith("| mine, test |")
    assert not any("Rajput" in line for line in table[:5])


@pytest.mark.parametrize("name", ["beauty", "sports", "toys"])
def test_the_papers_recipe_says_what_it_needs(name):
    assert results_table._why_not(name).startswith("needs ")


def test_what_a_header_says_of_its_data_stands_under_the_table():
    table = results_table.build_results(
        [row for row in ROWS if row["experiment"].startswith("sports_best")]
    )
    assert "*`sports_best`*: where this was measured, each item's text was" in table
    assert results_table._caveat("beauty_best, max_minutes=None") == ""
