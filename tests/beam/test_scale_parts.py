"""The benchmarks that call the pipelines' steps without a runner."""

import pytest

pytest.importorskip("apache_beam", reason="needs apache-beam: make test-beam")

from benchmarks.scale_end_to_end import measure_end_to_end
from benchmarks.scale_shards import measure_shards


@pytest.mark.slow
def test_every_step_is_measured():
    rows = []
    measure_shards(20_000, rows.append)
    measure_end_to_end(2_000, rows.append)
    steps = [row["stage"] for row in rows]
    assert steps[0] == "joined, items"
    assert "round-000, write" in steps
    assert "histories, write" in steps
    assert "tokens, train" in steps
    assert steps[-1] == "decode, TIGER's decoder"
    assert all(row["peak_bytes"] >= row["start_bytes"] > 0 for row in rows)
    assert all(row["cpu_seconds"] > 0 for row in rows)
    by_step = {row["stage"]: row for row in rows}
    assert by_step["table"]["collision_rate"] < 1
    assert by_step["trie"]["device_bytes"] > 2_000
