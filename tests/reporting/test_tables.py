"""Tables: what stands in which row, and how it is laid out."""

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tiger_jax.reporting import paper_rows, tables

METRICS = {
    "test": {"recall@10": 0.06, "ndcg@10": 0.03},
    "test_masked": {"recall@10": 0.07, "ndcg@10": 0.04},
    "intervals": {"test": {"recall@10": [0.055, 0.065]}},
    "baselines": {
        "popularity": {"test": {"recall@10": 0.01}, "test_masked": {"recall@10": 0.02}},
        "semantic_knn": {"test": {"recall@10": 0.05}},
    },
    "ceiling": {"recall@10": 0.48, "ndcg@10": 0.3},
}


def test_the_unmasked_table_has_baselines_ours_and_ceiling():
    """The unmasked test shows baselines, ours, the ceiling and our share of it."""
    rows = tables.build_result_rows(METRICS, "test")
    assert [row.name for row in rows] == [
        "Popularity",
        "Semantic KNN",
        tables.OUR_TITLE,
        "Best possible",
        "Our share of it",
    ]
    # .06 of .48 and .03 of .3.
    assert tables.format_value(rows[-1], "recall@10") == "12.5%"
    assert tables.format_value(rows[-1], "ndcg@10") == "10.0%"
    assert tables.format_value(rows[0], "ndcg@10") == "–"


def test_the_ceiling_is_not_shown_for_another_masking():
    rows = tables.build_result_rows(METRICS, "test_masked")
    assert [row.name for row in rows] == ["Popularity", tables.OUR_TITLE]


def test_published_rows_come_last_with_their_source():
    rows = tables.build_result_rows(
        METRICS, "test_masked", published=paper_rows.PUBLISHED["beauty"]
    )
    paper = [row for row in rows if row.kind == "published"]
    assert rows[-len(paper) :] == paper
    assert all(row.note for row in paper)
    text = tables.format_result_table("Test", rows)
    assert ".0648" in text
    assert "Rajput et al. 2023, table 1" in text


def test_every_line_of_a_table_has_its_columns_under_one_another():
    rows = tables.build_result_rows(METRICS, "test")
    lines = tables.format_result_table("Test", rows, ("recall@10", "ndcg@10"))
    header, *body = lines.splitlines()[1:]
    end = header.index("Recall@10") + len("Recall@10")
    for line in body:
        assert line[end - 1] in "0123456789%–─"
    assert any(".0550–.0650" in line for line in body)


def test_only_exact_statistics_are_recognised():
    assert paper_rows.recognise(22_363, 12_101, 198_502).name == "beauty"
    assert paper_rows.recognise(35_598, 18_357, 296_337).name == "sports"
    assert paper_rows.recognise(22_363, 12_101, 198_501) is None


def test_published_numbers_are_possible():
    for rows in paper_rows.PUBLISHED.values():
        assert sum(row.is_tiger and "table 1" in row.source for row in rows) == 1
        for row in rows:
            ndcg_10, recall_10 = row.metrics["ndcg@10"], row.metrics["recall@10"]
            recall_5 = row.metrics.get("recall@5", 0.9 * recall_10)
            ndcg_5 = row.metrics.get("ndcg@5", 0.9 * ndcg_10)
            assert 0 < ndcg_5 < recall_5 < recall_10 < 0.2
            assert ndcg_5 < ndcg_10 < recall_10


def test_a_title_can_not_move_the_cursor_or_hide_its_neighbours():
    assert tables.shorten("ok\x1b[2J\r\nnext\u202e", 40) == "ok [2J  next "


@given(st.text(max_size=40), st.integers(1, 20))
def test_a_shortened_text_fits(text, width):
    short = tables.shorten(text, width)
    assert cell_len(short) <= width
    if cell_len(text) <= width and text.isprintable():
        assert short == text


def test_wide_letters_take_two_columns():
    assert cell_len("化粧水") == 6
    assert tables.shorten("化粧水", 5) == "化粧…"
    assert cell_len("e\u0301") == 1
