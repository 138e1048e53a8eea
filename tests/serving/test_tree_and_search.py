"""The tree and the search on the page, against what the API says."""

import gzip
import json

import browser
import pytest
from served import make_recommender, run_in_thread
from trained_workdir import TINY_TWO_LEVEL

from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.searcher import DenseWeights
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.reporting.page import build_demo_page

needs_browser = pytest.mark.skipif(
    not browser.is_installed(), reason="needs chromium and chromedriver"
)


def texts(window, selector):
    found = f"[...document.querySelectorAll({selector!r})]"
    return window.run(f"return {found}.map(x => x.textContent)")


@pytest.fixture(scope="module")
def served(folder):
    versions = CatalogueVersions.open(folder)
    recommender = Recommender.load(versions)
    with run_in_thread((recommender, versions), page=build_demo_page()) as running:
        yield running


def test_the_tree_is_sent_packed(served):
    reply = served.ask("GET", "/catalogue/tree")
    assert reply.headers["content-encoding"] == "gzip"
    tree = json.loads(gzip.decompress(reply.content))
    assert tree["num_items"] == len(set(tree["ids"])) == 50
    assert served.ask("GET", "/catalogue/tree").content == reply.content


def test_a_search_is_explained(served):
    asked = {"history": ["item-1", "item-2"], "k": 5}
    found = served.ask("POST", "/explain", asked).json
    assert found["answer"] == served.ask("POST", "/recommend", asked).json
    assert [len(row) for row in found["contributions"]] == [2] * 5
    refused = served.ask("POST", "/explain", {**asked, "temperature": 1.0})
    assert refused.status == 422
    assert "no beams to show" in refused.json["error"]["message"]


@pytest.mark.slow
@needs_browser
def test_scores_with_a_dense_head_are_shown_as_one_probability(tmp_path):
    live = make_recommender(
        tmp_path / "work",
        is_drawn=False,
        model=TINY_TWO_LEVEL,
        num_user_tokens=0,
        dense_weights=DenseWeights(3.0),
    )
    with (
        run_in_thread(live, page=build_demo_page()) as running,
        browser.open_browser() as window,
    ):
        assert running.ask("GET", "/catalogue").json["dense_weight"] == 3
        window.open(running.url)
        window.wait_for("document.querySelectorAll('#results li').length > 1")
        window.click("#results button")
        window.wait_for("document.querySelectorAll('#recommended li').length === 10")
        history = window.run("return state.history.map((item) => item.item_id)")
        found = running.ask("POST", "/recommend", {"history": history}).json["items"]
        shown = texts(window, "#recommended .score")
        said = [window.run(f"return chance({item['score'] / 4})") for item in found]
        assert shown == said


def test_the_first_load_is_small():
    assert len(build_demo_page().encode()) < 300_000


@needs_browser
def test_a_visitor_walks_through_tree_and_search(served):
    with browser.open_browser() as window:
        window.resize(1280, 900)
        window.open(served.url)
        window.wait_for("document.querySelectorAll('#results li').length === 20")
        for name in ("number 12", "number 30"):
            window.run("query.value = ''")
            window.type("#query", name)
            # The search before may have found one item too.
            first = "document.querySelector('#results button')"
            window.wait_for(f"{first} && {first}.title.endsWith('{name}')")
            window.click("#results button")
        window.wait_for("document.querySelectorAll('#recommended li').length === 10")

        window.click("#explained summary")
        window.wait_for(
            "document.querySelectorAll('#beams g.on').length > 12", seconds=90
        )
        history = ["item-12", "item-30"]
        found = served.ask("POST", "/explain", {"history": history}).json
        heads = texts(window, "#beams .head")
        kept = [f"level {i}: {len(b)} kept" for i, b in enumerate(found["levels"])]
        assert heads == [*kept, "items"]
        titles = texts(window, "#beams g title")
        for item in found["answer"]["items"]:
            code = " ".join(map(str, item["semantic_id"]))
            assert f"{code}: {item['title']}" in titles
        rows = "document.querySelectorAll('#contributions tr')"
        assert window.run(f"return {rows}.length") == 11

        window.click("#show-tree")
        window.wait_for("window.shownTree")
        tree = json.loads(gzip.decompress(served.ask("GET", "/catalogue/tree").content))
        window.run("document.querySelector('.tree-canvas').scrollIntoView()")
        box = "return document.querySelector(arguments[0]).getBoundingClientRect()"
        items, whole = window.run(box, ".side section"), window.run(box, ".whole")
        assert items["bottom"] <= whole["top"]  # the list of items doesn't cover it
        lit = window.run("return shownTree.state.lit.history")
        assert [tree["ids"][i] for i in lit] == history
        window.click(".tree-children button")  # the largest first codeword
        (prefix,) = map(int, texts(window, ".tree-path button:last-child"))
        listed = texts(window, ".tree-items li span")
        below = served.ask(
            "POST", "/recommend", {"history": history, "k": 10, "prefix": [prefix]}
        ).json["items"]
        assert {item["title"] for item in below} <= set(listed)
        window.click("[data-action=prefix]")
        chips = (
            "[...document.querySelectorAll('#recommended li')].map(li => "
            "Number(li.querySelector('.chip').textContent))"
        )
        # There may be as many before the answer is there.
        window.wait_for(f"{chips}.length && {chips}.every((code) => code === {prefix})")
        assert window.run(f"return {chips}") == [prefix] * len(below)
        # What is typed lights up the items that have it.
        window.type(".tree-bar input", "number 4")
        lit = sum("4" in title for title in tree["titles"])  # each has "number"
        window.wait_for(f"shownTree.state.lit.found.length === {lit}")
        assert not window.log()
