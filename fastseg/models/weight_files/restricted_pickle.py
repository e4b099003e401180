"""Read the tensors of a file saved by torch; everything else in it is skipped, and nothing runs.

A pickle is a program that may call whatever it names. Here a name becomes one of the few classes of
this file, all of them inert, or `_Skipped`, which swallows whatever is done to it. No module is
imported for a pickle, and no function of torch is called by one: tensors come out as descriptions,
which are checked against the bytes that are there and made into tensors afterwards.

Limits: 64 MiB of pickle, a tensor has no more elements than its storage.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

MOST_PICKLE_BYTES = 64 << 20
_MOST_OPCODES = 20_000_000
_DEEPEST_TUPLE = 1000
_DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e5m2"),
    )
}
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class UnsafeFile(Exception):
    """The file is damaged, or made so that reading it would do harm; the text says how."""


class _Swallowing(type):
    """What may be done to an object while it is unpickled, all without effect."""

    def append(cls, *_: object) -> None: ...
    def extend(cls, *_: object) -> None: ...
    def add(cls, *_: object) -> None: ...
    def __setitem__(cls, *_: object) -> None: ...


class _Skipped(metaclass=_Swallowing):
    """Stands for every object that is not a tensor: called or made anew it is itself."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return cls

    @classmethod
    def __setstate__(cls, state: object) -> None:
        pass


class _Unchanged:
    """No state that a pickle has for an object changes it."""

    def __setstate__(self, state: object) -> None:
        pass


class _Dict(_Unchanged, dict[Any, Any]):
    """An ordered dictionary; its attributes, such as versions of modules, are not kept."""


@dataclass(frozen=True)
class _Call(_Unchanged):
    """A function that a pickle may call; unlike a function it has nothing that can be set."""

    function: Callable[..., Any]

    def __call__(self, *values: Any) -> Any:
        return self.function(*values)


@dataclass(frozen=True)
class _StorageType(_Unchanged):
    """The class of a storage; None: bytes without a dtype."""

    dtype: torch.dtype | None


@dataclass(frozen=True)
class Storage(_Unchanged):
    """A storage by its key: ``count`` elements of ``dtype``, or bytes."""

    key: str
    dtype: torch.dtype | None
    count: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.count * (self.dtype.itemsize if self.dtype else 1)


@dataclass(frozen=True)
class StoredTensor(_Unchanged):
    """A tensor that has not been read: a view of a storage in the file."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _rebuilt(*values: Any) -> Any:
    """The description of a dense tensor, from the arguments of ``_rebuild_tensor`` and its heirs.

    They are storage, offset, shape and stride; version 3 has the dtype behind two more.
    """
    if len(values) < 4 or not isinstance(values[0], Storage):
        return _Skipped
    storage, offset, shape, stride = values[:4]
    dtype = storage.dtype or (values[6] if len(values) > 6 else None)
    numbers = (offset, *shape, *stride)
    if not isinstance(dtype, torch.dtype) or len(shape) != len(stride) or len(shape) > 16:
        raise UnsafeFile("a tensor without dtype, or of a shape that cannot be")
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise UnsafeFile("a tensor whose shape, stride or offset is no number of elements")
    room = storage.count if storage.dtype else storage.count // dtype.itemsize
    last = sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if prod(shape) and (offset + last >= room or prod(shape) > room):
        raise UnsafeFile(f"a tensor {list(shape)} that is larger than its storage of {room}")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride), dtype)


def _parameter(data: Any = None, *_: object) -> Any:
    return data if isinstance(data, StoredTensor) else _Skipped


def _with_attributes(rebuild: Any = None, _: Any = None, arguments: Any = (), *__: Any) -> Any:
    """A tensor of a class of its own, or with attributes: the tensor alone."""
    return rebuild(*arguments) if isinstance(rebuild, _Call) else _Skipped


def _shape(values: Any = ()) -> Any:
    return tuple(values) if isinstance(values, tuple | list) else _Skipped


_KNOWN: dict[str, object] = {
    "collections.OrderedDict": _Dict,
    "torch.Size": _Call(_shape),
    "torch._utils._rebuild_tensor": _Call(_rebuilt),
    "torch._utils._rebuild_tensor_v2": _Call(_rebuilt),
    "torch._utils._rebuild_tensor_v3": _Call(_rebuilt),
    "torch._utils._rebuild_parameter": _Call(_parameter),
    "torch._utils._rebuild_parameter_with_state": _Call(_parameter),
    "torch._tensor._rebuild_from_type_v2": _Call(_with_attributes),
    "torch.storage.UntypedStorage": _StorageType(None),
    **{f"torch.{name}": _StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
}
"""Everything that a pickle can name. None of it touches files, processes or modules."""
# names that tensors come with, whose loss nobody misses
_QUIET = ("torch.nn.parameter.Parameter", "torch.Tensor", "torch.device", "torch._tensor.Tensor")


@dataclass
class Reading:
    """What a file has named so far."""

    skipped: dict[str, int] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, reading: Reading) -> None:
        super().__init__(file, encoding="latin1")
        self.reading = reading

    def find_class(self, module: str, name: str) -> Any:
        """One of `_KNOWN`, or `_Skipped`; nothing is imported."""
        # Python 2 and 3 have names of their own for the same
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if full not in _KNOWN and full not in _QUIET:
            skipped = self.reading.skipped
            if full in skipped or len(skipped) < 1000:
                skipped[full] = skipped.get(full, 0) + 1
        return _KNOWN.get(full, _Skipped)

    def persistent_load(self, pid: Any) -> Any:
        """The description of a storage."""
        if isinstance(pid, tuple) and pid[:1] == ("module",):
            return _Skipped  # a class of the network with its source, in files of before torch 1.6
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise UnsafeFile("a reference to something that is no storage")
        _, kind, key, _, count = pid[:5]
        if kind is _Skipped:
            return _Skipped
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or type(count) is not int:
            raise UnsafeFile("a storage without type, key or size")
        if len(pid) == 6 and pid[5] is not None:
            raise UnsafeFile("a view of a storage, as torch before 0.4 wrote them: save it anew")
        storage = Storage(key, kind.dtype, count)
        if count < 0 or self.reading.storages.setdefault(key, storage) != storage:
            raise UnsafeFile(f"two storages {key!r}, or one of a size that cannot be")
        return storage


def unpickled(data: bytes, reading: Reading) -> tuple[Any, int]:
    """The object of the first pickle in some bytes, and where it ends.

    Raises:
        UnsafeFile: it has too many steps, or some that would cost memory or the stack.
    """
    puts, end, depths = 0, 0, _Depths()
    for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        # places that no writer uses would have room made for all below them
        if "PUT" in opcode.name and argument is not None:
            puts += 1
            if int(argument) > 2 * puts + 16:
                raise UnsafeFile("a pickle whose memory has gaps")
        if opcode.name.startswith("EXT") or count > _MOST_OPCODES:
            raise UnsafeFile("a pickle with extension codes, or of too many steps")
        if depths.after(opcode, argument) > _DEEPEST_TUPLE:
            raise UnsafeFile("a pickle of tuples in tuples without end")
        end = (position or 0) + 1
    return _Unpickler(io.BytesIO(data[:end]), reading).load(), end


class _Depths:
    """How deep the tuples on the stack of a pickle are nested; a dictionary hashes them by calls.

    Tuples do not change once they are made, so what is put into the memory keeps its depth.
    """

    def __init__(self) -> None:
        self.stack: list[int | None] = []  # None is a mark
        self.memory: dict[int, int] = {}

    def after(self, opcode: pickletools.OpcodeInfo, argument: Any) -> int:
        """The depth of the top of the stack behind a step."""
        name, top = opcode.name, (self.stack[-1] if self.stack else 0) or 0
        if name == "MARK":
            self.stack.append(None)
            return 0
        if "PUT" in name or name == "MEMOIZE":
            self.memory[len(self.memory) if argument is None else int(argument)] = top
            return top
        if "GET" in name:
            self.stack.append(self.memory.get(int(argument), 0))
            return 0
        if name == "DUP":
            self.stack.append(top)
            return top
        taken = []
        if pickletools.markobject in opcode.stack_before:
            while self.stack and (depth := self.stack.pop()) is not None:
                taken.append(depth)
        wanted = [x for x in opcode.stack_before if x not in _OF_MARKS]
        for _ in wanted:
            taken.append((self.stack.pop() if self.stack else 0) or 0)
        depth = max(taken, default=0) + name.startswith("TUPLE")
        self.stack += [depth] * len(opcode.stack_after)
        return depth


_OF_MARKS = (pickletools.markobject, pickletools.stackslice)
