"""The document of `make scale` says what its rows say."""

import json

import pytest

from benchmarks.scale import STAGES, measure
from benchmarks.scale_document import fit_exponent, write_document


def row(stage, items, **changed):
    return {
        "stage": stage,
        "items": items,
        "seconds": items * 1e-6,
        "cpu_seconds": items * 2e-6,
        "peak_bytes": 10**8 + 100 * items,
        "device_bytes": 20 * items,
        "cores": 2,
        "machine": "m",
        "commit": "abc",
        **changed,
    }


def test_every_figure_of_the_plan_is_its_row_carried_over(tmp_path):
    rows = [row(stage, 10**n) for stage in STAGES for n in (4, 5, 6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    document = tmp_path / "scale.md"
    marks = "".join(f"<!-- {m} -->\n<!-- /{m} -->\n" for m in ("scale", "billion"))
    document.write_text(f"# Scale\n{marks}the end\n")
    write_document(tmp_path / "rows.jsonl", document)
    text = document.read_text()
    assert text.endswith("<!-- /billion -->\nthe end\n")
    assert (tmp_path / "scale.png").stat().st_size > 1000
    assert "| trie | 1,000,000 | 2 | 2 | 200 | 200 |" in text
    # Twice a microsecond an item is 2,000 s of a billion, 0.6 hours.
    assert "| embeddings → learned codewords: core-hours | 0.6 | encode at" in text
    assert "| 20.0 bytes an item | trie at 1,000,000 items" in text
    # 100 bytes of a million items, and what a process is before it has any.
    assert "| 0.2 GB | histories at 1,000,000 items: 200 bytes an item × 1,000" in text


def test_exponents_are_slopes_from_a_hundred_thousand_items_on():
    rows = [row("trie", 10**n, cpu_seconds=10 ** (2 * n)) for n in (5, 6, 7)]
    assert fit_exponent(rows, "cpu_seconds") == pytest.approx(2)
    rows.append(row("trie", 10**4, cpu_seconds=1e9))
    assert fit_exponent(rows, "cpu_seconds") == pytest.approx(2)
    assert fit_exponent(rows[:1], "cpu_seconds") is None


@pytest.mark.parametrize("stage", ["histories", "encode", "collisions", "trie"])
def test_a_stage_is_measured(stage):
    found = measure(stage, 2000)
    assert found["items"] == 2000
    assert found["cpu_seconds"] > 0
    assert (found["device_bytes"] is not None) == (stage == "trie")
