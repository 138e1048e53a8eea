"""Stage compare: what differs between runs, over the users that they share."""

import re

import browser
import numpy as np
import pytest
from trained_workdir import make_trained_workdir

from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.evaluation.lists import SavedLists
from tiger_jax.evaluation.metrics import REPORTED
from tiger_jax.reporting import compared_runs
from tiger_jax.stages.compare import compare
from tiger_jax.stages.context import RunContext
from tiger_jax.workdir import artifacts
from tiger_jax.workdir.json_files import write_json


def measured(folder, found, *, rows=(0, 45), beams=50):
    """A run whose first `found` test users have their target at rank 1."""
    workdir = make_trained_workdir(folder)
    data = PreparedData.load(workdir / "data")
    targets = data.test.targets
    rows = np.arange(*rows)
    items = np.stack([(targets + 1) % data.num_items, targets], 1).astype(np.int32)
    items[found:, 1] = (targets[found:] + 2) % data.num_items
    scores = np.tile(np.float32([-1.0, -2.0]), (len(targets), 1))
    run = artifacts.begin(
        workdir,
        "evaluation",
        stage="evaluate",
        inputs=("recommender",),
        config={"num_beams": beams},
    )
    values = dict.fromkeys(REPORTED, found / len(targets))
    splits = {split: values for split in compared_runs.SPLITS}
    write_json(run.folder / "metrics.json", {**splits, "intervals": {}})
    for split in compared_runs.SPLITS:
        lists = SavedLists(rows, items[rows], scores[rows])
        lists.save(run.folder / "lists", f"tiger_{split}")
    run.commit()
    return workdir


def test_two_runs_stand_side_by_side(tmp_path, capsys):
    first = measured(tmp_path / "few", 9)
    second = measured(tmp_path / "many", 27, beams=100)
    context = RunContext(tmp_path / "compared", runs=(first, second))
    compare(context)
    page = (tmp_path / "compared" / "compare" / "index.html").read_text()
    # 18 of 45 users more are found.
    assert "<td>+.4000</td>" in page
    assert "better" in page
    row = page[page.index(">evaluation: num_beams</code>") :].split("</tr>")[0]
    assert re.findall(r"<td[^>]*>(\d+)</td>", row) == ["50", "100"]
    assert "Items found more and less often by many" in page
    compare(context)
    assert "compare: up to date" in capsys.readouterr().out


def test_only_users_of_both_runs_count(tmp_path):
    runs = (
        measured(tmp_path / "a" / "run", 9),
        measured(tmp_path / "b" / "run", 27, rows=(0, 18)),
    )
    first, second = compared_runs.load_runs(runs, 0)
    assert (first.name, second.name) == ("a/run", "b/run")
    assert len(first.rows) == len(second.rows) == 18
    rows = compared_runs.differences([first, second], 0)
    assert [row["difference"] for row in rows if row["metric"] == "recall@10"] == [
        0.5,
        0.5,
    ]
    (users, *_) = compared_runs.groups([first, second], 0)
    assert users["users"] <= 18
    (gain,) = users["gains"]
    assert gain[0] == pytest.approx(users["recalls"][1] - users["recalls"][0])
    assert gain[1] <= gain[0] <= gain[2]
    assert compared_runs.config_differences([first, second]) == []
    packages = second.parts.manifests["evaluation"].made["packages"]
    packages["jax"], now = "0.0", packages["jax"]
    (row,) = compared_runs.config_differences([first, second])
    assert row == {"key": "evaluation: jax", "values": [now, "0.0"]}


def test_runs_that_share_no_user_are_refused(tmp_path):
    runs = (
        measured(tmp_path / "a", 9, rows=(0, 20)),
        measured(tmp_path / "b", 9, rows=(20, 45)),
    )
    with pytest.raises(InputError, match="a, b share no user"):
        compared_runs.load_runs(runs, 0)


def test_one_run_is_too_few(tmp_path):
    with pytest.raises(InputError, match="--runs=runs/a,runs/b"):
        compare(RunContext(tmp_path, runs=(tmp_path,)))


def test_a_run_without_an_evaluation_names_the_stage(tmp_path):
    workdir = make_trained_workdir(tmp_path / "a")
    with pytest.raises(InputError, match="--stage=evaluate first"):
        compare(RunContext(tmp_path, runs=(workdir, workdir)))


@pytest.mark.slow  # starts Chromium
@pytest.mark.skipif(not browser.is_installed(), reason="needs chromium")
def test_the_page_is_read_and_sorted_in_a_browser(tmp_path):
    runs = [measured(tmp_path / f"found_{n}", n) for n in (9, 27, 18)]
    compare(RunContext(tmp_path, runs=tuple(runs)))
    drawn = "return [...document.images].map(i => i.complete && i.currentSrc)"
    order = (
        "return [...document.querySelectorAll('#metrics table')[0].rows].slice(1)"
        ".map(row => row.cells[0].textContent)"
    )
    pictures = set()
    with browser.open_browser() as window:
        for width in (1280, 390):
            for dark in (False, True):
                window.resize(width, 900, dark=dark)
                window.open(f"file://{tmp_path}/compare/index.html")
                assert window.run("return document.documentElement.scrollWidth") <= (
                    width
                )
                pictures.add(tuple(window.run(drawn)))
        assert len(pictures) == 4  # each is drawn for its width and theme
        assert all(map(all, pictures))
        cell = "document.querySelector('#metrics th.sorts')"
        assert window.run(f"return {cell}.textContent").lower() == "recall@5"
        window.run(f"{cell}.focus()")
        press = f"{cell}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter'}}))"
        window.run(press)
        assert window.run(order) == ["found_27", "found_18", "found_9"]
        window.click("#metrics th.sorts")
        assert window.run(order) == ["found_9", "found_18", "found_27"]
        links = "[...document.querySelectorAll('nav a')].map(a => a.hash)"
        missing = f"return {links}.filter(hash => !document.querySelector(hash))"
        assert window.run(missing) == []
        assert not window.log()
