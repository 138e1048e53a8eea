"""Readers of files: what comes out of a well-formed shop, whatever its format."""

import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shops import INTERACTIONS_CSV, json_lines, write, write_csv_shop

from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.readers.columns import MISSING
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.readers.raw_source import find_source

ITEMS = [
    {
        "item_id": "a",
        "title": "Red polish, shiny",
        "brand": "OPI",
        "price": 4.5,
        "categories": [["Beauty", "Nails"]],
        "colour": "red",
    },
    {
        "item_id": "b",
        "title": "Blue polish",
        "brand": "",
        "price": 1299.0,
        "categories": [["Beauty", "Nails"], ["Gifts"]],
        "colour": "blue",
    },
    {
        "item_id": "c",
        "title": "",
        "brand": "Essie",
        "price": None,
        "categories": [],
        "colour": "",
    },
]
EVENTS = [
    {"user_id": "u1", "item_id": "a", "timestamp": 3.0},
    {"user_id": "u1", "item_id": "b", "timestamp": 1.0},
    {"user_id": "u2", "item_id": "c", "timestamp": 2.0},
]


def read(folder: Path, **config: object) -> RawShop:
    source = find_source(folder, configs=[FilesConfig(**config)])
    assert source.kind == "files"
    return source.read()


def write_format(folder: Path, suffix: str) -> Path:
    folder.mkdir(exist_ok=True)
    if suffix == "csv":
        return write_csv_shop(folder)
    if suffix == "jsonl":
        write(folder / "items.jsonl", json_lines(ITEMS))
        write(folder / "interactions.jsonl", json_lines(EVENTS))
    else:
        pa.parquet.write_table(pa.Table.from_pylist(ITEMS), folder / "items.parquet")
        events = pa.Table.from_pylist(EVENTS)
        pa.parquet.write_table(events, folder / "interactions.parquet")
    return folder


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_format_gives_the_same_shop(tmp_path, suffix):
    shop = read(write_format(tmp_path, suffix))
    assert shop.items.to_pylist() == ITEMS
    assert shop.interactions.to_pylist() == EVENTS
    assert shop.notes == ()


def test_formats_can_be_mixed(tmp_path):
    write(tmp_path / "items.jsonl", json_lines(ITEMS))
    write(tmp_path / "interactions.csv", INTERACTIONS_CSV)
    shop = read(tmp_path)
    assert shop.items.to_pylist() == ITEMS
    assert shop.interactions.to_pylist() == EVENTS


def test_columns_can_have_other_names(tmp_path):
    write(tmp_path / "items.csv", "asin;name;maker\nx;Soap;Dove\n")
    write(tmp_path / "interactions.csv", "who;what;when\nu;x;7\n")
    shop = read(
        tmp_path,
        item_id="asin",
        interaction_item_id="what",
        title="name",
        brand="maker",
        user_id="who",
        timestamp="when",
        delimiter=";",
    )
    assert shop.items["title"].to_pylist() == ["Soap"]
    assert shop.items["brand"].to_pylist() == ["Dove"]
    assert shop.items.column_names == [
        "item_id",
        "title",
        "brand",
        "price",
        "categories",
    ]
    assert shop.interactions.to_pylist() == [
        {"user_id": "u", "item_id": "x", "timestamp": 7.0}
    ]


def test_without_timestamps_the_file_order_counts_and_is_said(tmp_path):
    write_csv_shop(tmp_path, interactions="user_id,item_id\nu1,b\nu1,a\nu2,c\n")
    shop = read(tmp_path)
    assert shop.interactions["timestamp"].to_pylist() == [0.0, 1.0, 2.0]
    assert any("no timestamps" in note for note in shop.notes)


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("Beauty > Nails > Polish", [["Beauty", "Nails", "Polish"]]),
        ("Drama|Comedy", [["Drama"], ["Comedy"]]),
        ("Beauty>Nails|Gifts", [["Beauty", "Nails"], ["Gifts"]]),
        ('"[""Beauty"", ""Nails""]"', [["Beauty", "Nails"]]),
        ("\"['Beauty', 'Nails']\"", [["Beauty", "Nails"]]),
        ("\"[['Beauty', 'Nails'], ['Gifts']]\"", [["Beauty", "Nails"], ["Gifts"]]),
        ("Beauty -> Nails » Polish › Red", [["Beauty", "Nails", "Polish", "Red"]]),
        ("[Sale] Shoes > Boots", [["[Sale] Shoes", "Boots"]]),
        (" > Nails || ", [["Nails"]]),
        ("", []),
    ],
)
def test_category_texts_become_paths(tmp_path, text, paths):
    write_csv_shop(
        tmp_path,
        items=f"item_id,categories\na,{text}\n",
        interactions="user_id,item_id,timestamp\nu,a,1\n",
    )
    assert read(tmp_path).items["categories"].to_pylist() == [paths]


def test_a_flat_list_is_one_path_and_fields_become_text(tmp_path):
    """A flat list is one path, and fields of any kind become text."""
    rows = [
        {"item_id": 7, "categories": ["Beauty", "Nails"], "tags": ["x", "y"], "n": 1},
        {"item_id": 8, "categories": None, "tags": [], "n": "two", "ok": True},
    ]
    write(tmp_path / "items.jsonl", json_lines(rows))
    write(tmp_path / "interactions.csv", "user_id,item_id,timestamp\nu,7,1\n")
    shop = read(tmp_path)
    assert shop.items["item_id"].to_pylist() == ["7", "8"]
    assert shop.items["categories"].to_pylist() == [[["Beauty", "Nails"]], []]
    assert shop.items["tags"].to_pylist() == ["x, y", ""]
    assert shop.items["n"].to_pylist() == ["1", "two"]
    assert shop.items["ok"].to_pylist() == ["", "true"]


def test_a_column_that_is_no_text_is_left_out_and_said(tmp_path):
    rows = [{"item_id": "a", "title": "t", "related": {"also": ["b"]}}]
    write(tmp_path / "items.jsonl", json_lines(rows))
    write(tmp_path / "interactions.csv", "user_id,item_id,timestamp\nu,a,1\n")
    shop = read(tmp_path)
    assert "related" not in shop.items.column_names
    assert shop.notes == ("items.jsonl: column 'related' is left out: it holds dict",)


def test_prices_are_read_with_signs_and_separators(tmp_path):
    texts = ['"$1,299.00"', "€ 3.5", '"12,99"', "7", "0", "-4", "call us", "nan", ""]
    rows = "".join(f"i{n},{text}\n" for n, text in enumerate(texts))
    write_csv_shop(
        tmp_path,
        items="item_id,price\n" + rows,
        interactions="user_id,item_id,timestamp\nu,i1,1\n",
    )
    shop = read(tmp_path)
    expected = [1299.0, 3.5, 12.99, 7.0, None, None, None, None, None]
    assert shop.items["price"].to_pylist() == expected
    assert shop.notes[0] == (
        "items.csv: 3 of 9 values of 'price' are no prices and count as unknown "
        "(first '0')"
    )


@pytest.mark.parametrize(
    ("first", "second", "seconds"),
    [
        ("10", "12.5", 2.5),
        ("-1e3", "1E3", 2000),
        ("2014-07-01", "2014-07-02", 86_400),
        ("2014-07-01 00:00:00", "2014-07-01T00:00:01.5", 1.5),
        ("2014-07-01T00:00:00Z", "2014-07-01T02:00:00+01:00", 3600),
    ],
)
def test_times_are_numbers_or_iso_dates(tmp_path, first, second, seconds):
    write_csv_shop(
        tmp_path,
        interactions=f"user_id,item_id,timestamp\nu,a,{first}\nu,b, {second} \n",
    )
    times = read(tmp_path).interactions["timestamp"].to_pylist()
    assert times[1] - times[0] == seconds


def test_parquet_dates_and_whole_number_ids_are_understood(tmp_path):
    items = pa.table({"item_id": pa.array([1, 2], pa.int32())})
    when = [datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 2)]
    events = pa.table(
        {
            "user_id": pa.array(["u", "u"]).dictionary_encode(),
            "item_id": pa.array([2, 1], pa.uint8()),
            "timestamp": pa.array(when, pa.timestamp("ns")),
        }
    )
    pa.parquet.write_table(items, tmp_path / "items.parquet")
    pa.parquet.write_table(events, tmp_path / "interactions.parquet")
    shop = read(tmp_path)
    assert shop.interactions["item_id"].to_pylist() == ["2", "1"]
    assert np.diff(shop.interactions["timestamp"].to_pylist()).tolist() == [86_400.0]


def test_low_ratings_are_left_out_where_asked_and_counted(tmp_path):
    write_csv_shop(
        tmp_path,
        interactions="user_id,item_id,timestamp,rating\nu,a,1,3.5\nu,b,2,4\nu,c,3,5\n",
    )
    shop = read(tmp_path, min_rating=4.0)
    assert shop.interactions["item_id"].to_pylist() == ["b", "c"]
    assert shop.notes == (
        "interactions.csv: 1 of 3 interactions are rated below 4 and left out",
    )


def test_unknown_items_are_dropped_and_counted_where_asked(tmp_path):
    write_csv_shop(
        tmp_path, interactions="user_id,item_id,timestamp\nu,a,1\nu,zz,2\nu,b,3\n"
    )
    shop = read(tmp_path, unknown_items="drop")
    assert shop.interactions["item_id"].to_pylist() == ["a", "b"]
    assert shop.notes == (
        "interactions.csv: 1 of 3 interactions name items that items.csv lacks and "
        "are left out",
    )


def test_texts_are_kept_as_they_are_in_csv(tmp_path):
    long_text = "x" * 20_000_000  # longer than a block of the parser
    items = (
        "\ufeffitem_id , title\r\n"
        '007,"NA"\r\n'
        "\r\n"
        '7,"two\nlines, ""quoted"" 日本"\r\n'
        f"null,{long_text}\r\n"
        "z\x00z, \r\n"
    )
    events = "user_id,item_id,timestamp\nnan,007,1\nu,z\x00z,2\n"
    shop = read(write_csv_shop(tmp_path, items, events))
    assert shop.items["item_id"].to_pylist() == ["007", "7", "null", "z\x00z"]
    assert shop.items["title"].to_pylist() == [
        "NA",
        'two\nlines, "quoted" 日本',
        long_text,
        " ",
    ]
    assert shop.interactions["user_id"].to_pylist() == ["nan", "u"]


def test_a_quote_inside_an_unquoted_field_means_itself(tmp_path):
    write_csv_shop(tmp_path, items='item_id,title\na,5" pipe\nb,x\nc,"y\nz"\n')
    assert read(tmp_path).items["title"].to_pylist() == ['5" pipe', "x", "y\nz"]


def test_a_column_name_may_span_lines(tmp_path):
    write_csv_shop(tmp_path, items='\nitem_id,"the\ncolour"\na,red\nb,blue\nc,\n')
    shop = read(tmp_path)
    assert shop.items["the\ncolour"].to_pylist() == ["red", "blue", ""]


def test_other_encodings_can_be_named(tmp_path):
    folder = write_csv_shop(
        tmp_path, "item_id,title\na,Crème\nb,é\nc,ü\n".encode("latin-1")
    )
    assert read(folder, encoding="latin-1").items["title"][0].as_py() == "Crème"
    write_csv_shop(
        tmp_path,
        "item_id,title\na,Crème\nb,é\nc,ü\n".encode("utf-16"),
        INTERACTIONS_CSV.encode("utf-16"),
    )
    assert read(folder, encoding="utf-16").items["title"][2].as_py() == "ü"


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
KNOWN = TEXT.filter(lambda text: text not in MISSING)


@given(
    titles=st.lists(
        KNOWN.filter(lambda text: "&" not in text),
        min_size=1,
        max_size=12,
    ),
    names=st.lists(st.lists(TEXT, max_size=3), max_size=3),
)
def test_json_and_parquet_agree_on_any_text(tmp_path_factory, titles, names):
    folder = tmp_path_factory.mktemp("shop")
    rows = [
        {"item_id": f"i{n}", "title": title, "categories": names}
        for n, title in enumerate(titles)
    ]
    (folder / "json").mkdir()
    (folder / "parquet").mkdir()
    write(folder / "json" / "items.jsonl", json_lines(rows))
    schema = {
        "item_id": pa.string(),
        "title": pa.large_string(),
        "categories": pa.list_(pa.list_(pa.string())),
    }
    table = pa.table({c: pa.array([r[c] for r in rows], t) for c, t in schema.items()})
    pa.parquet.write_table(table, folder / "parquet" / "items.parquet")
    for kind in ("json", "parquet"):
        event = {"user_id": "u", "item_id": "i0", "timestamp": 1}
        write(folder / kind / "interactions.jsonl", json.dumps(event))
    from_json, from_parquet = read(folder / "json"), read(folder / "parquet")
    assert from_json.items["title"].to_pylist() == titles
    assert from_json.items.to_pylist() == from_parquet.items.to_pylist()


@given(
    fields=st.lists(
        st.tuples(KNOWN.filter(bool), KNOWN),
        min_size=1,
        max_size=10,
        unique_by=str,
    )
)
def test_csv_round_trips_any_text(tmp_path_factory, fields):
    folder = tmp_path_factory.mktemp("shop")
    ids = [f"{n}{text}" for n, (text, _) in enumerate(fields)]
    table = pa.table({"item_id": ids, "title": [title for _, title in fields]})
    pa.csv.write_csv(table, folder / "items.csv")
    events = pa.table({"user_id": ["u"], "item_id": [ids[0]], "timestamp": [1.0]})
    pa.csv.write_csv(events, folder / "interactions.csv")
    shop = read(folder)
    assert shop.items.select(["item_id", "title"]).to_pylist() == table.to_pylist()
    assert shop.interactions["item_id"].to_pylist() == [ids[0]]
