"""Stage recommend: requests in, readable or machine-readable answers out."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from trained_workdir import make_trained_workdir

from tiger_jax.data.prepared import PreparedData
from tiger_jax.errors import InputError
from tiger_jax.recommending import parts
from tiger_jax.recommending.result_files import SCHEMA
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.recommend import recommend

K = 5


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_trained_workdir(tmp_path_factory.mktemp("work"))


def _lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_histories_from_json_lines_with_unknown_items_and_nobody(
    workdir, tmp_path, capsys
):
    path = tmp_path / "histories.jsonl"
    lines = [
        {"user": "user-3", "history": ["item-1", "gone", "item-2"]},
        ["item-4"],
        {"user": "nobody", "history": ["gone"]},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    recommend(RunContext(workdir), histories=str(path), k=K, output="jsonl")
    known, alone, nobody = _lines(capsys)
    assert known["user"] == "user-3"
    assert known["unknown_items"] == ["gone"]
    assert known["history"] == ["item-1", "item-2"]
    assert known["by"] == alone["by"] == "tiger"
    for answer in (known, alone):
        items = [entry["item_id"] for entry in answer["recommended"]]
        assert len(set(items)) == K
        assert not set(items) & set(answer["history"])
    assert nobody["by"] == "popularity"
    data = PreparedData.load(workdir / "data")
    counts = [int((data.histories.items == i).sum()) for i in range(data.num_items)]
    shown = [data.item_ids.index(e["item_id"]) for e in nobody["recommended"]]
    assert [counts[i] for i in shown] == sorted(counts, reverse=True)[:K]


def test_histories_from_csv_with_several_users(workdir, tmp_path, capsys):
    path = tmp_path / "histories.csv"
    path.write_text("user_id,item_id\na,item-1\nb,item-5\na,item-2\n")
    recommend(RunContext(workdir), histories=str(path), k=K, output="jsonl")
    a, b = _lines(capsys)
    assert (a["user"], a["history"]) == ("a", ["item-1", "item-2"])
    assert (b["user"], b["history"]) == ("b", ["item-5"])


def test_the_order_of_requests_changes_no_answer(workdir, tmp_path, capsys):
    path = tmp_path / "histories.jsonl"
    histories = [["item-1"], [], ["item-2", "item-3"]]
    answers = []
    for order in (histories, histories[::-1]):
        path.write_text("\n".join(json.dumps(h) for h in order))
        recommend(RunContext(workdir), histories=str(path), k=K, output="jsonl")
        lines = _lines(capsys)
        answers.append([[e["item_id"] for e in line["recommended"]] for line in lines])
    assert answers[0] == answers[1][::-1]


def test_titles_become_a_history(workdir, capsys, monkeypatch):
    # What gives new items their codes is not needed, and may take long to fit.
    monkeypatch.delattr(parts, "freeze_encoder")
    recommend(RunContext(workdir), title="ACME thing; number 41", k=5)
    out = capsys.readouterr().out
    assert "25 items match 'ACME thing'" in out
    had, recommended = out.split("TIGER recommends")
    first, second = (line for line in had.splitlines() if "Thing" in line)
    assert int(first.split("number")[1].split()[0]) % 2  # odd numbers are Acme's
    assert "Thing of sort 6 number 41" in second  # 41 = 6 modulo 7
    listed = [line for line in recommended.splitlines() if "Thing" in line]
    assert len(listed) == 5
    for place, line in enumerate(listed, 1):
        number, score, item_id, *_ = line.split()
        assert int(number) == place
        assert float(score) < 0
        assert line.endswith(f"number {item_id.removeprefix('item-')}") or (
            f"number {item_id.removeprefix('item-')} " in line
        )


def test_without_a_request_test_users_are_shown(workdir, capsys):
    """Without a request, test users are shown with what they took."""
    recommend(RunContext(workdir), num_users=2, k=50, exclude_seen=False)
    out = capsys.readouterr().out
    # All 50 items are listed, so what was taken is among them.
    assert out.count("took next (found)") == 2
    assert out.count("✓") == 2
    assert out.count("TIGER recommends") == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("h.jsonl", '["item-1"]\n{"history": "item-1"}\n', "line 2"),
        ("h.jsonl", '["item-1"\n', "line 1: not JSON"),
        ("h.jsonl", "\n", "no history"),
        ("h.csv", "who,what\na,b\n", "no column 'item_id'"),
        ("h.txt", "item-1\n", "must be .jsonl, .csv or"),
    ],
)
def test_a_bad_file_is_named_with_its_line(workdir, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        recommend(RunContext(workdir), histories=str(tmp_path / name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"title": "no such thing"}, "no item's title"),
        ({"title": "thign numbre 7"}, "did you mean 'thing', 'number'"),
        ({"title": " ; "}, "empty"),
        ({"title": "a", "histories": "b"}, "not both"),
        ({"histories": "missing.jsonl"}, "not a file"),
        ({"output": "xml"}, "table, jsonl, or a file that ends"),
        ({"output": "no/such/folder/lists.inter"}, "can't be written"),
        ({"k": 0}, "positive"),
        ({"k": 51}, "at least as many beams"),
    ],
)
def test_a_bad_request_is_refused(workdir, arguments, message):
    with pytest.raises(InputError, match=message):
        recommend(RunContext(workdir), **arguments)


def test_without_a_recommender_the_stage_to_run_is_named(tmp_path):
    with pytest.raises(InputError, match="recommend needs .*--stage=prepare_data"):
        recommend(RunContext(tmp_path))


@pytest.mark.parametrize("output", ["table", "lists.inter"])
def test_items_written_otherwise_are_told_with_the_cause(
    workdir, tmp_path, capsys, output
):
    path = tmp_path / "h.csv"
    path.write_text("user_id;item_id\na;item-1\na;ITEM-2\nb;ITEM-3\n")
    output = output.replace("lists", str(tmp_path / "lists"))
    recommend(RunContext(workdir), histories=str(path), k=K, output=output)
    said = capsys.readouterr().out
    assert (
        "note: 2 of 3 items in the histories are not in the catalogue, such as "
        "'ITEM-2'; it has 'item-2': capitals differ\n"
    ) in said
    assert "';' stands between its fields" in said


def test_lists_as_parquet_and_as_recbole_read_back_the_same(workdir, tmp_path, capsys):
    paths = [tmp_path / "lists.parquet", tmp_path / "lists.inter"]
    options = {"num_users": 4, "k": K}
    recommend(RunContext(workdir), output="jsonl", **options)
    lines = _lines(capsys)
    for path in paths:
        recommend(RunContext(workdir), output=str(path), **options)
    expected = [
        (line["user"], rank, item["item_id"])
        for line in lines
        for rank, item in enumerate(line["recommended"], 1)
    ]
    table = pq.read_table(paths[0])
    found = zip(*(table[n].to_pylist() for n in SCHEMA.names[:3]), strict=True)
    assert list(found) == expected
    assert table.schema == SCHEMA
    rows = [line.split("\t") for line in paths[1].read_text().splitlines()]
    assert rows[0] == ["user_id:token", "item_id:token", "score:float", "rank:float"]
    assert [(u, int(rank), i) for u, i, _, rank in rows[1:]] == expected
    scores = [float(row[2]) for row in rows[1:]]
    np.testing.assert_allclose(scores, table["score"].to_numpy(), rtol=1e-5)
    assert not list(tmp_path.glob("*.tmp"))
