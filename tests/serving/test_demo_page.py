"""The page, used in a real browser as a visitor would."""

import math
import re

import browser
import pytest
from served import run_in_thread

from tiger_jax.reporting.page import build_demo_page

pytestmark = pytest.mark.skipif(
    not browser.is_installed(), reason="needs chromium and chromedriver"
)
TOKEN = "a-token-of-some-length"
LISTED = "[...document.querySelectorAll('#recommended li')]"


@pytest.fixture(scope="module")
def window():
    with browser.open_browser() as opened:
        opened.resize(1280, 900)
        yield opened


def test_a_visitor_searches_clicks_a_history_and_turns_the_knobs(
    window, tiny, tiny_recommender
):
    with run_in_thread(tiny, page=build_demo_page()) as served:
        window.open(served.url)
        window.wait_for("document.querySelectorAll('#results li').length === 20")
        assert "50 items" in window.run("return facts.textContent")
        window.type("#query", "number 12")
        window.wait_for("found.textContent.startsWith('1 item found')")
        window.click("#results button")
        window.wait_for(f"{LISTED}.length === 10")
        shown = window.run(
            f"return {LISTED}.map(li => [li.querySelector('b').textContent,"
            "[...li.querySelectorAll('.chip')].map(c => Number(c.textContent)),"
            "li.querySelector('small').textContent, "
            "li.querySelector('.score').textContent])"
        )
        answer = tiny_recommender.recommend(["item-12"])
        assert shown == [
            [
                item.title,
                list(item.semantic_id),
                item.category,
                f"{100 * math.exp(item.score):.0f} %",
            ]
            for item in answer.items
        ]
        window.click("#recommended li:nth-child(2) .add")
        window.wait_for("document.querySelectorAll('#history li').length === 2")
        history = ["item-12", answer.items[1].item_id]
        _turn(window, "k", 4)
        _turn(window, "temperature", 20)
        window.wait_for(f"{LISTED}.length === 4")
        drawn = tiny_recommender.recommend(history, k=4, temperature=1.0)
        expected = [item.title for item in drawn.items]
        titles = f"{LISTED}.map(li => li.querySelector('b').textContent)"
        window.wait_for(f"{titles}.join() === {','.join(expected)!r}")
        _turn(window, "temperature", 0)
        window.run("return exact.click()")
        window.type("#value", "Shelf 3")
        window.click("#filter-form button")
        window.wait_for(
            f"{LISTED}.length && {LISTED}.every(li => /Shelf 3/.test(li.textContent))"
        )
        window.click("#recommended .chip")
        window.wait_for("pills.textContent.includes('Semantic ID begins')")
        first = "li => li.querySelector('.chip').textContent"
        window.wait_for(f"new Set({LISTED}.map({first})).size === 1")
        assert (
            served.metric('tiger_requests_total{path="/recommend",status="422"}') == 0
        )
    assert window.log() == []


def test_the_page_fits_a_phone_and_asks_nobody_else(window, tiny):
    page = build_demo_page()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    with run_in_thread(tiny, page=page) as served:
        window.resize(390, 800, dark=True)
        window.open(served.url)
        window.wait_for("document.querySelectorAll('#results li').length === 20")
        assert window.run("return document.documentElement.scrollWidth") <= 390
    window.wait_for("(query.value = 'a', query.dispatchEvent(new Event('input')), 1)")
    window.wait_for("!banner.hidden && banner.textContent.includes('reached')")


def test_the_page_asks_for_the_token(window, tiny):
    page = build_demo_page()
    with run_in_thread(tiny, page=page, token=TOKEN) as served:
        window.open(served.url)
        window.wait_for("!document.getElementById('token-form').hidden")
        window.type("#token", TOKEN)
        window.click("#token-form button")
        window.wait_for("document.querySelectorAll('#results li').length === 20")
        assert window.run("return document.getElementById('token-form').hidden")


def _turn(window, control: str, value: int) -> None:
    window.run(
        "const dial = document.getElementById(arguments[0]);"
        "dial.value = arguments[1]; dial.dispatchEvent(new Event('input'))",
        control,
        value,
    )
