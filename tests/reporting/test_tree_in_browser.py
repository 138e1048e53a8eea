"""The report's tree, tables and users, used in a real browser."""

import base64
import json

import browser
import numpy as np
import pytest
from trained_workdir import make_trained_workdir

from tiger_jax.data.prepared import PreparedData
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
        # Under the pointer: the prefix's numbers, and titles of its items.
        window.run("shownTree.go(-1, 0)")
        window.run(
            "const canvas = document.querySelector('.tree-canvas');"
            "const {x, y} = canvas.getBoundingClientRect();"
            "const at = {clientX: x + 9, clientY: y + 2};"
            "canvas.dispatchEvent(new PointerEvent('pointermove', at))"
        )
        hovered = window.run("return document.querySelector('.tree-tip').innerText")
        data = PreparedData.load(workdir / "data")
        below = np.flatnonzero(codes[:, 0] == first[0])
        counts = np.bincount(data.histories.items, minlength=data.num_items)
        said = f"{len(below)} items · {counts[below].sum()} interactions"
        assert said in hovered
        titles = data.items["title"].to_pylist()
        shown = hovered.splitlines()[2:]
        assert len(shown) == 3
        assert set(shown) <= {titles[n] for n in below}
        # By interactions, the first child is the one with most of them.
        choose = (
            "const selects = document.querySelectorAll('.tree-bar select');"
            "const select = selects[arguments[0]]; select.value = arguments[1];"
            "select.dispatchEvent(new Event('change'))"
        )
        window.run(choose, 0, "interactions")
        button = "document.querySelector('.tree-children button').firstChild.data"
        taken = np.bincount(codes[:, 0], counts + 0.5)
        assert taken[int(window.run(f"return {button}"))] == taken.max()
        pixels = "return document.querySelector('.tree-canvas').toDataURL()"
        frame = "return new Promise(requestAnimationFrame)"
        window.run(frame)
        by_category = window.run(pixels)
        window.run(choose, 1, "purity")
        window.run(frame)
        assert window.run(pixels) != by_category
        assert json.dumps(window.log()) == "[]"


def write_page(folder, packed):
    """A page with nothing but a tree."""
    script, _ = inline_script(make_environment(), "code_tree.js")
    styles = "".join(
        (TEMPLATES / f"{n}.css").read_text() for n in ("report", "code_tree")
    )
    text = base64.b64encode(packed).decode()
    page = folder / "page.html"
    page.write_text(
        f"<meta charset=utf-8><style>{styles}</style><main id=tree></main>"
        f"<script type=text/plain id=packed>{text}</script><script>{script}</script>"
    )
    return page


FRAME = "const frame = () => new Promise(requestAnimationFrame);"
FIRST = (
    FRAME
    + """return (async () => {
  const packed = await codeTree.unpack(document.getElementById("packed").textContent);
  const onPrefix = (codes) => { window.asked = codes; };
  window.shown = codeTree.show(document.getElementById("tree"), packed, { onPrefix });
  await frame();
  return shown.tree.n;
})()"""
)
STEPS = (
    FRAME
    + """return (async () => {
  const prefixes = shown.tree.starts[0].length - 1;
  for (let i = 0; i < 40; i++) {
    if (i % 2) shown.go(-1, 0); else shown.go(0, i % prefixes);
    await frame();
  }
})()"""
)


def cpu_milliseconds(window):
    """What the page's thread has worked, whatever else the machine does."""
    metrics = window.devtools("Performance.getMetrics")["metrics"]
    return 1e3 * next(m["value"] for m in metrics if m["name"] == "TaskDuration")


def test_many_first_codewords_are_shown_in_groups(tmp_path):
    kinds = 100  # of two items each; the first half of them are lamps
    codes = np.column_stack([np.repeat(np.arange(kinds), 2), np.tile([0, 1], kinds)])
    words = ["lamp"] * kinds + ["chair"] * kinds
    packed = pack_tree(
        codes,
        1,
        (128, 2),
        item_ids=[f"i{n}" for n in range(2 * kinds)],
        titles=[f"{word} {n}" for n, word in enumerate(words)],
        categories=[""] * 2 * kinds,
        counts=np.ones(2 * kinds, int),
        vectors=np.linspace((0, 1), (1, 1), 2 * kinds),
    )
    with browser.open_browser() as window:
        window.open(write_page(tmp_path, packed).as_uri())
        assert window.run(FIRST) == 2 * kinds
        counts = window.run("return shown.tree.starts.map(s => s.length - 1)")
        assert counts == [4, kinds, 2 * kinds]
        side = "return document.querySelector('.tree-side').innerText"
        assert "4 groups of first codewords below" in window.run(side)
        # A group is a place to look, and no part of an ID; what is below it is.
        ask = "document.querySelector('[data-action=prefix]')"
        window.run("shown.go(0, 0)")
        assert window.run(side).startswith("lamp\n\n50 items")
        assert window.run(f"return {ask}") is None
        window.run("shown.go(1, 7)")
        assert "(7) · 2 items" in window.run(side)
        window.run(f"{ask}.click()")
        assert window.run("return asked") == [7]
        trail = window.run("return document.querySelector('.tree-path').innerText")
        assert trail.split() == ["all", "›", "lamp", "›", "7"]
        assert window.log() == []


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
    page = write_page(tmp_path, packed)
    with browser.open_browser() as window:
        window.resize(1280, 900)
        window.devtools("Performance.enable", timeDomain="threadTicks")
        window.open(page.as_uri())
        worked = [cpu_milliseconds(window)]
        for script in (FIRST, STEPS):
            shown = window.run(script) or num_items
            worked.append(cpu_milliseconds(window))
        assert (shown, window.log()) == (num_items, [])
    first, steps = np.diff(worked)
    print(
        f"{num_items:,} items: {len(packed) / 1e3:,.0f} kB compressed, first drawn by "
        f"{first:,.0f} ms of CPU time, each step into a prefix and back by "
        f"{steps / 40:.0f} ms"
    )
    assert len(packed) < 5e6
    assert first < 5_000
    assert steps / 40 < 250
