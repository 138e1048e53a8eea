"""Files of histories."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.errors import InputError
from tiger_jax.recommending.histories_wanted import read_histories


def read(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return [(w.user, list(w.history)) for w in read_histories(path)]


def test_users_are_named_or_their_line_is(tmp_path):
    lines = (
        '["a", 7]\n{"user": "u1", "history": ["a"]}\n'
        '{"user_id": 7, "history": []}\n{"user_id": null, "history": ["b"]}\n'
    )
    assert read(tmp_path, "h.jsonl", lines) == [
        ("line 1", ["a", "7"]),
        ("u1", ["a"]),
        ("7", []),
        ("line 4", ["b"]),
    ]


@pytest.mark.parametrize("name", ["h.csv", "h.tsv", "H.CSV"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_delimiter_of_a_table_is_found(tmp_path, name, mark):
    text = f"\ufeffuser_id{mark}item_id\nu{mark}a\nv{mark}b\nu{mark}c\n"
    assert read(tmp_path, name, text) == [("u", ["a", "c"]), ("v", ["b"])]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "h.csv",
            "Customer;SKU;Event_Time\nu;b;2024-01-02\nv;c;1.1.2024\nu;a;2024-01-01\n",
        ),
        ("h.csv.gz", ",visitor_id,product_id,time\n0,u,b,9\n1,v,c,7\n2,u,a,8\n"),
        ("h.tsv", "sku\tuid\tts\nb\tu\t9\nc\tv\t7\na\tu\t8\n"),
    ],
)
def test_tables_go_by_the_names_that_shops_use(tmp_path, name, text):
    content = text.encode("utf-8-sig")
    (tmp_path / name).write_bytes(
        gzip.compress(content) if name.endswith(".gz") else content
    )
    found = [(w.user, w.history) for w in read_histories(tmp_path / name)]
    assert found == [("u", ("a", "b")), ("v", ("c",))]


def test_a_table_of_one_user_and_named_columns(tmp_path):
    pq.write_table(pa.table({"art": [7, 8], "n": [1, 2]}), tmp_path / "h.parquet")
    with pytest.raises(
        InputError, match="no column 'item_id'.*FilesConfig.interaction_item_id="
    ):
        read_histories(tmp_path / "h.parquet")
    (one,) = read_histories(
        tmp_path / "h.parquet", FilesConfig(interaction_item_id="art")
    )
    assert one.history == ("7", "8")


def test_a_time_under_an_unknown_name_is_not_overlooked(tmp_path):
    (tmp_path / "h.csv").write_text("user_id,item_id,zeit\nu,a,2024-01-02\n")
    (one,) = read_histories(tmp_path / "h.csv")
    assert "files.FilesConfig.timestamp=zeit" in one.notes[0]


def test_a_value_over_several_lines_is_told_to_be_one(tmp_path):
    with pytest.raises(InputError, match="line 1: not JSON .* each line must be a his"):
        read(tmp_path, "h.json", '[\n "a",\n "b"\n]\n')


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '["a", 2.0]', '["a"', '[["a"]]', '["\\ud800"]', "9" * 5000]
)
def test_what_is_no_history_names_its_line(tmp_path, line):
    with pytest.raises(InputError, match="line 2: "):
        read(tmp_path, "h.jsonl", f'["a"]\n{line}\n')
