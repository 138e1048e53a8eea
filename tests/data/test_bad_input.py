"""Bad data: always one line that names the file, the place and what to do."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shops import INTERACTIONS_CSV, ITEMS_CSV, write, write_csv_shop

from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.readers.raw_source import find_source
from tiger_jax.data.tables import csv_files
from tiger_jax.errors import InputError, flag

HEADER = "user_id,item_id,timestamp\n"
NO_TIME = (
    "no 'timestamp' is given: fill it in, or leave such rows out with "
    "--gin.files.FilesConfig.missing_times=drop"
)
OTHER_TIMES = "; or say how they are written, such as " + flag(
    "files.FilesConfig.time_format", "%d.%m.%Y %H:%M"
)
LATIN_1 = (
    "save the file as UTF-8, or name its encoding (latin-1, gb18030, shift_jis, …): "
    "--gin.files.FilesConfig.encoding=latin-1"
)


def read(folder: Path, **config: object) -> RawShop:
    return FilesConfig(**config).read(folder)


def error_of(folder: Path, **config: object) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, **config)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(folder) + os.sep, "")


@pytest.mark.parametrize(
    ("items", "interactions", "expected"),
    [
        # --- the interactions don't fit the items
        (
            ITEMS_CSV,
            HEADER + "u1,a,1\nu1,zz,2\nu2,yy,3\n",
            "interactions.csv, line 3: item 'zz' is not in items.csv (2 of 3 "
            "interactions): add the items, or leave those interactions out with "
            "--gin.files.FilesConfig.unknown_items=drop",
        ),
        (
            ITEMS_CSV,
            HEADER + "u1, a,1\n",
            "interactions.csv, line 2: item ' a' is not in items.csv, which has 'a' "
            "(so 1 of 1 interactions): spaces stand around one of them: write "
            "identifiers the same way in both files",
        ),
        (
            ITEMS_CSV,
            HEADER + "u1,../../../etc/passwd,1\n",
            "interactions.csv, line 2: item '../../../etc/passwd' is not in items.csv, "
            "nor is that of any other of 1 interactions: its identifiers look like "
            "'a': use the same ones in both files",
        ),
        # --- columns
        (
            "what,title\na,x\n",
            INTERACTIONS_CSV,
            "items.csv has no column 'item_id' (found: 'what', 'title'): name the "
            "column that holds it with --gin.files.FilesConfig.item_id=NAME",
        ),
        (
            ITEMS_CSV,
            "u1,a,1\nu1,b,2\n",
            "interactions.csv has no column 'user_id' (found: 'u1', 'a', '1'): its "
            "first line looks like data: add a line of column names",
        ),
        (
            "B1,Soap,Alba\nB2,Towel,Alba\n",
            INTERACTIONS_CSV,
            "items.csv has no column 'item_id' (found: 'B1', 'Soap', 'Alba'): its "
            "first line looks like data: add a line of column names",
        ),
        (
            "B1,Soap\nB2,Towel\n",
            INTERACTIONS_CSV,
            "items.csv has no column 'item_id' (found: 'B1', 'Soap'): name the column "
            "that holds it with --gin.files.FilesConfig.item_id=NAME, or add a line of "
            "column names if these are none",
        ),
        (
            ITEMS_CSV,
            "1,1,2014-07-01 12:00\n1,2,2014-07-02 12:00\n",
            "interactions.csv, line 1: two columns are called '1': its first line "
            "looks like data: add a line of column names",
        ),
        (
            "item_id,title,title\na,x,y\n",
            INTERACTIONS_CSV,
            "items.csv, line 1: two columns are called 'title': rename one",
        ),
        # --- items
        (
            'item_id,title\na,"two\nlines"\nb,x\na,y\nb,z\n',
            INTERACTIONS_CSV,
            "items.csv, line 5: item_id 'a' is given a second time (first at line 2; 2 "
            "repeated in all): keep one row an item",
        ),
        (
            "item_id,title\na,x\n,y\n",
            INTERACTIONS_CSV,
            "items.csv, line 3: no 'item_id' is given: fill it in, or delete that row",
        ),
        (
            "item_id,categories\na,x\nb,\"['x', oops]\"\n",
            INTERACTIONS_CSV,
            "items.csv, line 3: 'categories' is \"['x', oops]\", which is no list of "
            'names: write it as "A > B | C" or as JSON',
        ),
        (
            "item_id,categories\na,x\nb,\"['\\ud800']\"\n",
            INTERACTIONS_CSV,
            "items.csv, line 3: 'categories' is \"['\\\\ud800']\", which is no list of "
            'names: write it as "A > B | C" or as JSON',
        ),
        # --- times
        (
            ITEMS_CSV,
            HEADER + "u1,a,1\n\nu1,b,noon\n",
            "interactions.csv, line 4: 'timestamp' is 'noon', which is no time: times "
            "must be all numbers, or all like 2014-07-01 12:30:00" + OTHER_TIMES,
        ),
        (
            ITEMS_CSV,
            HEADER + "u1,a,2014-07-01\nu1,b,5\n",
            "interactions.csv, line 3: 'timestamp' is '5', which is no time: times "
            "must be all numbers, or all like 2014-07-01 12:30:00" + OTHER_TIMES,
        ),
        (
            ITEMS_CSV,
            HEADER + "u1,a,\n",
            "interactions.csv, line 2: " + NO_TIME,
        ),
        (
            ITEMS_CSV,
            HEADER + "u1,a,1\nu1,b,nan\n",
            "interactions.csv, line 3: " + NO_TIME,
        ),
        # --- the file itself
        ("", INTERACTIONS_CSV, "items.csv is empty: it should hold a table"),
        (
            "\n\n",
            INTERACTIONS_CSV,
            "items.csv is empty: it should begin with a header line",
        ),
        (
            "item_id,title\n",
            INTERACTIONS_CSV,
            "items.csv has no rows: it should hold a table",
        ),
        (
            "item_id,title",
            INTERACTIONS_CSV,
            "items.csv has a header but no rows",
        ),
        (
            "item_id,title\na,x\nb,Crème\nc,é\n".encode("latin-1"),
            INTERACTIONS_CSV,
            "items.csv, line 3, byte 5: 0xe8 is not utf-8 text: " + LATIN_1,
        ),
        (
            "item_id,title\na,x\nb,y,z\n",
            INTERACTIONS_CSV,
            "items.csv, line 3: 3 fields where the header has 2: put fields that hold "
            "',' in double quotes, or look for a quote that is never closed",
        ),
        (
            'item_id,title\na,x\nb,"y\nc,z\nd,w\n',
            INTERACTIONS_CSV,
            "items.csv, line 3: unexpected end of data: close the double quote that "
            "opens a field, and write quotes that belong to the text twice",
        ),
        (
            'item_id,title,x\na,x,\nb,"y,\nc,z,\nd,w,\n',
            INTERACTIONS_CSV,
            "items.csv, line 3: 2 fields where the header has 3: put ',' between all "
            "fields, empty ones too, or look for a quote that is never closed",
        ),
        (
            'item_id,title\na, "x, y"\n',
            INTERACTIONS_CSV,
            "items.csv, line 2: 3 fields where the header has 2: no spaces may stand "
            "before an opening quote",
        ),
        (
            "item_id,title\na,x\nb,y,z\n".encode("utf-16"),
            INTERACTIONS_CSV,
            "items.csv, line 3: 3 fields where the header has 2: put fields that hold "
            "',' in double quotes, or look for a quote that is never closed",
        ),
        (
            "item_id,title\na,x\nb,y\n".encode("utf-16")[:-1],
            INTERACTIONS_CSV,
            "items.csv, line 3, byte 1: 0x0a is not utf-16 text: " + LATIN_1,
        ),
        (
            "item_id,title\n9.78014E+12,x\n",
            INTERACTIONS_CSV,
            "items.csv, line 2: 'item_id' is '9.78014E+12': a spreadsheet wrote long "
            "numbers so, without their last digits: write the file anew, with that "
            "column as text",
        ),
        (
            ITEMS_CSV,
            HEADER + ",,\n,,,\n",
            "interactions.csv has no rows: it should hold a table",
        ),
        (
            "version https://git-lfs.github.com/spec/v1\nsize 12\n",
            INTERACTIONS_CSV,
            "items.csv is a pointer of Git LFS, and not the file itself: fetch that",
        ),
        (
            ITEMS_CSV,
            "\n<!DOCTYPE html>\n<html>404</html>\n",
            "interactions.csv is a web page, and not the file itself: fetch that",
        ),
    ],
)
def test_a_bad_csv_file_gives_one_telling_line(tmp_path, items, interactions, expected):
    assert error_of(write_csv_shop(tmp_path, items, interactions)) == expected


def test_an_endless_field_is_named_by_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "_MAX_FIELD", 1000)
    rows = HEADER + "u1,a,1\nu1,a," + "7x" * 600 + "\n"
    assert error_of(write_csv_shop(tmp_path, ITEMS_CSV, rows)) == (
        "interactions.csv, line 3: a field of more than 1,000 characters: is a line's "
        "end or a closing quote missing?"
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            '{"item_id": "a"}\n\n{"item_id": "b", }\n',
            "items.jsonl, line 3, column 18: not valid JSON (Illegal trailing comma "
            "before end of object): each line must be one JSON object",
        ),
        (
            '[{"item_id": "a"}]\n',
            "items.jsonl, line 1: a JSON list where each line must be one JSON object, "
            'such as {"item_id": "a1", "title": "…"} (pandas: '
            "to_json(orient='records', lines=True))",
        ),
        (
            '{"item_id": "a"}\n{"title": "b"}\n',
            "items.jsonl, line 2: no 'item_id' is given: fill it in, or delete that "
            "row",
        ),
        (
            '{"item_id": 1.5}\n',
            "items.jsonl: column 'item_id' holds numbers with fractions: store "
            "identifiers as text or whole numbers",
        ),
        (
            '{"item_id": ["a"]}\n',
            "items.jsonl: column 'item_id' holds lists: store identifiers as text or "
            "whole numbers",
        ),
        (
            '{"item_id": {"a": 1}}\n',
            "items.jsonl: column 'item_id' can't be used: it holds dict",
        ),
        (
            '{"item_id": "a", "title": "\\ud800"}\n',
            "items.jsonl, line 1: 'title' holds half a surrogate pair, which is no "
            "character: remove it",
        ),
        (
            '{"item_id": "a"}\n{"item_id": "b", "ti\\ud800tle": 1}\n',
            "items.jsonl: the key 'ti\\ud800tle' holds half a surrogate pair, which is "
            "no character: remove it",
        ),
        (
            b'{"item_id": "a"}\n{"item_id": "\xff"}\n',
            "items.jsonl, line 2, byte 14: 0xff is not utf-8 text: " + LATIN_1,
        ),
        ("\n \n", "items.jsonl has no rows: it should hold a table"),
        (
            "{}\n",
            "items.jsonl has no column 'item_id' (found: '(none)'): name the column "
            "that holds it with --gin.files.FilesConfig.item_id=NAME",
        ),
    ],
)
def test_a_bad_json_file_gives_one_telling_line(tmp_path, lines, expected):
    write(tmp_path / "items.jsonl", lines)
    write(tmp_path / "interactions.csv", INTERACTIONS_CSV)
    message = error_of(tmp_path)
    if "trailing comma" in expected:  # Python 3.13 says it in other words
        assert message.startswith("items.jsonl, line 3, column ")
        assert message.endswith("each line must be one JSON object")
    else:
        assert message == expected


def test_deeply_nested_or_huge_json_is_refused(tmp_path):
    write(tmp_path / "interactions.csv", INTERACTIONS_CSV)
    for text in ('{"item_id": ' + "[" * 100_000, '{"item_id": ' + "9" * 10_000 + "}"):
        write(tmp_path / "items.jsonl", text)
        assert error_of(tmp_path).startswith("items.jsonl, line 1: ")


def test_bad_interactions_in_json_are_found_beside_good_ones(tmp_path):
    write(tmp_path / "items.csv", ITEMS_CSV)
    good = '{"user_id": "u", "item_id": "a", "timestamp": 1}\n'
    for bad, expected in [
        ('{"user_id": "u", "item_id": "a"', ", line 1001, column 32: not valid JSON"),
        ('{"user_id": "u", "item_id": "a"}', ", line 1001: no 'timestamp' is"),
        ('{"user_id": null, "item_id": "a", "timestamp": 1}', ", line 1001: no 'user"),
        ('{"user_id": 5, "item_id": "b ", "timestamp": 1}', ", line 1001: item 'b '"),
    ]:
        write(tmp_path / "interactions.jsonl", good * 1000 + bad + "\n" + good)
        assert error_of(tmp_path).startswith("interactions.jsonl" + expected)


def test_numbers_among_texts_in_json_are_the_same_ids(tmp_path):
    write(tmp_path / "items.csv", "item_id\n5\n")
    rows = [
        '{"user_id": "u", "item_id": "5", "timestamp": 1}',
        '{"user_id": 12, "item_id": 5, "timestamp": 2.5}',
    ]
    write(tmp_path / "interactions.jsonl", "\n".join(rows))
    assert read(tmp_path).interactions.to_pylist() == [
        {"user_id": "u", "item_id": "5", "timestamp": 1.0},
        {"user_id": "12", "item_id": "5", "timestamp": 2.5},
    ]


def test_bad_parquet_files_give_one_telling_line(tmp_path):
    write(tmp_path / "interactions.csv", INTERACTIONS_CSV)
    write(tmp_path / "items.parquet", b"PAR1 and then nothing")
    assert error_of(tmp_path).startswith("items.parquet is no Parquet file: ")
    pa.parquet.write_table(pa.table({"item_id": [1.5]}), tmp_path / "items.parquet")
    assert "holds numbers with fractions" in error_of(tmp_path)
    latin_1 = pa.array([b"a", b"caf\xe9"]).view(pa.string())
    for damaged in latin_1, pa.ListArray.from_arrays([0, 1, 2], latin_1):
        table = pa.table({"item_id": ["a", "b"], "brand": damaged})
        pa.parquet.write_table(table, tmp_path / "items.parquet")
        message = error_of(tmp_path)
        assert message.startswith("items.parquet, column 'brand': ")
        assert message.endswith(
            "Invalid UTF8 sequence at string index 1: write the file again"
        )
    ids = pa.table({"item_id": pa.array(["a", None])})
    pa.parquet.write_table(ids, tmp_path / "items.parquet")
    assert error_of(tmp_path).startswith("items.parquet, row 2: no 'item_id' is given")
    raw = pa.table({"item_id": pa.array([b"\xff"], pa.binary())})
    pa.parquet.write_table(raw, tmp_path / "items.parquet")
    assert "column 'item_id' can't be used: it holds binary" in error_of(tmp_path)
    pa.parquet.write_table(pa.table({"item_id": []}), tmp_path / "items.parquet")
    assert "has no rows" in error_of(tmp_path)


def test_a_parquet_file_that_would_fill_the_memory_is_refused(tmp_path):
    write(tmp_path / "interactions.csv", INTERACTIONS_CSV)
    texts = pa.DictionaryArray.from_arrays(
        pa.array([0] * 50_000, pa.int32()), pa.array(["x" * 20_000])
    )
    ids = pa.array([str(number) for number in range(50_000)])
    table = pa.table({"item_id": ids, "title": texts})
    pa.parquet.write_table(table, tmp_path / "items.parquet")
    assert "would take 1,000,000,000 in memory" in error_of(tmp_path)


def test_a_named_column_must_exist_even_if_it_is_optional(tmp_path):
    write_csv_shop(tmp_path)
    assert error_of(tmp_path, title="name").startswith(
        "items.csv has no column 'name' (found: 'item_id', 'title', "
    )
    assert error_of(tmp_path, timestamp="when").startswith(
        "interactions.csv has no column 'when'"
    )
    assert error_of(tmp_path, min_rating=3.0).startswith(
        "interactions.csv has no column 'rating'"
    )


def test_a_message_stays_short_however_long_a_name_is(tmp_path):
    write_csv_shop(tmp_path, interactions="u" * 5000 + ",item_id\nu,a\n")
    message = error_of(tmp_path)
    assert message.startswith("interactions.csv has no column 'user_id' (found: 'uuuu")
    assert len(message) < 500


def test_impossible_options_are_refused(tmp_path):
    write_csv_shop(tmp_path)
    assert "unknown_items must be" in error_of(tmp_path, unknown_items="ignore")
    assert "one ASCII character" in error_of(tmp_path, delimiter="::")
    assert "no text encoding called 'klingon'" in error_of(tmp_path, encoding="klingon")
    assert "no text encoding called 'zip'" in error_of(tmp_path, encoding="zip")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "holds no data that is known; looked for items.csv and interactions.csv"),
        (["items.csv"], "holds items.csv but not what belongs to it; looked for"),
        (["ratings.csv"], "holds ratings.csv but not what belongs to it; looked for"),
        (
            ["items.csv", "items.jsonl", "interactions.csv"],
            "holds items.csv and items.jsonl: leave only one of them",
        ),
        (["a.item", "a.inter", "b.inter"], "holds a.inter and b.inter: leave only one"),
    ],
)
def test_folders_that_are_no_data_say_what_is_looked_for(tmp_path, names, expected):
    for name in names:
        write(tmp_path / name, "x")
    with pytest.raises(InputError) as caught:
        find_source(tmp_path)
    assert expected in str(caught.value)


def test_the_folder_inside_is_named(tmp_path):
    write_csv_shop(tmp_path / "my shop", ITEMS_CSV, INTERACTIONS_CSV)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"my shop in it does: --data_dir='.*my shop'"):
        find_source(tmp_path)


def test_data_dir_must_be_a_folder(tmp_path):
    with pytest.raises(InputError, match="is a file: give --data_dir the folder"):
        find_source(write(tmp_path / "items.csv", ITEMS_CSV))
    with pytest.raises(InputError, match="can't be read"):
        find_source(tmp_path / "nowhere")
    with pytest.raises(InputError, match="can't be read"):
        find_source(tmp_path / "null\x00byte")


@given(
    data=st.one_of(
        st.binary(max_size=80),
        st.text('ab,"\n\r>|[]{}:.\x00é1', max_size=40).map(str.encode),
        st.text('ab,"\n', max_size=30).map(lambda t: b"item_id,title\n" + t.encode()),
    ),
    suffix=st.sampled_from(["csv", "jsonl", "parquet"]),
    role=st.sampled_from(["items", "interactions"]),
)
def test_no_bytes_whatever_lead_to_a_traceback(tmp_path_factory, data, suffix, role):
    folder = tmp_path_factory.mktemp("shop")
    other = {"items": "interactions", "interactions": "items"}[role]
    text = {"items": ITEMS_CSV, "interactions": INTERACTIONS_CSV}[other]
    write(folder / f"{role}.{suffix}", data)
    write(folder / f"{other}.csv", text)
    message = ""
    try:
        read(folder)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
