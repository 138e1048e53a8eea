"""Texts in chunks are numbered as a dictionary of Python's would."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

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


@given(rows=st.lists(TEXTS, max_size=60), cuts=st.lists(st.integers(0, 60), max_size=3))
def test_texts_are_numbered_by_first_appearance(rows, cuts):
    texts = in_chunks(rows, cuts)
    numbers, distinct = number_texts(texts)
    assert distinct.to_pylist() == list(dict.fromkeys(rows))
    assert [distinct[n].as_py() for n in numbers] == rows
    assert numbers.dtype == np.int64
    assert distinct.type == texts.type
