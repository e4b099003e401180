"""Files saved by torch, read without torch's unpickler: the tensors, and no code.

Both formats are read: the zip archive (since torch 1.6), and pickles followed by raw storages. What
a file claims is held against the bytes that are there before room is made for it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .restricted_pickle import (
    MOST_PICKLE_BYTES,
    Reading,
    Storage,
    StoredTensor,
    UnsafeFile,
    unpickled,
)

_MAGIC = 0x1950A86A20F9469CFC6C
"""First object of a file in the format of before torch 1.6."""


class TorchFile:
    """An opened file of torch.

    Attributes:
        content: what was saved: dictionaries, lists, numbers, texts, `StoredTensor` and, where
            there were other objects, placeholders.
        skipped: names of the classes and functions of the other objects, and how often each is
            named.

    Raises:
        UnsafeFile: the file is damaged, compressed, or none of torch.
    """

    content: Any
    skipped: dict[str, int]
    _bytes_of: Callable[[Sequence[Storage]], list[bytearray]]

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            start = file.read(2)
        reading = Reading()
        if start == b"PK":
            self._open_zip(reading)
        else:
            self._open_pickles(reading)
        self.skipped = reading.skipped

    def _open_zip(self, reading: Reading) -> None:
        size = self.path.stat().st_size
        with zipfile.ZipFile(self.path) as archive:
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            roots = [n.removesuffix("data.pkl") for n in names if n.count("/") == 1]
            roots = [root for root in roots if f"{root}data.pkl" in names and root[-1:] == "/"]
            if len(names) != len(entries) or sum(e.file_size for e in entries) > size:
                raise UnsafeFile("an archive whose parts overlap, or hold more than the file")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise UnsafeFile("a compressed archive, which torch never writes")
            if not roots:
                raise UnsafeFile("an archive without data.pkl: torch has not saved it")
            root = roots[0]
            if f"{root}constants.pkl" in names:
                raise UnsafeFile("a TorchScript program instead of weights")
            if archive.getinfo(f"{root}data.pkl").file_size > MOST_PICKLE_BYTES:
                raise UnsafeFile("a pickle of more than 64 MiB beside the tensors")
            order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
            if order != b"little":
                raise UnsafeFile("numbers whose bytes are in another order: save it anew")
            self.content, _ = unpickled(archive.read(f"{root}data.pkl"), reading)

        def bytes_of(storages: Sequence[Storage]) -> list[bytearray]:
            with zipfile.ZipFile(self.path) as archive:
                for storage in storages:
                    name = f"{root}data/{storage.key}"
                    if name not in names or archive.getinfo(name).file_size < storage.size:
                        raise UnsafeFile(f"no storage {storage.key!r} of {storage.size} bytes")
                return [bytearray(archive.read(f"{root}data/{s.key}")) for s in storages]

        self._bytes_of = bytes_of

    def _open_pickles(self, reading: Reading) -> None:
        data = memoryview(self.path.read_bytes())
        start, value = 0, None
        for part in range(5):
            value, length = unpickled(bytes(data[start : start + MOST_PICKLE_BYTES]), reading)
            if part == 0 and (type(value) is not int or value != _MAGIC):
                raise UnsafeFile("a bare pickle that torch has not saved")
            if part == 2 and not (isinstance(value, dict) and value.get("little_endian", True)):
                raise UnsafeFile("numbers whose bytes are in another order: save it anew")
            if part == 3:
                self.content = value
            start += length
        if not isinstance(value, list) or not all(isinstance(key, str) for key in value):
            raise UnsafeFile("no list of the storages")
        found: dict[str, tuple[int, int]] = {}
        for key in value:
            storage = reading.storages.get(key)
            if storage is None:
                raise UnsafeFile(f"a storage {key!r} of a type that is not known")
            count = int.from_bytes(data[start : start + 8], "little")
            places = start + 8, start + 8 + storage.size
            if count != storage.count or places[1] > len(data) or key in found:
                raise UnsafeFile(f"no storage {key!r} of {storage.count} elements")
            found[key], start = places, places[1]

        def bytes_of(storages: Sequence[Storage]) -> list[bytearray]:
            return [bytearray(data[slice(*found[storage.key])]) for storage in storages]

        self._bytes_of = bytes_of

    def read(self, wanted: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """Tensors by name; those that shared a storage share it again.

        Raises:
            UnsafeFile: the file does not have their bytes.
        """
        storages = list({tensor.storage.key: tensor.storage for tensor in wanted.values()}.values())
        raw = {
            storage.key: torch.frombuffer(data or bytearray(16), dtype=torch.uint8)
            for storage, data in zip(storages, self._bytes_of(storages), strict=True)
        }
        found = {}
        for name, tensor in wanted.items():
            data = raw[tensor.storage.key]
            whole = data[: len(data) - len(data) % tensor.dtype.itemsize].view(tensor.dtype)
            found[name] = whole.as_strided(tensor.shape, tensor.stride, tensor.offset)
        return found
