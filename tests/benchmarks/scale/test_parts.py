"""The benchmarks that call the pipelines' steps without a runner."""

import pytest

from benchmarks.scale import shards as scale_shards
from benchmarks.scale.end_to_end import measure_end_to_end
from benchmarks.scale.rows import EMBED_STEPS

_STEPS = [
    *(f"joined, {step}" for step in ("items", "ask", "look up", "join", "write")),
    *("round-000, take apart", "round-000, write", "survivors"),
    *("items, take apart", "items, write"),
    *("histories, take apart", "histories, write"),
    "prepare, the leading process",
    *("tokens, train", "tokens, test"),
    *(f"distinct, {step}" for step in ("take apart", "embed", "write")),
    *("embeddings, take apart", "embeddings, write"),
    "embed, the leading process",
]


def check(rows):
    assert all(row["peak_bytes"] >= row["start_bytes"] > 0 for row in rows)
    assert all(row["cpu_seconds"] > 0 for row in rows)


@pytest.mark.slow
def test_every_step_is_measured_over_all_shards(monkeypatch):
    monkeypatch.setattr(scale_shards, "SHARD_ROWS", 5_000)
    rows = []
    scale_shards.measure_shards(20_000, rows.append)
    check(rows)
    # The k-core ends after as many rounds as it takes.
    later_rounds = ("round-001", "round-002", "round-003")
    found = [r["stage"] for r in rows if not r["stage"].startswith(later_rounds)]
    assert found == _STEPS
    for row in rows:
        assert row["shards"] == (2 if row["stage"].startswith("tokens") else 4)
        assert row["shards_in_all"] == 4
        is_catalogue = row["stage"].startswith(EMBED_STEPS)
        assert row["items"] == (20_000 if is_catalogue else 2_000)


@pytest.mark.slow
def test_a_catalogue_is_measured_from_embeddings_to_items():
    rows = []
    measure_end_to_end(2_000, rows.append)
    check(rows)
    assert rows[-1]["stage"] == "decode, TIGER's decoder"
    by_step = {row["stage"]: row for row in rows}
    assert by_step["table"]["collision_rate"] < 1
    assert by_step["trie"]["device_bytes"] > 2_000
