"""The report's tree, tables and users, used in a real browser."""

import base64
import json

import browser
import numpy as np
import pytest
from trained_workdir import make_trained_workdir

from tiger_jax.reporting.figures import TEMPLATES
from tiger_jax.reporting.page import inline_script, make_environment
from tiger_jax.semantic_ids.code_tree import pack_tree
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


# How long until the tree is there, and until it shows what was clicked.
MEASURED = """return (async () => {
  const frame = () => new Promise(requestAnimationFrame), steps = [];
  const begun = performance.now();
  const packed = await codeTree.unpack(document.getElementById("packed").textContent);
  const shown = codeTree.show(document.getElementById("tree"), packed);
  await frame();
  const first = performance.now() - begun, prefixes = shown.tree.starts[0].length - 1;
  for (let i = 0; i < 40; i++) {
    let drawn;
    requestAnimationFrame(() => { drawn = performance.now(); });
    const clicked = performance.now();
    if (i % 2) shown.go(-1, 0); else shown.go(0, i % prefixes);
    const listed = performance.now();
    await frame();
    steps.push(listed - clicked + performance.now() - drawn);
  }
  return {first, steps, items: shown.tree.n};
})()"""


@pytest.mark.slow
def test_a_hundred_thousand_items_are_shown_smoothly(tmp_path):
    rng, num_items = np.random.default_rng(0), 100_000
    learned = np.minimum(rng.geometric(0.02, (num_items, 3)) - 1, 255)
    _, prefix = np.unique(learned, axis=0, return_inverse=True)
    by_prefix = np.argsort(prefix, kind="stable")
    first = np.searchsorted(prefix[by_prefix], prefix)
    last = np.empty(num_items, int)
    last[by_prefix] = np.arange(num_items) - first[by_prefix]
    words = [f"{a}{b}{c}o" for a in "bdfklmnrst" for b in "aeiou" for c in "dlnrstvz"]
    drawn = rng.integers(0, len(words), (num_items, 4))
    titles = [
        " ".join([words[c], *(words[w] for w in row)])
        for c, row in zip(learned[:, 0].tolist(), drawn.tolist(), strict=True)
    ]
    packed = pack_tree(
        np.column_stack([learned, last]),
        3,
        (256, 256, 256, int(last.max()) + 1),
        item_ids=[f"B{number:09}" for number in range(num_items)],
        titles=titles,
        categories=[f"Shelf {c % 30}" for c in learned[:, 0].tolist()],
        counts=rng.geometric(0.05, num_items),
        vectors=rng.normal(size=(num_items, 8)),
    )
    script, _ = inline_script(make_environment(), "code_tree.js")
    styles = "".join(
        (TEMPLATES / f"{n}.css").read_text() for n in ("report", "code_tree")
    )
    text = base64.b64encode(packed).decode()
    page = tmp_path / "page.html"
    page.write_text(
        f"<meta charset=utf-8><style>{styles}</style><main id=tree></main>"
        f"<script type=text/plain id=packed>{text}</script><script>{script}</script>"
    )
    with browser.open_browser() as window:
        window.resize(1280, 900)
        window.open(page.as_uri())
        found = window.run(MEASURED)
        assert window.log() == []
    steps = sorted(found["steps"])
    print(
        f"{found['items']:,} items: {len(packed) / 1e3:,.0f} kB compressed, first "
        f"drawn after {found['first']:,.0f} ms, a step in {steps[20]:.0f} ms (median), "
        f"{steps[-1]:.0f} ms (longest)"
    )
    assert found["items"] == num_items
    assert len(packed) < 5e6
    assert found["first"] < 15_000
    assert steps[20] < 500
