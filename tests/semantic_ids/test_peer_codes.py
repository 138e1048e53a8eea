import json

import numpy as np
import pytest

from tiger_jax.errors import InputError
from tiger_jax.semantic_ids.peer_codes import (
    copy_from_nearest,
    load_peer_codes,
    take_peer_codes,
)


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_codes_come_in_item_number_order(tmp_path):
    path = write(tmp_path / "p.json", {"x": [9, 9], "b": [3, 4], "a": [1, 2]})
    peer = load_peer_codes(path, ("a", "c", "b"))
    assert peer.codes.tolist() == [[1, 2], [-1, -1], [3, 4]]
    assert peer.missing.tolist() == [1]
    assert (peer.num_unknown, peer.first_unknown) == (1, "x")
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    assert load_peer_codes(path, ("a", "c", "b")).codes.tolist() == peer.codes.tolist()


@pytest.mark.parametrize(
    "form",
    [
        [1, 2],
        [1.0, 2.0],
        "1 2",
        "1,2",
        "[1, 2]",
        "(1, 2)",
        ["<a_1>", "<b_2>"],
        "<a_1><b_2>",
        "<a_1> <b_2>",
        ["a_1", "b_2"],
        ["1", "2"],
    ],
)
@pytest.mark.parametrize("is_record", [False, True])
def test_the_forms_that_peers_write_are_one(tmp_path, form, is_record):
    value = {"a": form, "b": form}
    if is_record:
        value = [{"item_id": item_id, "sid": form} for item_id in "ab"]
    peer = load_peer_codes(write(tmp_path / "p.json", value), ("a", "b"))
    assert peer.codes.tolist() == [[1, 2], [1, 2]]


def test_codes_that_are_counted_on_from_level_to_level_are_warned_of(tmp_path, capsys):
    path = write(tmp_path / "p.json", {"a": [0, 16], "b": [3, 17]})
    options = {"num_levels": 2, "codebook_sizes": None, "missing_items": "error"}
    take_peer_codes(path, ("a", "b"), list, **options)
    assert "take off each level's first code" in capsys.readouterr().out


def test_ids_without_their_zeros_are_not_taken_for_rows(tmp_path):
    path = write(tmp_path / "p.json", {"1": [3, 4], "2": [1, 2]})
    with pytest.raises(InputError, match="'1'.* look like '001': one lost its leading"):
        load_peer_codes(path, ("001", "002"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"a": [1, 2],\n "b": [3', "line 2, column"),
        ('{"a": [1], "a": [2]}', "'a' occurs twice"),
        ([1, 2], "one JSON object"),
        ({}, "one JSON object"),
        ({"a": [1, 2], "b": [3]}, "'b' has 1 codes, others 2"),
        ({"a": [1, -2]}, "'a' has .* whole numbers"),
        ({"a": [1, 2.5]}, "whole numbers"),
        ({"a": [True]}, "whole numbers"),
        ({"a": [2**40]}, "whole numbers"),
        ({"a": "x 2"}, "whole numbers"),
        ({"a": ["<a_1>", "<b_2>"], "b": ["<b_1>", "<a_2>"]}, "of the levels"),
        ([{"item_id": "a", "codes": [1], "more": 2}], "record 1 must have"),
        ({"0": [1], "1": [2]}, "numbers of rows"),
        ({"a": []}, "whole numbers"),
        ({"q": [1, 2]}, "none of its 1 item ids .*'q'.* look like 'a'"),
    ],
)
def test_what_is_no_code_file_is_refused_in_one_line(tmp_path, value, message):
    path = write(tmp_path / "p.json", value)
    with pytest.raises(InputError, match=message) as caught:
        load_peer_codes(path, ("a", "b"))
    assert "p.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        load_peer_codes(tmp_path / "none.json", ("a",))
    (tmp_path / "b.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="not UTF-8"):
        load_peer_codes(tmp_path / "b.json", ("a",))


def test_items_without_codes_get_the_most_similar_items():
    codes = np.array([[1, 1], [-1, -1], [2, 2], [-1, -1]], np.int32)
    embeddings = np.array([[1, 0], [0.1, 5], [0, 1], [9, 1]], np.float32)
    filled = copy_from_nearest(codes, embeddings)
    assert filled.tolist() == [[1, 1], [2, 2], [2, 2], [1, 1]]
    assert codes[1, 0] == -1  # the argument is left alone
