"""Files of histories."""

import pytest

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


@pytest.mark.parametrize("name", ["h.csv", "h.tsv"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_delimiter_of_a_table_is_found(tmp_path, name, mark):
    text = f"\ufeffuser_id{mark}item_id\nu{mark}a\nv{mark}b\nu{mark}c\n"
    assert read(tmp_path, name, text) == [("u", ["a", "c"]), ("v", ["b"])]


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '["a", 2.0]', '["a"', '[["a"]]', '["\\ud800"]', "9" * 5000]
)
def test_what_is_no_history_names_its_line(tmp_path, line):
    with pytest.raises(InputError, match="line 2: "):
        read(tmp_path, "h.jsonl", f'["a"]\n{line}\n')
