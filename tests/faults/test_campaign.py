"""The campaigns' own law: what goes wrong is counted, and nothing is counted twice."""

import dataclasses

import numpy as np
import pytest

from faults import fuzzing, invariants, storage
from faults.campaign import (
    Fault,
    Outcome,
    Total,
    append_row,
    format_table,
    next_try,
    sum_rows,
    try_once,
)
from tiger_jax.workdir import artifacts


def make_fault(outcome: Outcome | Exception) -> Fault:
    def attempt(number, folder):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return Fault("kind: what", 10, attempt)


def test_a_campaign_goes_on_after_its_last_whole_row(tmp_path):
    rows = tmp_path / "rows.jsonl"
    assert next_try(rows, "a") == 0
    total = Total()
    for outcome in (Outcome(), Outcome(lost=1, note="gone", count=4)):
        total.add(outcome, 1.5)
    append_row(rows, "a", 0, total)
    append_row(rows, "b", 0, Total(tries=2))
    with open(rows, "a") as file:
        file.write('{"fault": "a", "first": 5, "tri')  # killed while it wrote
    assert next_try(rows, "a") == 5
    assert sum_rows(rows)["a"] == Total(5, 1, 0, 3.0, ["gone"])


def test_the_table_says_what_was_not_made(tmp_path):
    rows = tmp_path / "rows.jsonl"
    faults = [make_fault(Outcome()), Fault("other: one", 2000, lambda n, f: Outcome())]
    append_row(rows, "kind: what", 0, Total(7, 1, 2, 12.4, answers=1234))
    lines = format_table(faults, rows).splitlines()
    assert lines[2] == "| kind: what (1,234 answers) | 10 | 7 | 1 | 2 | 12 |"
    assert lines[3] == "| other: one | 2,000 | 0 | – | – | – |"
    assert lines[-1].startswith("Printed by `make faults` from its rows of 20")


def test_what_a_try_raises_counts_as_wrong(tmp_path):
    outcome = try_once(make_fault(ValueError("no\nsuch thing")), 3, tmp_path)
    assert (outcome.wrong, outcome.lost) == (1, 0)
    assert "try 3: ValueError at test_campaign.py" in outcome.note
    assert "no such thing" in outcome.note


def test_damage_that_nobody_notices_counts_as_lost(tmp_path, monkeypatch):
    """A reader of manifests that believes every file, and one of half of them."""
    workdir = storage._small(tmp_path)
    before = {p: artifacts.load_manifest(p) for p in workdir.iterdir()}

    def believe(path):
        now = [p.stat().st_size for p in sorted(path.iterdir())]
        return dataclasses.replace(before[path], summary={"sizes": now})

    monkeypatch.setattr(artifacts, "load_manifest", believe)
    lost = sum(storage.damage_small_artifact(n, tmp_path).lost for n in range(20))
    assert lost >= 5  # all but flips, after which no size has changed


def test_a_reader_s_fault_is_found(tmp_path):
    reader = fuzzing.READERS[0]
    reader.prepare(tmp_path)
    assert reader.problem(tmp_path, reader.seeds[0]) == ""
    assert reader.problem(tmp_path, b"no table") == ""  # refused in one line
    for error, said in ((KeyError("x"), "KeyError at"), (AssertionError("x"), "wrong")):

        def check(folder, error=error):
            raise error

        broken = dataclasses.replace(reader, check=check)
        assert said in broken.problem(tmp_path, b"a,b\n1,2\n")


@pytest.mark.parametrize(
    ("items", "scores"),
    [
        ([[0, 0, 1]], [[3, 2, 1]]),  # repeated
        ([[0, 5, 1]], [[3, 2, 1]]),  # no such item
        ([[0, 1, 3]], [[3, 2, 1]]),  # excluded
        ([[0, 1, 2]], [[3, 1, 2]]),  # out of order
        ([[0, 1, -1]], [[3, 2, -np.inf]]),  # one is missing
        ([[0, 1, -1]], [[3, 2, 1]]),  # a score without item
        ([[0, -2, 1]], [[3, 2, 1]]),
    ],
)
def test_a_bad_list_is_marked(items, scores):
    exclude = np.array([[3, 3, -1]])
    bad = invariants._bad_lists(np.array(items), np.array(scores), exclude, 4)
    assert bad.tolist() == [True]
    good = np.array([[0, 1, 2]]), np.array([[3.0, 2.0, 2.0]])
    assert invariants._bad_lists(*good, exclude, 4).tolist() == [False]
