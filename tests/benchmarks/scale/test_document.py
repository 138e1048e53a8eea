"""The document of `make scale` says what its rows say."""

import json
from functools import partial
from pathlib import Path

import pytest

from benchmarks.scale.document import write_document
from benchmarks.scale.local import STAGES, measure
from benchmarks.scale.rows import fit_exponent, micros_a_row
from benchmarks.scale.worker import OneWorker, run_tasks
from tiger_jax.beam.runner import Flow
from tiger_jax.workdir.shards import ShardWriter


def row(part, stage, rows, **changed):
    return {
        "part": part,
        "stage": stage,
        "rows": rows,
        "items": rows // 10 if part == "shards" else rows,
        "shards": 4,
        "shards_in_all": 4,
        "seconds": rows * 1e-6,
        "cpu_seconds": rows * 2e-6,
        "peak_bytes": 10**8 + 100 * rows,
        "start_bytes": 10**8,
        "device_bytes": 20 * rows,
        "cores": 2,
        "machine": "m",
        "commit": "abc",
        **changed,
    }


def all_rows():
    rows = [row("local", stage, 10**n) for stage in STAGES for n in (4, 5, 6)]
    for size in (10**6, 10**7):
        memory = {"peak_bytes": 2 * 10**8 + size, "start_bytes": 10**8}
        rows.append(row("shards", "joined, take apart", size, **memory))
        rows.append(row("shards", "prepare, the leading process", size, **memory))
        few = {"shards": 1, "cpu_seconds": size * 1e-6}
        rows.append(row("shards", "tokens, train", size, **memory, **few))
    for step in ("encode", "collision level", "write Semantic IDs", "table"):
        found = {"collision_rate": 0.25, "largest_collision_codeword": 99}
        rows.append(row("end_to_end", step, 10**7, **found))
    planned = {
        "sample": 50_000,
        "planned_collision_rate": 0.2,
        "collision_level_size": 512,
    }
    rows.append(row("end_to_end", "train RQ-VAE", 10**7, **planned))
    rows.append(row("end_to_end", "trie", 10**7))
    decode = {"search_cpu_seconds": 0.003}
    rows.append(row("end_to_end", "decode, TIGER's decoder", 10**7, **decode))
    end = {"part": "end_to_end", "stage": "end", "rows": 10**7, "commit": "abc"}
    rows.append({**end, "seconds": 600.0})
    return rows


def test_every_figure_is_its_row_carried_over(tmp_path):
    text = "".join(json.dumps(r) + "\n" for r in all_rows())
    (tmp_path / "rows.jsonl").write_text(text)
    document = tmp_path / "scale.md"
    names = ("scale", "shards", "end_to_end", "billion")
    marks = "".join(f"<!-- {m} -->\n<!-- /{m} -->\n" for m in names)
    document.write_text(f"# Scale\n{marks}the end\n")
    write_document(tmp_path / "rows.jsonl", document)
    text = document.read_text()
    assert text.endswith("<!-- /billion -->\nthe end\n")
    assert (tmp_path / "scale.png").stat().st_size > 1000
    assert "| trie | 1,000,000 | 2 | 2 | 200 | 200 |" in text
    # 101 MB beside the libraries, and ten times the rows bring 9 MB more.
    own = "| joined, take apart | 4, 4 | 201, 210 | +4% | 101, 110 | +9% |"
    assert own in text
    assert "| join with items | 1 | 2 | 2 | 1.00 |" in text
    assert "numbers the items | 110 GB | prepare, the leading process at 1,000" in text
    assert "50,000 items' codes" in text
    assert "140 CPU seconds in all (10 minutes beside other work)" in text
    assert "20.00% collisions" in text
    assert "25.00% collide, and 100 codewords" in text
    assert "takes 3 CPU milliseconds (decode, TIGER's decoder)" in text
    # Twice a microsecond an item is 2,000 s of a billion, 0.6 hours.
    assert "| embeddings → learned codewords: core-hours | 0.6 | encode at" in text
    # One of four shards, so four times its microsecond an interaction.
    assert "10^10 interactions: core-hours | 11 | 1 steps of shards" in text
    assert "| 20.0 bytes per item | trie at 10,000,000 items end to end" in text
    assert "one machine | 200 GB | histories at 1,000,000 items: 200 bytes" in text


def test_exponents_are_slopes_from_a_hundred_thousand_items_on():
    rows = [row("local", "trie", 10**n, cpu_seconds=10 ** (2 * n)) for n in (5, 6, 7)]
    assert fit_exponent(rows, "cpu_seconds") == pytest.approx(2)
    rows.append(row("local", "trie", 10**4, cpu_seconds=1e9))
    assert fit_exponent(rows, "cpu_seconds") == pytest.approx(2)
    assert fit_exponent(rows[:1], "cpu_seconds") is None
    sampled = row("shards", "tokens", 1000, shards=1, cpu_seconds=1e-3)
    assert micros_a_row(sampled) == pytest.approx(4)


@pytest.mark.parametrize("stage", ["histories", "encode", "collisions", "trie"])
def test_a_stage_is_measured(stage):
    rows = []
    measure(stage, 2000, rows.append)
    (found,) = rows
    assert found["items"] == 2000
    assert found["cpu_seconds"] > 0
    assert found["peak_bytes"] >= found["start_bytes"] > 0
    assert (found["device_bytes"] is not None) == (stage == "trie")


def double(value, wanted):
    return [(key, f"{key}:{value}".encode()) for key in wanted if key < 2]


def join(value, wanted):
    key, came = value
    if isinstance(came, dict):
        came = [*came["a"], *came["b"]]
    return [(wanted[0], b"+".join(came) + b"|%d" % key)]


def write(shard, blocks, writer):
    (writer.folder / str(shard)).write_bytes(b" ".join(blocks))


def hold(num_bytes):
    return len(b"x" * num_bytes) - 1


def spooled(flow, folder):
    """What three shards hold after a flow, and the steps that were told."""
    steps = []
    (folder / "out").mkdir()
    worker = OneWorker(folder / "spool", lambda step, _: steps.append(step))
    worker.run(flow, ShardWriter(folder / "out", 3, "made"), [0, 1, 2])
    assert not [path for path in (folder / "spool").rglob("*") if path.is_file()]
    return [(folder / "out" / f"{n}").read_bytes() for n in range(3)], steps


@pytest.mark.slow
def test_a_worker_hands_blocks_over_in_files_and_forgets_them(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    found, steps = spooled(Flow(write, {"a": ([1, 2], double)}), one)
    assert found == [b"0:1 0:2", b"1:1 1:2", b""]
    assert steps == ["out, a", "out, write"]
    sources = {"a": ([1, 2], double), "b": ([3], double)}
    found, steps = spooled(Flow(write, sources, {"c": join, "d": join}), two)
    assert found == [b"0:1+0:2+0:3|0+1:1+1:2+1:3|1|0", b"", b""]
    assert steps == ["out, a", "out, b", "out, c", "out, d", "out, write"]


@pytest.mark.slow
def test_a_worker_tells_the_most_that_a_task_held(tmp_path):
    told = {}
    worker = OneWorker(tmp_path, lambda step, measured: told.update({step: measured}))
    small, large = 1 << 20, 300 << 20
    found = worker.do("large", hold, [large, small])
    assert found == small - 1
    measured = told["large"]
    assert measured.shards == 2
    assert measured.peak_bytes - measured.start_bytes > 0.9 * large
    with pytest.raises(RuntimeError, match="broken: the worker failed"):
        run_tasks([partial(Path.read_text, tmp_path / "nothing")], "broken")
