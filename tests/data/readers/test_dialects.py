"""The forms in which people's files come: dialects of CSV, gzip, parts, times, ids."""

import gzip
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from shops import INTERACTIONS_CSV, ITEMS_CSV, json_lines, write, write_csv_shop

from tiger_jax.data.raw_shop import RawShop
from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.readers.raw_source import find_source
from tiger_jax.errors import InputError

EVENTS = "user_id,item_id,timestamp\nu,a,1\n"


def read(folder: Path, **config: object) -> RawShop:
    return find_source(folder, configs=[FilesConfig(**config)]).read()


def titles_of(folder: Path, items: str | bytes, events: str | bytes = EVENTS):
    return read(write_csv_shop(folder, items, events)).items["title"].to_pylist()


def times_of(folder: Path, *times: str, **config: object) -> list[float]:
    rows = "".join(f'u,a,"{time}"\n' for time in times)
    write_csv_shop(folder, ITEMS_CSV, "user_id,item_id,timestamp\n" + rows)
    return read(folder, **config).interactions["timestamp"].to_pylist()


def error_of(folder: Path, **config: object) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, **config)
    return str(caught.value)


# --- CSV


@pytest.mark.parametrize("mark", [";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff", "sep={}\n", '\ufeff"sep={}"\r\n'])
def test_the_delimiter_is_found(tmp_path, mark, start):
    items = f'item_id{mark}title\na{mark}"x, y{mark} z"\nb{mark}y\n'
    events = EVENTS.replace(",", mark)
    start = start.format(mark)
    assert titles_of(tmp_path, start + items, start + events) == [f"x, y{mark} z", "y"]
    assert any("stands between its fields" in note for note in read(tmp_path).notes)


@pytest.mark.parametrize("mark", ["\u0663", "x", '"', "", ";;"])
def test_a_hint_that_is_none_is_a_header(tmp_path, mark):
    write_csv_shop(tmp_path, f"sep={mark}\r\nitem_id,title\na,x\n", EVENTS)
    assert "items.csv" in error_of(tmp_path)


def test_a_tab_may_be_named_as_a_shell_passes_it(tmp_path):
    write_csv_shop(tmp_path, "item_id\ttitle\na\tx, y\n", EVENTS.replace(",", "\t"))
    assert read(tmp_path, delimiter="\\t").items["title"].to_pylist() == ["x, y"]


def test_lines_are_numbered_after_a_separator_hint(tmp_path):
    write_csv_shop(tmp_path, "sep=;\nitem_id;title\na;x\na;y\n", EVENTS)
    assert "items.csv, line 4: item_id 'a' is given a second" in error_of(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, encoding):
    text = "item_id,title\na,Crème\n"
    if encoding in ("utf-16-be", "utf-8"):
        text = "\ufeff" + text
    assert titles_of(tmp_path, text.encode(encoding)) == ["Crème"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_utf_16_is_known_without_a_mark(tmp_path, encoding, suffix):
    text = {
        "csv": "item_id,title\na,Crème\n",
        "jsonl": '{"item_id":"a","title":"Crème"}',
    }
    write(tmp_path / f"items.{suffix}", text[suffix].encode(encoding))
    write(tmp_path / "interactions.csv", EVENTS)
    assert read(tmp_path).items["title"].to_pylist() == ["Crème"]


@pytest.mark.parametrize("mark", [";", "\t", "|", "~", "^", "\x01"])
def test_a_comma_in_a_columns_name_is_no_delimiter(tmp_path, mark):
    items = "item_id;price, EUR;title\na;1;x\n".replace(";", mark)
    assert titles_of(tmp_path, items) == ["x"]
    assert titles_of(tmp_path, "item_id,title\na,x;y|z\n") == ["x;y|z"]


def test_rows_of_empty_fields_are_left_out_and_said(tmp_path):
    items = "item_id,title,,\n,,,\na,x,,\nb,y,,\n,,,\n,,,,,\n,\n"
    events = ",,\n" + EVENTS + ",,\nu,b,2\n,,\n"
    assert titles_of(tmp_path, items, events) == ["x", "y"]
    shop = read(tmp_path)
    assert shop.interactions["timestamp"].to_pylist() == [1, 2]
    assert "interactions.csv: 2 rows of empty fields are left out" in shop.notes
    write(tmp_path / "interactions.csv", EVENTS + ",,\n,a,2\n")
    assert "interactions.csv, line 4: no 'user_id' is given" in error_of(tmp_path)
    # What is in other columns is content.
    write(tmp_path / "interactions.csv", "n,user_id,item_id\n1,u,a\n2,,\n")
    assert "interactions.csv, line 3: no 'user_id' is given" in error_of(tmp_path)


def test_what_a_system_leaves_beside_a_file_is_no_file(tmp_path):
    write(tmp_path / "._items.csv", b"\0\5\x16\7")
    write(tmp_path / "._films.item", b"\0\5\x16\7")
    assert titles_of(tmp_path, "item_id,title\na,x\n") == ["x"]


def test_names_of_files_may_have_capitals(tmp_path):
    write(tmp_path / "Items.CSV", ITEMS_CSV)
    write(tmp_path / "INTERACTIONS.ndjson", '{"user_id":1,"item_id":"a"}\n')
    assert read(tmp_path).interactions["item_id"].to_pylist() == ["a"]


def test_columns_without_a_name_are_left_out_and_said(tmp_path):
    items = ",item_id,title,,\n0,a,x,,\n1,b,y,,\n"
    assert titles_of(tmp_path, items, "user_id,item_id,,\nu,a,,\n") == ["x", "y"]
    assert "items.csv: 3 of its columns are without a name and left out" in (
        read(tmp_path).notes
    )


def test_empty_fields_beyond_the_header_are_no_error(tmp_path):
    assert titles_of(tmp_path, 'item_id,title\na,x,,\nb,"y\nz",\n') == ["x", "y\nz"]
    write(tmp_path / "items.csv", "item_id,title\na,x,,\nb,y,,z\n")
    assert "items.csv, line 3: 4 fields where the header has 2" in error_of(tmp_path)


BACKSLASHED = (
    (r'"Pipe 5\" wide, white"', 'Pipe 5" wide, white'),
    (r'"Pipe 5\" wide \"x\" y"', 'Pipe 5" wide "x" y'),
    (r'"Pipe 5\""', 'Pipe 5"'),
    (r'"C:\\dir \" N \N"', r'C:\dir " N \N'),
    ('"two\nlines \\" of text"', 'two\nlines " of text'),
)


@pytest.mark.parametrize(("written", "expected"), BACKSLASHED)
def test_backslashed_quotes_are_quotes(tmp_path, written, expected):
    items = f'item_id,title,brand\na,{written},"\\N"\nb,"plain",x\n'
    assert titles_of(tmp_path, items) == [expected, "plain"]
    assert read(tmp_path).items["brand"].to_pylist() == ["", "x"]
    assert 'items.csv: \\" is read as a double quote within a text' in (
        read(tmp_path).notes
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('"C:\\"', "C:\\"),
        ('"say ""hi"" 5\\"""', 'say "hi" 5\\"'),
        ('"{""a"": ""x\\""y""}"', '{"a": "x\\"y"}'),
        ('5\\" pipe', '5\\" pipe'),
    ],
)
def test_backslashes_of_ordinary_csv_stay(tmp_path, written, expected):
    """Where the file is whole by the standard, and has quotes that are doubled."""
    assert titles_of(tmp_path, f"item_id,title\na,{written}\nb,y\n")[0] == expected


@pytest.mark.parametrize(
    ("items", "advice"),
    [
        (
            "item_id::title\na::x\n",
            "if ':' stands between its columns, say so with --gin.files.FilesConfig.de",
        ),
        ("Export of May\n\nitem_id,title\na,x\n", "line 3: .* delete the lines before"),
        ("'item_id','title'\n'a','x'\n", "line 1: fields stand in single quotes"),
    ],
)
def test_other_dialects_say_what_to_do(tmp_path, items, advice):
    write_csv_shop(tmp_path, items, EVENTS)
    assert re.search(advice, error_of(tmp_path))


def test_points_between_thousands_are_told_by_the_other_prices(tmp_path):
    for other, price in (("12,99 €", 1299.0), ("12.99 €", 1.299)):
        items = f"item_id;price\na;1.299 €\nb;{other}\n"
        write_csv_shop(tmp_path, items, EVENTS)
        assert read(tmp_path).items["price"].to_pylist() == [price, 12.99]


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("1.299,00 €", 1299.0),
        ("CHF 1’299.50", 1299.5),
        ("1 299,00", 1299.0),
        ("12,99 kr", 12.99),
        ("EUR 12.99", 12.99),
        ("Rs. 499", 499.0),
        ("$4.99 - $9.99", None),
    ],
)
def test_prices_of_other_countries(tmp_path, text, price):
    write_csv_shop(tmp_path, f"item_id;price\na;{text}\n", EVENTS)
    assert read(tmp_path).items["price"].to_pylist() == [price]


def test_ratings_may_have_decimal_commas(tmp_path):
    events = "user_id;item_id;rating\nu;a;4,5\nu;b;3\n"
    write_csv_shop(tmp_path, ITEMS_CSV, events)
    assert read(tmp_path, min_rating=4.2).interactions["item_id"].to_pylist() == ["a"]


# --- texts


def test_entities_are_characters(tmp_path):
    items = (
        "item_id,title,brand,categories,note\n"
        "a,Nail &amp; Co&#39;s,A&#x26;B,Hair &amp; Skin &gt; Oil,&quot;x&quot;\n"
        'b,AT&T &foo; &copy,Women&amp;#39;s,"[""A &amp; B""]",\n'
    )
    items = read(write_csv_shop(tmp_path, items, EVENTS)).items.to_pylist()
    assert items[0] == {
        "item_id": "a",
        "title": "Nail & Co's",
        "brand": "A&B",
        "price": None,
        "categories": [["Hair & Skin", "Oil"]],
        "note": '"x"',
    }
    assert items[1]["title"] == "AT&T &foo; &copy"
    assert items[1]["brand"] == "Women's"
    assert items[1]["categories"] == [["A & B"]]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_missing_values_are_the_same_everywhere(tmp_path, kind):
    rows = [
        {"item_id": "a", "title": "NaN", "price": "null", "categories": "NaN"},
        {"item_id": "b", "title": None, "price": None, "categories": None},
        {"item_id": "c", "title": "n/a", "price": "(null)", "categories": ""},
        {"item_id": "d", "title": "NA", "price": "2", "categories": "A > nan"},
    ]
    write(tmp_path / "interactions.csv", EVENTS)
    if kind == "jsonl":
        rows[0]["title"] = float("nan")
        write(tmp_path / "items.jsonl", json_lines(rows))
    elif kind == "parquet":
        table = pa.Table.from_pylist(rows)
        pa.parquet.write_table(table, tmp_path / "items.parquet")
    else:
        cells = (",".join(v or "" for v in row.values()) for row in rows)
        text = "\n".join([",".join(rows[0]), *cells])
        write(tmp_path / "items.csv", text)
    shop = read(tmp_path)
    assert shop.notes == ()
    assert shop.items.to_pylist() == [
        {"item_id": i, "title": "", "brand": "", "price": None, "categories": []}
        for i in "abc"
    ] + [
        {
            "item_id": "d",
            "title": "NA",
            "brand": "",
            "price": 2.0,
            "categories": [["A"]],
        }
    ]


# --- times


@pytest.mark.parametrize(
    ("first", "second", "seconds"),
    [
        ("2019-10-01 00:00:00 UTC", "2019-10-01 00:01:00 UTC", 60),
        ("2014-07-01T00:00:00.123456789Z", "2014-07-01T00:00:00.1234567Z", 0),
        ("2014/07/01", "2014/7/2", 86_400),
        ("1400000000,5", "1400000001", 0.5),
        ("2014/07/01 9:05", "2014/07/01 09:05:30", 30),
        ("01.07.2014", "2.7.2014 00:00", 86_400),
        ("01/07/2014", "31/07/2014", 30 * 86_400),
        ("7/1/2014", "7/31/2014", 30 * 86_400),
        ("2014-07-01 00:00:00 +0000", "2014-07-01 00:00:00 +01:00", -3600),
        ("2014-07-01 00:00:00,500", "2014-07-01 00:00:01", 0.5),
        ("Sun Jul 30 07:44:10 -0700 2017", "Mon Jul 31 07:44:10 +0000 2017", 61_200),
        ("1 May 2014", "30 May 2014", 29 * 86_400),
        ("01-Jan-1995", "02-Jan-1995", 86_400),
        ("May 1, 2014", "May 2, 2014", 86_400),
        ("11/15/2023 1:05 PM", "11/15/2023 12:00 AM", -13.0833333333 * 3600),
        ("11/15/2023, 1:05:00 PM", "11/15/2023, 1:05:07 PM", 7),
        ("24/07/2014, 12:30", "25/07/2014, 12:30", 86_400),
        ("2014-07-01 11:30 AM", "2014-07-01 12:30 PM", 3600),
        ("2014-07-01T12:30:00Z[UTC]", "2014-07-01T12:30:01Z[UTC]", 1),
        ("2014-07-01T12:30:00.5+0000", "2014-07-01T12:30:00-0100", 3599.5),
        ("Tue, 01 Jul 2014 12:30:00 +0000", "Wed, 02 Jul 2014 12:30:00 +0100", 82_800),
        ("09 13, 2009", "09 14, 2009", 86_400),
    ],
)
def test_times_of_other_programs(tmp_path, first, second, seconds):
    found = times_of(tmp_path, first, second)
    assert found[1] - found[0] == pytest.approx(seconds)


def test_days_and_months_are_not_guessed(tmp_path):
    with pytest.raises(InputError, match="line 2: .*time_format"):
        times_of(tmp_path, "01/02/2014", "03/04/2014")
    for times in (
        ("13/02/2014", "03/14/2014"),
        ("1/2/2014 1:05 PM", "3/4/2014 1:05 AM"),
    ):
        with pytest.raises(InputError, match="is no time"):
            times_of(tmp_path, *times)
    with pytest.raises(InputError, match="line 2: .*'15 Nov 2023', which is no time"):
        times_of(tmp_path, "15 Nov 2023", "Nov 16, 2023")
    found = times_of(tmp_path, "01/02/2014", "01/03/2014", time_format="%d/%m/%Y")
    assert found[1] - found[0] == 28 * 86_400
    with pytest.raises(InputError, match="line 3: 'timestamp' is '5', which isn't"):
        times_of(tmp_path, "01/02/2014", "5", time_format="%d/%m/%Y")


def test_times_that_tell_no_order_are_warned_of(tmp_path):
    times_of(tmp_path, "2024-01-01", "2024-01-01")
    assert "all times are the same: each user's" in read(tmp_path).notes[-1]


@pytest.mark.parametrize("nobody", ["NULL", "\\N", "NaN", "None"])
def test_a_user_who_may_be_none_is_warned_of(tmp_path, nobody):
    """All rows without a user would be one user's."""
    write_csv_shop(tmp_path, ITEMS_CSV, EVENTS + f"{nobody},a,2\n{nobody},b,3\n")
    note = read(tmp_path).notes[0]
    assert note.startswith("WARNING: ")
    assert f"line 3: the user is {nobody!r}, as of 2 of 3 interactions" in note


@pytest.mark.parametrize("odd", ["1700000001000", "0", "-1"])
def test_times_in_other_units_are_warned_of(tmp_path, odd):
    times_of(tmp_path, "1700000000", odd, "1700000002")
    note = read(tmp_path).notes[-1]
    assert note.startswith(
        "WARNING: interactions.csv: 1 of 3 times are in another unit"
    )
    assert f"({odd} beside 1700000000)" in note
    for same in (("3", "1", "2"), ("1700000000", "1588687728"), ("2e12", "1e12")):
        times_of(tmp_path, *same)
        assert not any("unit" in note for note in read(tmp_path).notes)


@pytest.mark.parametrize("time", ["", "NaN", "null", "0000-00-00 00:00:00"])
def test_rows_without_a_time_can_be_dropped(tmp_path, time):
    with pytest.raises(InputError, match="line 3: no 'timestamp' is given"):
        times_of(tmp_path, "5", time)
    assert times_of(tmp_path, "5", time, "7", missing_times="drop") == [5.0, 7.0]
    assert read(tmp_path, missing_times="drop").notes == (
        "interactions.csv: 1 of 3 interactions have no time and are left out",
    )


# --- identifiers


@pytest.mark.parametrize(
    ("known", "named", "cause"),
    [
        ("0000000028", "28", "leading zeros"),
        ("128", "128.0", "decimals"),
        ("i28", "i28 ", "spaces"),
        ("café-1", "cafe\u0301-1", "Unicode"),
        ("i28", "\u200bi28", "aren't seen"),
        ("Ab", "ab", "capitals"),
        ("28", '"""28"""', "quotes"),
        ("ab-12", "ab_12", "signs"),
        ("007 ", "7.0", "several ways"),
    ],
)
@pytest.mark.parametrize("unknown_items", ["error", "drop"])
def test_ids_that_never_match_show_why(tmp_path, known, named, cause, unknown_items):
    events = f"user_id,item_id,timestamp\nu,{named},1\n"
    write_csv_shop(tmp_path, f"item_id,title\n{known},x\nzz,y\n", events)
    message = error_of(tmp_path, unknown_items=unknown_items)
    named = named.replace('"""', '"')
    show = repr if named.isascii() else ascii
    assert f"{show(named)} is not in" in message
    assert show(known) in message
    assert cause in message
    assert "unknown_items" not in message


@pytest.mark.parametrize("kind", [pa.float64(), pa.decimal128(19, 0), pa.int32()])
def test_whole_numbers_are_ids_however_they_are_stored(tmp_path, kind):
    ids = pa.array([1, 28], pa.int64()).cast(kind)
    pa.parquet.write_table(pa.table({"item_id": ids}), tmp_path / "items.parquet")
    events = '{"user_id": 0.0, "item_id": 28.0, "timestamp": 1}\n'
    write(tmp_path / "interactions.jsonl", events)
    shop = read(tmp_path)
    assert shop.items["item_id"].to_pylist() == ["1", "28"]
    assert shop.interactions["item_id"].to_pylist() == ["28"]
    assert shop.interactions["user_id"].to_pylist() == ["0"]


# --- gzip and parts


def test_gzipped_files_are_read_as_they_are(tmp_path):
    events = json_lines(
        [{"user_id": "u", "item_id": i, "timestamp": 1} for i in ("a", "zz")]
    )
    write(tmp_path / "items.csv.gz", gzip.compress(ITEMS_CSV.encode()))
    write(tmp_path / "interactions.jsonl.gz", gzip.compress(events.encode()))
    shop = read(tmp_path, unknown_items="drop")
    assert shop.items["title"].to_pylist() == ["Red polish, shiny", "Blue polish", ""]
    assert shop.interactions["item_id"].to_pylist() == ["a"]
    assert "interactions.jsonl.gz, line 2: item 'zz' is not in" in error_of(tmp_path)


@pytest.mark.parametrize("name", ["items.csv.gz", "items.jsonl.gz"])
def test_damaged_and_endless_gzip_is_refused(tmp_path, name):
    write(tmp_path / "interactions.csv", INTERACTIONS_CSV)
    whole = gzip.compress(ITEMS_CSV.encode())
    for content, message in [
        (whole[:-9], "in the middle"),
        (b"<html>Not found</html>", "is no(t a whole gzip| Parquet) file"),
        (whole[:30] + b"\x00" * 30, "gzip"),
        (
            gzip.compress(b'{"item_id": "%s"}\n' % (b"x" * 2000) * 9000),
            "more than 200 times",
        ),
    ]:
        write(tmp_path / name, content)
        with pytest.raises(InputError, match=message):
            read(tmp_path)


def test_parquet_parts_may_lie_in_folders_of_a_partition(tmp_path):
    write(tmp_path / "items.csv", ITEMS_CSV)
    for place, item in enumerate("ab"):
        part = tmp_path / "interactions" / f"day={place}" / "x" / "part.parquet"
        part.parent.mkdir(parents=True)
        pa.parquet.write_table(pa.table({"user_id": ["u"], "item_id": [item]}), part)
    shop = find_source(tmp_path)
    assert "interactions/day=1/x/part.parquet" in shop.external
    assert shop.read().interactions["item_id"].to_pylist() == ["a", "b"]


def test_a_delta_table_is_refused(tmp_path):
    write_csv_shop(tmp_path, ITEMS_CSV, EVENTS)
    (tmp_path / "items.csv").unlink()
    (tmp_path / "items" / "_delta_log").mkdir(parents=True)
    pa.parquet.write_table(pa.table({"item_id": ["a"]}), tmp_path / "items/a.parquet")
    assert "items is a Delta table" in error_of(tmp_path)


def test_a_folder_in_a_file_s_place_is_told_of(tmp_path):
    write_csv_shop(tmp_path, ITEMS_CSV, EVENTS)
    (tmp_path / "items.csv").rename(tmp_path / "part-00000.csv")
    (tmp_path / "items.csv").mkdir()
    assert "(items.csv is a folder without .parquet files: " in error_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("items.csv", b"PK\x03\x04\x14\x00", "is an Excel workbook or a zip archive"),
        ("items.xlsx", b"PK\x03\x04\x14\x00", "which isn't read: save it as CSV"),
        ("items.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "save it as CSV"),
        ("items.json", b'[{"item_id": "a"}]', "orient='records', lines=True"),
    ],
)
def test_what_is_no_table_says_how_to_make_one(tmp_path, name, content, advice):
    write(tmp_path / "interactions.csv", EVENTS)
    write(tmp_path / name, content)
    assert advice in error_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("items.txt", "item_id\ttitle\na\tx\n".encode("utf-16")),  # "Unicode text"
        ("items.json", b'{"item_id": "a", "title": "x"}\n'),
    ],
)
def test_tables_under_other_endings_are_read(tmp_path, name, content):
    write(tmp_path / "interactions.csv", EVENTS)
    write(tmp_path / name, content)
    assert read(tmp_path).items["title"].to_pylist() == ["x"]
    write(tmp_path / "items.csv", "item_id,title\na,y\n")  # goes before
    assert read(tmp_path).items["title"].to_pylist() == ["y"]


def test_a_folder_of_parquet_parts_is_one_table(tmp_path):
    for place, ids in enumerate((["a", "b"], ["c", "a"])):
        path = write(tmp_path / "items.parquet" / f"part-{place}.snappy.parquet", "")
        pa.parquet.write_table(pa.table({"item_id": ids, "title": ids}), path)
    write(tmp_path / "items.parquet" / "_SUCCESS", "")
    write(tmp_path / "interactions.csv", INTERACTIONS_CSV)
    assert "part-1.snappy.parquet, row 2: item_id 'a'" in error_of(tmp_path)
    pa.parquet.write_table(pa.table({"item_id": ["c"]}), path)
    assert read(tmp_path).items["title"].to_pylist() == ["a", "b", ""]
    assert len(find_source(tmp_path).external) == 3
