import io
from pathlib import Path

import numpy as np
import pytest

from tiger_jax.errors import storage_problem
from tiger_jax.workdir.arrays import load_array, load_arrays, save_array


def npy(array, **options) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, **options)
    return sink.getvalue()


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), ()])
def test_an_array_comes_back(tmp_path, shape):
    (tmp_path / "a.npy").write_bytes(npy(np.ones(shape, np.float32)))
    for is_mapped in (False, True):
        found = load_array(tmp_path / "a.npy", is_mapped=is_mapped)
        np.testing.assert_array_equal(found, np.ones(shape, np.float32))
    assert not isinstance(load_array(tmp_path / "a.npy"), np.memmap)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        npy(np.ones((3, 4)))[:-1],
        npy(np.ones((3, 4))).replace(b"(3, 4)", b"(3,(4)"),  # NumPy: a TokenError
        npy(np.ones((3, 4))).replace(b"(3, 4), }   ", b"(10**9, 4), }"),
        npy(np.ones((3, 4))).replace(b"(3, 4), }    ", b"(999999, 4), }"),
        npy(np.array([{}], object), allow_pickle=True),
    ],
)
def test_whatever_is_wrong_with_a_file_is_a_value_error(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match="no whole array"):
        load_array(tmp_path / "a.npy")


def test_an_archive_is_no_array(tmp_path):
    np.savez(tmp_path / "a.npz", np.ones(3))
    with pytest.raises(ValueError, match="archive"):
        load_array(tmp_path / "a.npz")


def test_an_array_s_name_stays_in_its_folder(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "inner").mkdir()
    for name in ("../a", str(tmp_path / "a")):
        with pytest.raises(ValueError, match="no array's name"):
            load_arrays(tmp_path / "inner", [name])


@pytest.mark.parametrize(
    "array", [np.ones((3, 4), np.float32), np.ones((4, 3)).T, np.array(3), np.zeros(0)]
)
def test_an_array_is_written_as_numpy_writes_it(array, tmp_path):
    save_array(tmp_path / "a.npy", array, sync=True)
    assert (tmp_path / "a.npy").read_bytes() == npy(array)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it takes a full device")
def test_a_full_disk_is_called_so():
    with pytest.raises(OSError, match="No space") as caught:
        save_array(Path("/dev/full"), np.ones((1000, 100)))
    assert storage_problem(caught.value) == "No space left on device"
