"""Texts numbered in pieces are numbered as in one hash table."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiger_jax.data import text_numbers
from tiger_jax.data.text_numbers import number_texts

# Long and short, some ending alike, some empty, some not ASCII.
TEXTS = st.one_of(
    st.text("ab\0é", max_size=3),
    st.sampled_from(["", "item-0000001", "item-1000001", "0000001", "日本語の品物"]),
)


def in_chunks(rows, cuts):
    ends = sorted({0, len(rows), *(cut % (len(rows) + 1) for cut in cuts)})
    chunks = [rows[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    # A slice of a longer array: its offsets don't begin at zero.
    arrays = [pa.array(["before", *chunk], pa.string()).slice(1) for chunk in chunks]
    return pa.chunked_array(arrays, pa.string())


@pytest.fixture(scope="module")
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_numbers, "_PIECE_ROWS", 3)
        yield


@given(rows=st.lists(TEXTS, max_size=60), cuts=st.lists(st.integers(0, 60), max_size=3))
def test_pieces_number_texts_as_one_table_does(small_pieces, rows, cuts):
    texts = in_chunks(rows, cuts)
    numbers, distinct = number_texts(texts)
    assert distinct.to_pylist() == list(dict.fromkeys(rows))
    assert [distinct[n].as_py() for n in numbers] == rows
    assert numbers.dtype == np.int64
    assert distinct.type == texts.type
