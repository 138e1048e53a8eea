"""The page: whole, safe, and honest about what is missing."""

import base64
import dataclasses
import hashlib
import re
from xml.etree import ElementTree

import browser
import numpy as np
import pyarrow as pa
import pytest

from tiger_jax.data.prepared import PreparedData, hash_user_ids
from tiger_jax.data.splits import Splits
from tiger_jax.data.statistics import compute_statistics
from tiger_jax.histories import Histories
from tiger_jax.reporting import figures, result_pictures, sections
from tiger_jax.reporting.page import build_report, write_report
from tiger_jax.reporting.workdir_parts import FOLDERS, WorkdirParts
from tiger_jax.semantic_ids.table import SemanticIdTable
from tiger_jax.workdir.artifacts import Manifest

EVIL = "<script>alert('x')</script> & \"$\\frac{1}{2}$\" {{ 7 * 7 }}"
NUM_ITEMS = 40
SVG = "{http://www.w3.org/2000/svg}"


def _data() -> PreparedData:
    key = np.random.default_rng(0)
    lists = [
        key.integers(0, NUM_ITEMS, key.integers(3, 12)).tolist() for _ in range(30)
    ]
    histories = Histories.from_lists(lists)
    empty = np.empty(0, np.int32)
    splits = Splits.leave_one_out(histories, empty)
    users = [f"user {i} {EVIL}" for i in range(30)]
    items = pa.table(
        {
            "item_id": [f"item {i}" for i in range(NUM_ITEMS)],
            "title": [EVIL if i % 2 else f"Soap {i}" for i in range(NUM_ITEMS)],
            "brand": [""] * NUM_ITEMS,
            "categories": [
                [["All", f"Shelf {i % 4} {EVIL}", f"Box {i % 8}"]]
                for i in range(NUM_ITEMS)
            ],
        }
    )
    return PreparedData(
        name=f"shop {EVIL}",
        items=items,
        user_ids=tuple(users),
        user_hashes=hash_user_ids(users),
        histories=histories,
        items_file_rows=np.arange(NUM_ITEMS),
        unseen_items=empty,
        statistics={
            **compute_statistics(histories, splits, num_items=NUM_ITEMS),
            "notes": [EVIL],
        },
        ceiling=None,
    )


def _table() -> SemanticIdTable:
    number = np.arange(NUM_ITEMS)
    codes = np.stack([number % 4, number // 4 % 4, number // 16, number * 0], 1)
    ids = tuple(f"item {i}" for i in range(NUM_ITEMS))
    return SemanticIdTable(codes.astype(np.int32), (4, 4, 4, 2), 3, ids)


def _manifest(stage: str) -> Manifest:
    made = {
        "finished": "2026-01-02T03:04:05+00:00",
        "seconds": 3725.0,
        "commit": "abc",
        "devices": "2 CPU cores",
        "command": ["run.py", EVIL],
        "python": "3.11",
        "packages": {"jax": "0.10.2"},
        "gin": f"a.b = {EVIL}",
    }
    return Manifest(
        stage=stage,
        content_hash="0123456789abcdef",
        fingerprint="",
        config={},
        inputs={},
        external={},
        files={},
        summary={"what": EVIL},
        made=made,
    )


def _metrics(recall: float) -> dict[str, float]:
    names = ("recall@1", "recall@5", "recall@10", "recall@20")
    names += ("ndcg@5", "ndcg@10", "ndcg@20", "mrr@20")
    return dict.fromkeys(names, recall)


def _evaluation() -> dict:
    splits = ("test", "test_masked", "validation")
    return {
        "metrics": {
            **{split: _metrics(0.1) for split in splits},
            "intervals": {s: dict.fromkeys(_metrics(0), (0.09, 0.11)) for s in splits},
            "baselines": {
                "popularity": {"test": _metrics(0.05), "test_masked": _metrics(0.05)},
                "item_cooccurrence": {"test": _metrics(0.2)},
            },
            "ceiling": _metrics(0.4),
            "invalid_ids": 0,
            "settings": {"num_beams": 50},
        },
        "details": {
            "guards": [
                {"name": "a", "value": 1.0, "is_fine": True, "explanation": "heard"},
                {"name": "b", "value": 0.0, "is_fine": False, "explanation": EVIL},
            ],
            "baseline_intervals": {},
            "differences": [
                {
                    "baseline": "Popularity",
                    "split": "test",
                    "difference": 0.05,
                    "low": 0.04,
                    "high": 0.06,
                }
            ],
            "diversity": {
                "columns": ["Entropy@10", "Coverage@10"],
                "rows": [{"name": "TIGER", "values": [None, 0.5]}],
            },
            "by_target_count": {
                "groups": ["never", "1–5"],
                "sizes": [10, 20],
                "tiger": [0.0, 0.1],
                "baselines": {"popularity": [0.0, 0.2]},
            },
        },
        "predictions": [
            {
                "user": f"user {EVIL}",
                "history": ["item 1", "item 2"],
                "target": "item 3",
                "rank": 1 if row % 2 else None,
                "recommended": [
                    {"item_id": "item 4", "score": -1.0},
                    {"item_id": "item 3" if row % 2 else "item 9", "score": -2.0},
                ],
            }
            for row in range(12)
        ],
    }


CURVES = {
    "train/loss": ([0, 1, 2], [3.0, 2.0, 1.0]),
    "validation/recall@10": ([1, 2], [0.1, 0.05]),
}


@pytest.fixture(scope="module")
def whole() -> WorkdirParts:
    return WorkdirParts(
        manifests={name: _manifest(name) for name in FOLDERS},
        data=_data(),
        table=_table(),
        rqvae_curves=CURVES,
        recommender_curves=CURVES,
        **_evaluation(),
    )


@pytest.fixture(scope="module")
def page(whole):
    return build_report(whole, shown_items=20, seed=0)


def test_nothing_from_the_data_becomes_html(page):
    text = page.html
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    (packed, (kind, script)) = scripts  # the tree's data, and the one that runs
    assert packed[0] == ' type="application/octet-stream" id="tree-data"'
    assert re.fullmatch(r"[\w+/=]+", packed[1])
    assert kind == ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "&lt;script&gt;" in text
    assert "{{ 7 * 7 }}" in text  # a title is no template either
    assert " 49 " not in text


def test_the_page_needs_nothing_but_itself(page):
    # The only addresses: places on the page, and images inside it.
    addresses = re.findall(r'(?:src|href|srcset)="([^"]*)"', page.html)
    assert addresses
    assert all(a.startswith(("#", "data:image/svg+xml;base64,")) for a in addresses)
    assert "url(" not in page.html
    assert "@import" not in page.html
    places = {a[1:] for a in addresses if a.startswith("#")}
    assert places <= set(re.findall(r'id="(\w+)"', page.html))


def test_every_picture_is_on_the_page_and_can_be_read(page, tmp_path):
    names = {picture.name for picture in page.pictures}
    assert names == {
        "history_lengths",
        "popularity",
        "codebook_use",
        "categories_by_first_code",
        "rqvae_training",
        "recommender_training",
        "results_test",
        "results_test_masked",
        "recall_by_popularity",
    }
    write_report(page, tmp_path)
    for picture in page.pictures:
        assert (tmp_path / f"{picture.name}.svg").read_bytes() == picture.light
        colors = set()
        for theme, inches, drawn in (
            (figures.LIGHT, figures.PAGE_INCHES, picture.light),
            (figures.DARK, figures.PAGE_INCHES, picture.dark),
            (figures.LIGHT, figures.PHONE_INCHES, picture.narrow_light),
            (figures.DARK, figures.PHONE_INCHES, picture.narrow_dark),
        ):
            assert base64.b64encode(drawn).decode() in page.html
            svg = ElementTree.fromstring(drawn)
            assert svg.get("viewBox").split()[2] == f"{72 * inches:g}"
            assert f"fill: {theme.background.lower()}".encode() in drawn
            words = [text.text for text in svg.iter(f"{SVG}text")]
            assert any(words)  # letters, not the shapes of letters
            is_marked = picture.name == "recommender_training"
            assert ("0.1000" in words) == is_marked  # numbers are written whole
            found = {*re.findall(rb"#[0-9a-f]{6}", drawn)}
            other = figures.DARK if theme is figures.LIGHT else figures.LIGHT
            assert other.ink.lower().encode() not in found
            colors.add(len(found))
        assert len(colors) == 1  # what is told apart in one is in all


def test_an_empty_work_directory_says_not_run_everywhere():
    page = build_report(WorkdirParts(manifests={}), shown_items=20, seed=0)
    assert page.pictures == ()
    text = " ".join(page.html.split())
    for stage in ("evaluate", "train_recommender", "train_rqvae", "prepare_data"):
        assert f"Not run. <code>python run.py --stage={stage}</code>" in text
    assert "No results yet" in page.html


@pytest.mark.parametrize("missing", ["data", "table", "metrics", "details"])
def test_any_part_may_be_missing(whole, missing):
    part = dataclasses.replace(whole, **{missing: None})
    page = build_report(part, shown_items=20, seed=0)
    assert "</html>" in page.html


def test_failed_checks_and_collapsed_codes_are_at_the_top(whole):
    number = np.arange(NUM_ITEMS, dtype=np.int32)
    codes = np.stack([number % 4, number // 4, number * 0], 1)
    ids = _table().item_ids
    collapsed = SemanticIdTable(codes, (16, 16, 2), 2, ids)
    warnings = sections.warnings(whole, sections.describe_table(collapsed, None))
    assert warnings[0] == EVIL  # the failed check; the passed one is left out
    assert "level 0" in warnings[1]  # 4 of 16 codewords
    assert "4 of 16" in warnings[1]
    assert "level 1" in warnings[2]  # 10 of 16
    assert len(warnings) == 3


def test_the_headline_names_what_is_better(whole):
    headline = sections.headline(whole)
    assert "10.0%" in headline["sentence"]
    end = "That is more than popularity, and less than item co-occurrence."
    assert headline["sentence"].endswith(end)
    cards = {card["title"]: card["value"] for card in headline["cards"]}
    assert cards["against popularity"] == "2.0 ×"  # .1 / .05
    assert cards["of the best possible"] == "25%"  # .1 / .4


def test_a_difference_within_its_interval_is_called_none(whole):
    row = {**whole.details["differences"][0], "low": -0.01}
    details = {**whole.details, "differences": [row]}
    unsure = dataclasses.replace(whole, details=details)
    assert "as much as popularity" in sections.headline(unsure)["sentence"]
    text = build_report(unsure, shown_items=20, seed=0).html
    row = text[text.index("<td>Popularity</td><td>Test</td>") :].split("</tr>")[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row) == [
        "Popularity",
        "Test",
        "+.0500",
        "−.0100 to +.0600",
        "a draw",
    ]


def test_samples_show_titles_and_mark_the_hit(whole):
    samples = sections.choose_samples(whole, seed=0)
    assert len(samples) == len(whole.predictions)
    hows = [sample["how"] for sample in samples]
    assert hows[:6] == ["drawn at random"] * 4 + ["drawn from the hits"] * 2
    for sample in samples:
        hits = [item["is_hit"] for item in sample["recommended"]]
        assert hits == ([False, True] if sample["place"] == 2 else [False, False])
        assert sample["history"][1]["title"] == "Soap 2"
    assert {s["place"] for s in samples if s["how"] == "drawn from the hits"} == {2}


def test_codes_are_described_without_the_collision_level():
    described = sections.describe_table(_table(), _data())
    first, second, third = described["levels"]
    assert (first["codewords_used"], first["distinct_prefixes"]) == (4, 4)
    assert first["perplexity"] == pytest.approx(4)  # ten items each
    assert first["category_purity"] == 1  # the shelf is the item's number modulo 4
    assert second["distinct_prefixes"] == 16
    assert (third["distinct_prefixes"], described["collision_rate"]) == (40, 0)
    assert third["codewords_used"] == 3  # 40 items fill 0, 1 and half of 2
    assert (
        sections.describe_table(_table(), None)["levels"][0]["category_purity"] is None
    )


def test_durations_and_days_are_readable(page):
    assert "<td>2026-01-02 03:04</td><td>1 h 02 min</td>" in page.html


def test_the_best_on_validation_is_marked_where_it_is():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    curve = [1, 2, 3], [0.1, 0.3, 0.2]
    result_pictures.mark_best(axes, figures.LIGHT, "red", curve)
    assert axes.lines[0].get_xydata().tolist() == [[2, 0.3]]
    assert axes.texts[0].get_text() == "0.3000"


@pytest.mark.parametrize("ends", [(2, 4), (310, 560), (0.4, 0.6), (1, 50), (1, 1e5)])
def test_a_log_axis_has_plain_numbers(ends):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.plot([0, 1], ends)
    figures.log_scale(axes.yaxis)
    low, high = axes.get_ylim()
    labels = axes.yaxis.get_ticklabels(which="both")
    shown = [t.get_text() for t in labels if low <= t.get_position()[1] <= high]
    assert 2 <= len(shown) <= 7
    assert all(float(text.replace(",", "")) > 0 for text in shown)


def test_panels_gather_the_levels_of_a_metric():
    curve = [1], [0.5]
    curves = {"train/use_1": curve, "train/use_0": curve, "train/seconds": curve}
    assert result_pictures.find_panels(curves, result_pictures.RQVAE_PANELS) == [
        ("Share of codewords used", {"level 0": curve, "level 1": curve})
    ]


def test_where_a_baseline_wins_the_next_step_is_named(whole):
    assert sections.next_step(whole) is None
    row = {**whole.details["differences"][0], "low": -0.06, "high": -0.04}
    worse = dataclasses.replace(whole, details={**whole.details, "differences": [row]})
    assert sections.next_step(worse).startswith("popularity does better here")
    text = build_report(worse, shown_items=20, seed=0).html
    assert "--stage=list_candidates, then --stage=fuse" in text


@pytest.mark.parametrize("theme", [0, 1])
def test_every_text_has_contrast_to_what_is_behind_it(theme):
    """4.5 to 1, as WCAG asks of small text."""
    css = (figures.TEMPLATES / "report.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]
    colors = dict(re.findall(r"--([\w-]+): #(\w{6})", block))

    def light(name):
        parts = np.frombuffer(bytes.fromhex(colors[name]), np.uint8) / 255
        linear = np.where(
            parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4
        )
        return linear @ (0.2126, 0.7152, 0.0722) + 0.05

    pairs = [("good", "good-tint"), ("bad", "bad-tint")]
    for text in ("ink", "soft", "faint", "accent"):
        pairs += [(text, on) for on in ("page", "card", "row", "tint")]
    for text, on in pairs:
        ratio = light(text) / light(on)
        assert max(ratio, 1 / ratio) >= 4.5, (text, on, ratio)


@pytest.mark.slow  # starts Chromium
@pytest.mark.skipif(not browser.is_installed(), reason="needs chromium")
def test_tables_are_sorted_and_users_searched_in_a_browser(page, tmp_path):
    (tmp_path / "index.html").write_text(page.html, encoding="utf-8")
    methods = (
        "return [...document.querySelector('table.wide').rows].slice(1)"
        ".map(row => row.cells[0].firstChild.textContent)"
    )
    images = "[...document.querySelectorAll('figure img')]"
    with browser.open_browser() as window:
        for width, dark in ((390, True), (1280, False)):
            window.resize(width, 900, dark=dark)
            window.open(f"file://{tmp_path}/index.html")
            wide = window.run("return document.documentElement.scrollWidth")
            assert wide <= width
            assert window.run(f"return {images}.every(i => i.naturalWidth && i.alt)")
        written = window.run(methods)
        window.click("th.sorts")
        falling = window.run(methods)
        assert falling == [
            "Best possible", "Item co-occurrence", "TIGER (this run)", "Popularity",
            "Our share of it",
        ]  # fmt: skip
        assert sorted(falling) == sorted(written) != falling
        # The same by keyboard turns the order round.
        window.run("document.querySelector('th.sorts').focus()")
        window.devtools("Input.dispatchKeyEvent", type="keyDown", key="Enter")
        assert window.run(methods) == [*falling[-2::-1], "Our share of it"]
        shown = "return document.querySelectorAll('.user:not([hidden])').length"
        assert window.run(shown) == 6
        window.type("#user-query", "found soap")
        said = "return document.getElementById('users-found').textContent"
        assert window.run(said) == "6 of 12 users"
        assert window.run(shown) == 6
        assert not window.log()
