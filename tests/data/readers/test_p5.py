"""The folders that P5, S3-Rec and GRID share."""

import gzip
import json

import pytest
from shops import write

from tiger_jax.data.readers.raw_source import find_source
from tiger_jax.errors import InputError

MAPS = {
    "user2id": {"A1": "1", "A2": "2"},
    "id2user": {"1": "A1", "2": "A2"},
    "item2id": {"B3": "1", "B1": "2", "B2": "3"},
    "id2item": {"1": "B3", "2": "B1", "3": "B2"},
}
META = (
    "{'asin': 'B9', 'title': 'Of another'}\n"
    "{'asin': 'B1', 'title': 'Nail &amp; Co', 'price': 4.99, 'categories': [['A']]}\n"
    '{"asin": "B2", "title": "Soap", "brand": null}\n'
)


def write_p5(folder, sequences="1 2 1 3\n2 3 3\n", maps=MAPS):
    write(folder / "sequential_data.txt", sequences)
    write(folder / "datamaps.json", json.dumps(maps))
    write(folder / "meta.json.gz", gzip.compress(META.encode()))
    write(folder / "rating_splits_augmented.pkl", b"\x80\x04")  # others lie beside
    return folder


def test_sequences_become_histories_in_their_order(tmp_path):
    source = find_source(write_p5(tmp_path))
    assert source.kind == "p5"
    shop = source.read()
    assert shop.items["item_id"].to_pylist() == ["B3", "B1", "B2"]
    assert shop.items["title"].to_pylist() == ["", "Nail & Co", "Soap"]
    assert [tuple(row.values()) for row in shop.interactions.to_pylist()] == [
        ("A1", "B1", 0.0),
        ("A1", "B3", 1.0),
        ("A1", "B2", 2.0),
        ("A2", "B2", 0.0),
        ("A2", "B2", 1.0),
    ]
    assert shop.notes == (
        "of 3 items, 1 have no metadata; in all, 1 no title, 3 no brand, 2 no price, 2 "
        "no categories",
    )


@pytest.mark.parametrize(
    ("sequences", "maps", "message"),
    [
        ("1 2\n2 9\n", MAPS, "line 2: item '9' is not in datamaps.json"),
        ("7 2\n", MAPS, "line 1: user '7' is not in datamaps.json"),
        ("1 2\n1 3\n", MAPS, "line 2: user '1' comes twice"),
        ("\n1\n", MAPS, "holds no sequences"),
        ("1 2\n", [], "has no map 'id2user'"),
        ("1 2\n", MAPS | {"id2item": {"1": None}}, "id2item has 'None' for"),
        ("1 2\n", MAPS | {"id2item": {"1": "B", "2": "B"}}, "two numbers of id2item"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, sequences, maps, message):
    with pytest.raises(InputError, match=message):
        find_source(write_p5(tmp_path, sequences, maps)).read()


def test_numbers_may_name_items_and_a_mark_may_stand_first(tmp_path):
    maps = MAPS | {"id2item": {"1": 13, "2": 11, "3": 12}}
    shop = find_source(write_p5(tmp_path, "\ufeff1 2 1\r\n", maps)).read()
    assert shop.items["item_id"].to_pylist() == ["13", "11", "12"]
    assert shop.interactions["item_id"].to_pylist() == ["11", "13"]


def test_maps_must_be_json(tmp_path):
    write_p5(tmp_path)
    write(tmp_path / "datamaps.json", "{'user2id'")
    with pytest.raises(InputError, match="datamaps.json is not valid JSON"):
        find_source(tmp_path).read()
