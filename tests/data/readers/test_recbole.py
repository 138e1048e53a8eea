"""RecBole's atomic files."""

import gzip

import pytest
from shops import write

from tiger_jax.data.readers.raw_source import find_source
from tiger_jax.data.readers.recbole import RecboleConfig
from tiger_jax.errors import InputError

ITEMS = (
    "item_id:token\tmovie_title:token_seq\tclass:token_seq\tprice:float\n"
    'i1\tThe "Big" One\tDrama Comedy\t3.5\n'
    "i2\tOther\t\t\n"
)
INTERACTIONS = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "u1\ti1\t4\t10\nu1\ti2\t2\t5\n"
)


def read(folder, **config):
    source = find_source(folder, configs=[RecboleConfig(**config)])
    assert source.kind == "recbole"
    return source.read()


def write_films(folder, items=ITEMS, interactions=INTERACTIONS):
    write(folder / "films.item", items)
    write(folder / "films.inter", interactions)
    write(folder / "films.user", "user_id:token\nu1\n")
    return folder


def test_typed_headers_are_understood_and_nothing_is_quoted(tmp_path):
    shop = read(write_films(tmp_path))
    assert shop.items.to_pylist() == [
        {
            "item_id": "i1",
            "title": 'The "Big" One',
            "brand": "",
            "price": 3.5,
            "categories": [["Drama", "Comedy"]],
        },
        {
            "item_id": "i2",
            "title": "Other",
            "brand": "",
            "price": None,
            "categories": [],
        },
    ]
    assert shop.interactions.to_pylist() == [
        {"user_id": "u1", "item_id": "i1", "timestamp": 10.0},
        {"user_id": "u1", "item_id": "i2", "timestamp": 5.0},
    ]


def test_commas_separate_categories_where_there_are_any(tmp_path):
    items = (
        "item_id:token\tcategories:token_seq\n"
        "i1\t'Beauty', 'Hair Care', 'Shampoo'\n"
        "i2\tSkin Care\n"
    )
    shop = read(write_films(tmp_path, items))
    assert shop.items["categories"].to_pylist() == [
        [["Beauty", "Hair Care", "Shampoo"]],
        [["Skin Care"]],
    ]


def test_low_ratings_are_left_out_where_asked(tmp_path):
    shop = read(write_films(tmp_path), min_rating=3.0)
    assert shop.interactions["item_id"].to_pylist() == ["i1"]


def test_a_header_without_types_says_how_to_write_it(tmp_path):
    write_films(tmp_path, interactions="user_id\titem_id\nu\ti1\n")
    with pytest.raises(InputError, match="films.inter, line 1: column 'user_id' has"):
        read(tmp_path)


def test_a_missing_column_names_the_option(tmp_path):
    write_films(tmp_path, interactions="who:token\titem_id:token\nu\ti1\n")
    with pytest.raises(InputError, match=r"no column 'user_id' .*recbole.Recbole.*"):
        read(tmp_path)


def test_a_ragged_row_names_its_line(tmp_path):
    write_films(tmp_path, interactions=INTERACTIONS + "u2\ti1\n")
    with pytest.raises(InputError, match="films.inter, line 4: 2 fields where"):
        read(tmp_path)


def test_a_split_is_read_as_one(tmp_path):
    """A data set split by RecBole comes as three files of interactions."""
    write(tmp_path / "films.item", ITEMS)
    header, first, second = INTERACTIONS.splitlines(keepends=True)
    for part, row in [("train", first), ("valid", second), ("test", "u2\ti1\t3\t7\n")]:
        write(tmp_path / f"films.{part}.inter", header + row)
    shop = read(tmp_path)
    assert shop.interactions["user_id"].to_pylist() == ["u1", "u1", "u2"]
    assert shop.interactions["timestamp"].to_pylist() == [10.0, 5.0, 7.0]
    assert "films.train.inter, films.valid.inter, films.test.inter are" in shop.notes[0]
    write(tmp_path / "films.test.inter", header + "u2\tzz\t3\t7\n")
    with pytest.raises(InputError, match="films.test.inter, line 2: item 'zz'"):
        read(tmp_path)


def test_gzipped_files_are_read_as_they_are(tmp_path):
    for name, text in (("films.item.gz", ITEMS), ("films.inter.gz", INTERACTIONS)):
        write(tmp_path / name, gzip.compress(text.encode()))
    assert read(tmp_path).interactions["timestamp"].to_pylist() == [10.0, 5.0]


@pytest.mark.parametrize("second", ["test", "valid"])
def test_a_split_may_have_two_parts(tmp_path, second):
    write(tmp_path / "films.item", ITEMS)
    write(tmp_path / "films.train.inter", INTERACTIONS)
    write(tmp_path / f"films.{second}.inter", INTERACTIONS.replace("u1", "u2"))
    shop = read(tmp_path)
    assert shop.interactions["user_id"].to_pylist() == ["u1", "u1", "u2", "u2"]


def test_columns_go_by_the_names_of_recboles_data_sets(tmp_path):
    """Of Yelp, where `date` is the time."""
    rows = "u1\ti1\t4\t10\nu1\ti2\t2\t5\n"
    header = "user_id:token\tbusiness_id:token\tstars:float\tdate:float\n"
    write_films(tmp_path, interactions=header + rows)
    shop = read(tmp_path, min_rating=3.0)
    assert shop.interactions.to_pylist() == [
        {"user_id": "u1", "item_id": "i1", "timestamp": 10.0}
    ]


def test_content_goes_by_other_names_too(tmp_path):
    """Of Book-Crossing and Steam; what only looks so is told with its flag."""
    items = "item_id:token\tbook_title:token_seq\tbook_author:token\ni1\tSoap\tDove\n"
    row = read(write_films(tmp_path, items, INTERACTIONS.replace("i2", "i1"))).items
    assert [row[c].to_pylist() for c in ("title", "brand")] == [["Soap"], ["Dove"]]
    items = items.replace("book_title", "tittle").replace("book_author", "publisher")
    shop = read(write_films(tmp_path, items, INTERACTIONS.replace("i2", "i1")))
    assert shop.items["brand"].to_pylist() == ["Dove"]
    flag = "--gin.recbole.RecboleConfig.title=\"('tittle',)\""
    assert any(flag in note for note in shop.notes)


def test_rows_without_a_time_are_dropped_as_the_message_says(tmp_path):
    write_films(tmp_path, interactions=INTERACTIONS + "u1\ti2\t3\t\n")
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    assert str(caught.value).endswith("--gin.recbole.RecboleConfig.missing_times=drop")
    assert read(tmp_path, missing_times="drop").interactions.num_rows == 2


def test_histories_cut_by_recbole_are_not_taken_for_single_rows(tmp_path):
    rows = "user_id:token\titem_id_list:token_seq\titem_id:token\nu\ti1\ti2\n"
    write_films(tmp_path, interactions=rows)
    with pytest.raises(InputError, match="films.inter holds histories"):
        read(tmp_path)


def test_advice_fits_the_format(tmp_path):
    write_films(tmp_path, INTERACTIONS.replace("\t", " "))
    with pytest.raises(InputError, match="and tabs between columns"):
        read(tmp_path)
    write_films(tmp_path, items=ITEMS + "i3\tShort\n")
    with pytest.raises(InputError, match=r"line 4: 2 fields .*put '\\t' between all"):
        read(tmp_path)
    latin = ITEMS.replace("Other", "Café").encode("latin-1")
    write_films(tmp_path, items=latin)
    with pytest.raises(InputError, match=r"recbole\.RecboleConfig\.encoding=latin-1"):
        read(tmp_path)
    shop = read(tmp_path, encoding="latin-1")
    assert shop.items["title"].to_pylist()[1] == "Café"
    (tmp_path / "films.item").unlink()
    with pytest.raises(InputError) as caught:
        find_source(tmp_path)
    assert "films.inter but not what belongs to it" in str(caught.value)
    assert "MovieLens" not in str(caught.value)
