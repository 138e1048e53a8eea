"""The report's tree, tables and users, used in a real browser."""

import json

import browser
import pytest
from trained_workdir import make_trained_workdir

from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.report import report

pytestmark = pytest.mark.skipif(
    not browser.is_installed(), reason="needs chromium and chromedriver"
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = make_trained_workdir(tmp_path_factory.mktemp("work"))
    report(RunContext(workdir))
    return workdir


def test_the_tree_has_every_prefix_and_leads_to_the_items(workdir):
    codes = SemanticIdTable.load(workdir / "semantic_ids").codes
    with browser.open_browser() as window:
        window.resize(390, 844)
        window.open(f"file://{workdir}/report/index.html")
        window.run("tree.scrollIntoView()")
        window.wait_for("window.shownTree")
        counts = window.run("return shownTree.tree.starts.map(s => s.length - 1)")
        expected = [len({tuple(c[: d + 1]) for c in codes.tolist()}) for d in range(3)]
        assert counts == [*expected, len(codes)]
        assert window.run("return document.documentElement.scrollWidth") <= 390
        # The arrow keys go down the tree, and each step is said.
        window.run("document.querySelector('.tree-canvas').focus()")
        press = (
            "document.querySelector('.tree-canvas').dispatchEvent("
            "new KeyboardEvent('keydown', {key: arguments[0]}))"
        )
        window.run(press, "ArrowRight")
        window.run(press, "ArrowRight")
        said = window.run("return document.querySelector('.tree-said').textContent")
        first = min(map(tuple, codes.tolist()))
        assert said.startswith(f"Prefix {first[0]} {first[1]}:")
        window.run(press, "ArrowLeft")
        assert window.run("return shownTree.state.level") == 0
        assert json.dumps(window.log()) == "[]"
