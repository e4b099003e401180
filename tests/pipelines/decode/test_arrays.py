"""NPY and NPZ: exact values in, and nothing run or allocated that a file asks for."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastseg.pipelines import DataError
from fastseg.pipelines.decode.arrays import read_array

VALUES = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)


def npy(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz(*arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, *arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "array",
    [VALUES, VALUES[..., 0], np.asfortranarray(VALUES), VALUES.astype(">f4"), VALUES.astype("f8")],
    ids=["image", "plane", "fortran", "big-endian", "double"],
)
@pytest.mark.parametrize("pack", [npy, npz])
def test_values_are_exact(array: np.ndarray, pack) -> None:
    read = read_array(pack(array), Path("a.npy"))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, array.reshape(5, 7, -1))


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f2"])
def test_small_types_are_exact(dtype: str) -> None:
    array = np.arange(35).reshape(5, 7).astype(dtype)
    np.testing.assert_array_equal(read_array(npy(array), Path("a.npy"))[..., 0], array)


@pytest.mark.parametrize("keep", [0, 5, 40, 200, -1])
def test_truncated_files_are_named(keep: int) -> None:
    with pytest.raises(DataError, match=r"torn\.npy is damaged.*fetch this file again"):
        read_array(npy(VALUES)[:keep], Path("torn.npy"))
    with pytest.raises(DataError, match=r"torn\.npz is damaged"):
        read_array(npz(VALUES)[:keep], Path("torn.npz"))


class Exploit:
    def __reduce__(self):
        return (Path.touch, (Path("pwned"),))


@pytest.mark.fault("F32")
def test_pickles_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    array = np.empty((1, 1), object)
    array[0, 0] = Exploit()
    for data in (npy(array, allow_pickle=True), pickle.dumps(Exploit())):
        with pytest.raises(DataError, match=r"bad\.npy"):
            read_array(data, Path("bad.npy"))
    assert not Path("pwned").exists()


def test_a_header_cannot_ask_for_memory() -> None:
    data = npy(VALUES).replace(b"(5, 7, 3)", b"(5,99999)")
    assert len(data) == len(npy(VALUES))
    with pytest.raises(DataError, match=r"420 of 1999980 bytes"):
        read_array(data, Path("a.npy"))


def test_a_member_cannot_ask_for_memory() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", npy(VALUES))
    data = bytearray(file.getvalue())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (0x7FFFFFFF).to_bytes(4, "little")  # the size it claims
    with pytest.raises(DataError, match="2147483647 bytes, more than any image"):
        read_array(bytes(data), Path("a.npz"))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4), r"shape \(4,\); expected numbers in \[H, W\]"),
        (np.zeros((2, 2), complex), "type complex128"),
        (np.zeros((0, 4)), r"shape \(0, 4\)"),
        (np.array([[1.0, np.nan], [np.inf, 0.0]]), "2 of 4 values are not finite"),
        (np.full((2, 2), 1e300), "4 of 4 values are not finite"),
    ],
    ids=["vector", "complex", "empty", "nan", "overflow"],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_image_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_array(npy(array), Path("a.npy"))
    assert "a.npy" in str(caught.value)


def test_several_arrays_are_refused() -> None:
    with pytest.raises(DataError, match=r"holds 2 arrays \(arr_0\.npy, arr_1\.npy\)"):
        read_array(npz(VALUES, VALUES), Path("a.npz"))
