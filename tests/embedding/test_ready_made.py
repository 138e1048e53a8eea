"""Ready-made embeddings: what is taken, and what each bad file is told."""

import numpy as np
import pytest

from tiger_jax.embedding.ready_made import load_ready_made
from tiger_jax.errors import InputError

ROWS = np.array([3, 0, 5, 2])  # four of six items were kept, in a new order


@pytest.fixture
def array():
    return np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def save(tmp_path, array, **options):
    path = tmp_path / "vectors.npy"
    np.save(path, array, **options)
    return path


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_rows_come_in_item_number_order_as_float32(tmp_path, array, dtype):
    vectors = load_ready_made(save(tmp_path, array.astype(dtype)), 6, ROWS)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, array.astype(dtype)[ROWS])


def test_fortran_order_makes_no_difference(tmp_path, array):
    vectors = load_ready_made(save(tmp_path, np.asfortranarray(array)), 6, ROWS)
    np.testing.assert_array_equal(vectors, array[ROWS])


def with_value(array, row, column, value):
    array = array.copy()
    array[row, column] = value
    return array


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[:5], r"shape \(5, 4\).*has 6 rows"),
        (lambda a: a[:4], r"shape \(4, 4\).*not only for the 4 items left"),
        (lambda a: a.T, r"shape \(4, 6\).*transposed"),
        (lambda a: a[:, 0], r"shape \(6,\)"),
        (lambda a: a[:, :0], r"shape \(6, 0\)"),
        (lambda a: a[None], r"shape \(1, 6, 4\)"),
        (lambda a: a.astype(int), "int64 values: save embeddings as float32"),
        (lambda a: a.astype(complex), "complex128 values"),
        (lambda a: a.astype(str), "<U32 values"),
        (lambda a: with_value(a, 4, 1, np.nan), r"row 4, column 1 .*: nan is no"),
        (lambda a: with_value(a, 1, 0, -np.inf), r"row 1, column 0 .*: -inf is no"),
        (
            lambda a: with_value(a.astype(float), 1, 0, 1e300),
            r"row 1, column 0 .*: 1e\+300 is no finite float32",
        ),
        (lambda a: with_value(a, 2, slice(None), 0), "row 2 .*all zeros"),
        (lambda a: np.ones_like(a), "all 6 rows are equal"),
    ],
)
def test_unusable_values_are_named(tmp_path, array, change, message):
    with pytest.raises(InputError, match=rf"vectors\.npy.*{message}"):
        load_ready_made(save(tmp_path, change(array)), 6, ROWS)


def test_rows_are_named_beyond_the_first_part(tmp_path, array, monkeypatch):
    monkeypatch.setattr("tiger_jax.embedding.ready_made._ROWS_AT_ONCE", 2)
    with pytest.raises(InputError, match="row 5, column 3"):
        load_ready_made(save(tmp_path, with_value(array, 5, 3, np.nan)), 6, ROWS)


def test_pickled_arrays_are_never_loaded(tmp_path):
    objects = np.array([[{"a": 1}]] * 6, dtype=object)
    path = save(tmp_path, objects, allow_pickle=True)
    with pytest.raises(InputError, match="pickled Python objects"):
        load_ready_made(path, 6, ROWS)


def test_other_files_are_told_what_they_are_not(tmp_path, array):
    path = tmp_path / "vectors.npy"
    for content in (b"", b"1.0,2.0\n", b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"is not a \.npy file"):
            load_ready_made(path, 6, ROWS)
    np.savez(tmp_path / "vectors.npz", array)
    with pytest.raises(InputError, match=r"is a \.npz archive"):
        load_ready_made(tmp_path / "vectors.npz", 6, ROWS)
    with pytest.raises(InputError, match="can't be read"):
        load_ready_made(tmp_path / "absent.npy", 6, ROWS)
    with pytest.raises(InputError, match="can't be read"):
        load_ready_made(tmp_path, 6, ROWS)


def test_a_cut_or_lying_file_is_refused_before_allocation(tmp_path, array):
    """A cut or lying file is refused before its memory is taken."""
    path = save(tmp_path, array)
    whole = path.read_bytes()
    for size in (7, 20, 90, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="damaged or cut short"):
            load_ready_made(path, 6, ROWS)
    path.write_bytes(whole.replace(b"(6, 4), }", b"(6, 4000000000), }"))
    with pytest.raises(InputError, match="damaged or cut short"):
        load_ready_made(path, 6, ROWS)
