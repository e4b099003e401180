"""PNG and JPEG bytes to 8- or 16-bit pixels, exactly; anything else is refused by name."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import DataError

Pixels = NDArray[np.uint8]
Codes = NDArray[Any]
"""uint8 or uint16."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
"""Colour type of a PNG whose pixels are indices."""
_MODES = {8: ("L", "LA", "RGB", "RGBA", "P"), 16: ("I;16", "I", "RGB", "RGBA")}
_LOW_BYTES = {"RGB": "RGB;16L", "RGBA": "RGBA;16L"}
# everything PIL was seen to raise on damaged files
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def check_header(
    data: bytes, path: Path, *, label: bool = False, bits: tuple[int, ...] = (8,)
) -> tuple[int, int]:
    """Height and width in pixels, after checking that the format is one we decode exactly.

    Only header and end are looked at. Files of another depth than declared would lose their low
    byte or be scaled without a word, and the indices of a palette PNG would become colours in some
    decoders, so both are refused.

    Raises:
        DataError: not an image, another bit depth, or a palette PNG as label.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height, mode = image.width, image.height, image.mode
    except _DAMAGE as error:
        raise damaged(path, len(data), error) from error
    depth, palette = 8, mode == "P"
    if data.startswith(_PNG):
        end = data.rfind(b"IEND")
        if not 0 <= end <= len(data) - 8:
            # PIL forgives this once all pixels are read, DALI does not
            raise damaged(path, len(data), EOFError("the end of the PNG is missing"))
        depth, palette = data[24], data[25] == _PALETTE
    if palette and 8 in bits:
        depth = 8  # indices may have fewer bits, their colours have 8
    if depth not in bits or mode not in _MODES[depth]:
        raise _wrong_depth(path, depth, mode, bits)
    if label and palette:
        raise DataError(
            f"{path} is a palette PNG; expected the class in the grey value or in the red channel "
            "of RGB(A). Save the indices as grey: Image.fromarray(numpy.array(Image.open(path)))",
            "depth",
        )
    return height, width


def decode_image(
    data: bytes, path: Path, *, label: bool = False, bits: tuple[int, ...] = (8,)
) -> Codes:
    """Pixels ``[H, W, 3]`` in RGB order: alpha dropped, grey replicated.

    uint8 if 8 bits alone are allowed, else uint16, in which 8-bit codes are multiplied by 257.

    Raises:
        DataError: damaged, or of a format that ``check_header`` refuses.
    """
    check_header(data, path, label=label, bits=bits)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if bits == (8,):
                return _rgb(image)
            if not data.startswith(_PNG) or data[24] != 16:
                return _rgb(image).astype(np.uint16) * 257
            if image.mode not in _LOW_BYTES:
                grey = np.asarray(image).astype(np.uint16)
                return np.repeat(grey[:, :, None], 3, axis=2)
            high = _rgb(image)
        # PIL has no 16-bit RGB: it unpacks big-endian pixels to their high bytes. Asked to unpack
        # them as little-endian, it gives the low ones.
        with Image.open(io.BytesIO(data)) as image:
            codec, box, offset, _ = image.tile[0]
            # older versions of PIL know tiles as plain tuples
            image.tile = [(codec, box, offset, _LOW_BYTES[image.mode])]  # type: ignore[list-item]
            codes: Codes = high.astype(np.uint16) << 8 | _rgb(image)
            return codes
    except _DAMAGE as error:
        raise damaged(path, len(data), error) from error


def decode_red(data: bytes, path: Path) -> Pixels:
    """The red, or only, channel ``[H, W]`` of an 8-bit label image.

    Raises:
        DataError: damaged, or of a format that ``check_header`` refuses.
    """
    check_header(data, path, label=True)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.getchannel(0))
    except _DAMAGE as error:
        raise damaged(path, len(data), error) from error


def damaged(path: Path, size: int, error: BaseException) -> DataError:
    """The error for a file that does not decode."""
    # PIL names the buffer that it was given: <_io.BytesIO object at 0x...>
    text = re.sub(r"\s*<[^<>]* at 0x\w+>", "", str(error))
    reason = text.splitlines()[0] if text else type(error).__name__
    return DataError(
        f"{path} is damaged or no image ({size} bytes; {reason}); fetch this file again", "damaged"
    )


def _rgb(image: Image.Image) -> Pixels:
    # convert drops alpha without compositing and copies grey into all channels
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _wrong_depth(path: Path, depth: int, mode: str, bits: tuple[int, ...]) -> DataError:
    wanted = " or ".join(f"{b}-bit" for b in bits)
    remedy = (
        "Convert it to 8 bit with the scaling you want, and save it as PNG"
        if bits == (8,)
        else "Write it anew from its source: what 8 bits have lost cannot be restored"
        if bits == (16,) and depth < 16
        else "Save it as grey, RGB or RGBA"
    )
    return DataError(
        f"{path} has {depth} bits per channel (mode {mode}); expected {wanted} grey or RGB. "
        f"{remedy}",
        "depth",
    )
