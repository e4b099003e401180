"""Mutations of files: flipped bytes, cuts, splices, extreme numbers, doubled lines and keys."""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence

from fastseg.pipelines.decode.png import SIGNATURE

EXTREMES = (
    *(b"0", b"-1", b"1", b"255", b"256", b"65536", b"2147483648", b"18446744073709551616"),
    *(b"1e999", b"-1e999", b"1e-400", b"NaN", b"Infinity", b".inf", b"nan", b"0x10", b"010"),
    *(b"9" * 400, b"9" * 5000, b"null", b"true", b'"1"', b"[]", b"{}", b"", b"2020-13-45"),
)
"""What stands in the place of a number."""
TEXTS = (
    *(b'"', b"'", b"\\", b"\0", b"\r", b"\n", b"\t", b",", b";", b":", b"=", b"[", b"{", b"- "),
    *(b"]", b"}", b"#", b"&a ", b"*a", b"<<: ", b"!!int ", b"!!python/object:os.system ", b"../"),
    *(b"/", b"\xff", b"\xc2\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\\u0000", b"\\ud800", b"..."),
    *(b"__class__", b"~", b"%s", b"${HOME}", b"[" * 2000, b'{"a":' * 2000, b"0" * 300),
)
"""What is put in between."""
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_KEY = re.compile(rb'"[^"\n]*"\s*:\s*[^,{}\[\]\n]*,')


def mutate(seeds: Sequence[bytes], draws: random.Random) -> bytes:
    """One of the seeds after one to four mutations."""
    data = bytearray(draws.choice(seeds))
    for _ in range(draws.choice((1, 1, 1, 2, 3, 4))):
        data = bytearray(draws.choice(_WAYS)(data, seeds, draws))
    return with_checksums(bytes(data)) if draws.random() < 0.6 else bytes(data)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums, so that a mutation of one gets past them."""
    if not data.startswith(SIGNATURE):
        return data
    fixed, place = bytearray(data), len(SIGNATURE)
    while place + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, place)
        end = place + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[place + 4 : end]))
        place = end + 4
    return bytes(fixed)


def _flip(data: bytearray, _: Sequence[bytes], draws: random.Random) -> bytes:
    for _ in range(draws.choice((1, 1, 2, 8))):
        if data:
            data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    return bytes(data)


def _set(data: bytearray, _: Sequence[bytes], draws: random.Random) -> bytes:
    if data:
        # headers are where files are most easily led astray
        place = draws.randrange(min(len(data), draws.choice((64, len(data)))))
        size = draws.choice((1, 1, 2, 4, 8))
        data[place : place + size] = bytes([draws.choice((0, 1, 127, 128, 255))]) * size
    return bytes(data)


def _cut(data: bytearray, _: Sequence[bytes], draws: random.Random) -> bytes:
    return bytes(data[: draws.randrange(len(data) + 1)])


def _remove(data: bytearray, _: Sequence[bytes], draws: random.Random) -> bytes:
    start = draws.randrange(len(data) + 1)
    del data[start : start + draws.choice((1, 2, 8, 64))]
    return bytes(data)


def _insert(data: bytearray, _: Sequence[bytes], draws: random.Random) -> bytes:
    place = draws.randrange(len(data) + 1)
    return bytes(data[:place]) + draws.choice(TEXTS) + bytes(data[place:])


def _splice(data: bytearray, seeds: Sequence[bytes], draws: random.Random) -> bytes:
    other = draws.choice(seeds)
    start = draws.randrange(len(other) + 1)
    return bytes(data[: draws.randrange(len(data) + 1)]) + other[start:]


def _number(data: bytearray, _: Sequence[bytes], draws: random.Random) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return bytes(data)
    match = draws.choice(found)
    return bytes(data[: match.start()]) + draws.choice(EXTREMES) + bytes(data[match.end() :])


def _line(data: bytearray, _: Sequence[bytes], draws: random.Random) -> bytes:
    lines = bytes(data).split(b"\n")
    line = draws.choice(lines)
    lines.insert(draws.randrange(len(lines) + 1), line)
    return b"\n".join(lines)


def _key(data: bytearray, _: Sequence[bytes], draws: random.Random) -> bytes:
    found = list(_KEY.finditer(data))
    if not found:
        return _line(data, (), draws)
    match = draws.choice(found)
    return bytes(data[: match.end()]) + match[0] + bytes(data[match.end() :])


def _pixels(data: bytearray, seeds: Sequence[bytes], draws: random.Random) -> bytes:
    """Of a PNG: what lies under the compression."""
    start = data.find(b"IDAT")
    if start < 4 or not data.startswith(SIGNATURE):
        return _flip(data, seeds, draws)
    (length,) = struct.unpack_from(">I", data, start - 4)
    try:
        rows = zlib.decompress(data[start + 4 : start + 4 + length])
    except zlib.error:
        return _flip(data, seeds, draws)
    way = draws.choice((_flip, _set, _cut, _remove, _insert))
    packed = zlib.compress(way(bytearray(rows), seeds, draws))
    chunk = struct.pack(">I", len(packed)) + b"IDAT" + packed
    return bytes(data[: start - 4]) + chunk + bytes(data[start + 4 + length :])


_Way = Callable[[bytearray, Sequence[bytes], random.Random], bytes]
_WAYS: tuple[_Way, ...] = (
    *(_flip, _flip, _set, _set, _cut, _remove, _insert, _insert, _splice, _number, _number),
    *(_line, _key, _pixels, _pixels),
)
