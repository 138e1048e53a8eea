"""Lists that stand as text in a field."""

import ast
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shops import write

from tiger_jax.data.readers.files import FilesConfig
from tiger_jax.data.readers.list_texts import is_list, parse_list
from tiger_jax.data.readers.recbole import RecboleConfig
from tiger_jax.errors import InputError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("['Beauty' 'Hair3' 'Care']", ["Beauty", "Hair3", "Care"]),
        ("['Beauty' 'Hair0'\n 'Care']", ["Beauty", "Hair0", "Care"]),
        ("['Beauty', 'Hair']", ["Beauty", "Hair"]),
        ('["Men\'s", "Hair \\u00e9"]', ["Men's", "Hair é"]),
        ("[\"Men's\" 'Hair']", ["Men's", "Hair"]),
        ("['Men\\'s', 'a\\\\b']", ["Men's", "a\\b"]),
        ("[27, 9]", ["27", "9"]),
        ("[27  9]", ["27", "9"]),
        ("(27, 9)", ["27", "9"]),
        ("['A', None, 'B', nan]", ["A", "B"]),
        ('["A", null]', ["A"]),
        ("['None']", ["None"]),
        ("('Beauty', 'Hair')", ["Beauty", "Hair"]),
        ("('Beauty',)", ["Beauty"]),
        ("(('A', 'B'), ('C',))", [["A", "B"], ["C"]]),
        ("[['A' 'B']\n ['C' 'D']]", [["A", "B"], ["C", "D"]]),
        ("array(['A', 'B'], dtype=object)", ["A", "B"]),
        ("array(['A', 'B'], dtype='<U1')", ["A", "B"]),
        ("{'A', 'B'}", ["A", "B"]),
        ('{Beauty,"Hair Care"}', ["Beauty", "Hair Care"]),
        ("[Beauty, Hair Care]", ["Beauty", "Hair Care"]),
        ("[Beauty]", ["Beauty"]),
        ("[]", []),
        ("()", []),
        ("{}", []),
        ("set()", []),
        ("WrappedArray(Beauty, Hair Care)", ["Beauty", "Hair Care"]),
        ("frozenset({'A', 'B'})", ["A", "B"]),
        ("Index(['A', 'B'], dtype='object', name='x')", ["A", "B"]),
        ("tensor([1, 2], device='cuda:0')", ["1", "2"]),
        ("[np.str_('A, b'), np.str_('B')]", ["A, b", "B"]),
        ("[np.int64(27), np.int64(9)]", ["27", "9"]),
        ("[&quot;A&quot;, &quot;B &amp; C&quot;]", ["A", "B &amp; C"]),
        ("[“A”, “B, c”]", ["A", "B, c"]),
        ("  ['A']  ", ["A"]),
    ],
)
def test_lists_are_read_as_they_were_meant(text, names):
    assert is_list(text)
    assert parse_list(text) == names


@pytest.mark.parametrize(
    "text",
    [
        "[Beauty Hair Care]",
        "['A' B]",
        "['A' ... 'B']",
        "['A', 'B'",
        "['A']]",
        "['A')",
        "{'a': 1}",
        "[{'a': 1}]",
        '{"a": 1}',
        "['A'",
        "['A', \"B]",
        "[f(1)]",
        "[['A'], ['B']",
        "<StringArray>\n['A', 'B']\nLength: 2, dtype: string",
        "[np.str_('A (b)')]",
    ],
)
def test_what_is_no_clear_list_is_refused(text):
    assert is_list(text)
    with pytest.raises((ValueError, TypeError)):
        parse_list(text)


@pytest.mark.parametrize(
    "text", ["Beauty", "(A) > (B)", "Toys (3+)", "Toys(3+)", "a [b]", "", "["]
)
def test_names_with_brackets_are_no_lists(text):
    assert not is_list(text)


NAMES = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=1)


@given(NAMES)
def test_what_python_numpy_and_json_write_is_read_back(names):
    assert parse_list(repr(names)) == names
    assert parse_list(json.dumps(names)) == names
    assert parse_list(repr(tuple(names))) == names
    assert ast.literal_eval(repr(names)) == names
    with np.printoptions(threshold=10**6):
        printed = str(np.array(names, object))
    assert parse_list(printed) == names


@given(st.text("[](){}'\",\\ aN1.:\n", max_size=30))
def test_any_text_is_a_list_or_refused(text):
    try:
        found = parse_list(text)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return
    assert isinstance(found, list)


def test_the_readers_agree_and_name_the_line(tmp_path):
    texts = ["['A' 'B']", "[27, 9]", "('C', 'D')", "Beauty > Hair | Gifts"]
    paths = [[["A", "B"]], [["27", "9"]], [["C", "D"]], [["Beauty", "Hair"], ["Gifts"]]]
    rows = "".join(f'i{n},"{text}"\n' for n, text in enumerate(texts))
    write(tmp_path / "items.csv", f"item_id,categories\n{rows}")
    write(tmp_path / "interactions.csv", "user_id,item_id\nu,i0\n")
    found = FilesConfig().read(tmp_path).items["categories"].to_pylist()
    assert found == paths
    write(tmp_path / "items.csv", f'item_id,categories\n{rows}bad,"[A B]"\n')
    with pytest.raises(InputError, match=r"line 6: 'categories' is '\[A B\]'"):
        FilesConfig().read(tmp_path)


def test_recboles_lists_are_lists_too(tmp_path):
    def read(*texts):
        rows = "".join(f"i{n}\t{text}\n" for n, text in enumerate(texts))
        write(tmp_path / "s.item", f"item_id:token\tgenre:token_seq\n{rows}")
        write(tmp_path / "s.inter", "user_id:token\titem_id:token\nu\ti0\n")
        return RecboleConfig().read(tmp_path).items["categories"].to_pylist()

    assert read("['Beauty', 'Hair 0']") == [[["Beauty", "Hair 0"]]]
    spaces = read("Action, Comedy", "Action Comedy", "Action Comedy")
    assert spaces == [[["Action", "Comedy"]]] * 3
    commas = read("'Beauty', 'Hair Care'", "Skin Care", "Beauty,Nails")
    assert commas == [[["Beauty", "Hair Care"]], [["Skin Care"]], [["Beauty", "Nails"]]]
    with pytest.raises(InputError, match="line 3: 'genre' is"):
        read("['Beauty']", "['Beauty'")
