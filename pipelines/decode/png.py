"""The chunks of a PNG: what decoders disagree about is refused before any of them sees the file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""The first eight bytes of every PNG."""
PALETTE = 3
"""Colour type of a PNG whose pixels are indices."""
GREY_ALPHA = 4
"""Colour type of a PNG of grey values with alpha."""

_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# before the pixels these leave them as they are; tRNS would not, nor those of animations
_HARMLESS = frozenset(
    (
        *(b"IHDR", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"iCCP", b"pHYs", b"bKGD", b"tIME", b"eXIf"),
        *(b"tEXt", b"zTXt", b"iTXt"),
    )
)
_HEADER_BYTES = 13
_CHANNELS = {2: 3, GREY_ALPHA: 2, 6: 4}
"""Values of a pixel by colour type; one in the others."""
_RATIO = 1032
"""Bytes that one byte of a deflated stream unpacks to at most."""
_END = b"\0\0\0\0IEND\xae\x42\x60\x82"


@dataclass(frozen=True)
class Header:
    """Contents of the chunks before and after the pixels.

    Attributes:
        depth: bits per channel, or per index of a palette.
        colour: colour type, 0 to 6; see ``PALETTE`` and ``GREY_ALPHA``.
        exif: content of the chunk eXIf, empty if there is none.
    """

    depth: int
    colour: int
    exif: bytes


def read_header(data: bytes) -> Header:
    """The header of a PNG, after checking the order and the checksums of all chunks but IDAT.

    PIL reads on where libpng, and with it DALI, refuses: chunks out of order, twice or of unknown
    meaning, and wrong checksums behind the pixels.

    Raises:
        ValueError: a chunk is missing, out of place, cut off, or has a wrong checksum.
    """
    header, palette, exif = b"", False, b""
    before, pixels = b"", False
    for kind, start, end in _chunks(data):
        if kind == b"IDAT":
            if pixels and before != kind:
                raise ValueError("other chunks lie between those of the pixels")
            pixels = True
        else:
            _check(data, kind, start, end)
        if (kind == b"IHDR") != (not before):
            raise ValueError("chunk IHDR is not the first and only one of its kind")
        if not kind[0] & 0x20 and kind not in _CRITICAL:
            raise ValueError(f"unknown critical chunk {_shown(kind)}")
        if kind == b"IHDR":
            header = data[start:end]
        elif kind == b"PLTE":
            if pixels or palette or (end - start) % 3:
                raise ValueError("chunk PLTE is out of place or cut off")
            palette = True
        elif kind == b"eXIf":
            exif = data[start:end]
        before = kind
    if len(header) != _HEADER_BYTES or header[10] or header[11]:
        raise ValueError("chunk IHDR is not of the standard's form")
    depth, colour = header[8], header[9]
    if not pixels or (colour == PALETTE and not palette):
        raise ValueError(f"chunk {'PLTE' if pixels else 'IDAT'} is missing")
    return Header(depth, colour, exif)


def without_pixels(head: bytes, tail: bytes) -> bytes | None:
    """A PNG with the header of another and no pixels; None if its ends do not suffice to make it.

    Args:
        head: first bytes of the other, which must reach its first chunk IDAT.
        tail: its last bytes, which must end with IEND.
    """
    end = tail[-len(_END) :]
    place = len(SIGNATURE)
    while place + 8 <= len(head) and end == _END:
        length, kind = struct.unpack_from(">I4s", head, place)
        if kind == b"IDAT":
            return head[:place] + _chunk(kind, b"") + end
        place += length + 12
    return None


def in_colour(data: bytes) -> bool:
    """True if the pixels of a PNG with a sound header are RGB or RGBA."""
    return data[25] in (2, 6)


def is_plain(data: bytes) -> bool:
    """True if a PNG with a sound header has pixels as stored, in order, and only its end behind.

    PIL reads chunks behind the pixels when it decodes them, and may refuse them then.
    """
    if data[24] not in (8, 16) or data[25] == PALETTE or data[28]:
        return False
    kinds = [kind for kind, _, _ in _chunks(data)]
    first = kinds.index(b"IDAT")
    return _HARMLESS.issuperset(kinds[:first]) and set(kinds[first:]) == {b"IDAT", b"IEND"}


def check_pixels(data: bytes) -> None:
    """Compare the checksums of the chunks IDAT, which PIL does not look at, and their length.

    Args:
        data: a PNG with a sound header.

    Raises:
        ValueError: a checksum is wrong, a chunk is cut off, or the header declares more pixels
            than can come out of the chunks: nothing is allocated for them.
    """
    packed = 0
    for kind, start, end in _chunks(data):
        if kind == b"IDAT":
            _check(data, kind, start, end)
            packed += end - start
    width, height, depth, colour = struct.unpack_from(">IIBB", data, len(SIGNATURE) + 8)
    least = height * (width * depth * _CHANNELS.get(colour, 1) // 8)
    if least > _RATIO * packed:
        raise ValueError(
            f"it declares {width} x {height} pixels, more than its {packed} packed bytes can hold"
        )


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each chunk, up to and with IEND."""
    place, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        if place + 8 > len(data):
            raise ValueError("the end of the PNG is missing")
        length, kind = struct.unpack_from(">I4s", data, place)
        start, end = place + 8, place + 8 + length
        if end + 4 > len(data):
            raise ValueError("the end of the PNG is missing")
        yield kind, start, end
        place = end + 4


def _check(data: bytes, kind: bytes, start: int, end: int) -> None:
    stored = int.from_bytes(data[end : end + 4], "big")
    if zlib.crc32(memoryview(data)[start - 4 : end]) != stored:
        raise ValueError(f"the checksum of chunk {_shown(kind)} is wrong")


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I4s", len(content), kind) + content + struct.pack(">I", check)


def _shown(kind: bytes) -> str:
    return kind.decode("ascii", "replace")
