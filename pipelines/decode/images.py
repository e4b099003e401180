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
from PIL import Image, ImageFile

from ..errors import DataError
from . import fast_png, png

Pixels = NDArray[np.uint8]
Codes = NDArray[Any]
"""uint8 or uint16."""

_FORMATS = ("PNG", "JPEG")
"""PIL's names of the formats. The reader of JPEG also opens one that others follow (MPO), as some
cameras write it."""
_ORIENTATION = 0x0112
"""EXIF tag: 1 for as stored, 2 to 8 for mirrored or turned; other values have no meaning."""
_OTHERS = {b"BM": "BMP", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"RIFF": "WEBP"}
"""How files of other formats begin, for messages."""
_MODES = {8: ("L", "LA", "RGB", "RGBA", "P"), 16: ("I;16", "I", "RGB", "RGBA")}
_LOW_BYTES = {"RGB": "RGB;16L", "RGBA": "RGBA;16L"}

DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""Everything that Pillow was seen to raise on damaged files."""


def opened(data: bytes) -> ImageFile.ImageFile:
    """An image that Pillow has opened; of its many readers two see the bytes, whatever they are.

    Raises:
        OSError, ValueError and others of Pillow: it is neither PNG nor JPEG, or damaged.
    """
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def check_header(
    data: bytes,
    path: Path,
    *,
    label: bool = False,
    bits: tuple[int, ...] = (8,),
    palette: bool = False,
) -> tuple[int, int]:
    """Height and width in pixels, after checking that the format is one we decode exactly.

    The pixels are not looked at. What decoders do not agree about is refused: formats other than
    PNG and JPEG, a PNG whose chunks are out of order, EXIF orientations that turn the image, other
    depths than declared (they would be scaled or lose their low byte without a word). Labels may
    be neither JPEG, which changes values, nor, unless ``palette`` says so, palette PNG, whose
    indices may become colours.

    Raises:
        DataError: not an image, or one of these.
    """
    header = png.Header(8, 0, b"")
    try:
        if data.startswith(png.SIGNATURE):
            header = png.read_header(data)
        with opened(data) as image:
            width, height, mode = image.width, image.height, image.mode
            exif = header.exif or image.info.get("exif", b"")
    except DAMAGE as error:
        kind = next((kind for start, kind in _OTHERS.items() if data.startswith(start)), None)
        if kind is None:
            raise damaged(path, len(data), error) from error
        raise DataError(
            f"{path} is a {kind} file; expected PNG or JPEG. Save it as PNG", "format"
        ) from None
    if label:
        refuse_lossy(data, path)
    indexed = header.colour == png.PALETTE
    # indices may have fewer bits, their colours have 8
    depth = 8 if indexed and 8 in bits else header.depth
    # PIL gives 16-bit grey with alpha another mode, and cannot decode it
    strange = depth == 16 and header.colour == png.GREY_ALPHA
    if depth not in bits or mode not in _MODES[depth] or strange:
        raise _wrong_depth(path, depth, "LA" if strange else mode, bits, label=label)
    if label and indexed and not palette:
        raise DataError(
            f"{path} is a palette PNG; expected the class in the grey value or in the red channel "
            "of RGB(A). Save the indices as grey: Image.fromarray(numpy.array(Image.open(path))); "
            'where a TOML file describes the data, coding = "indices" reads them',
            "depth",
        )
    _refuse_turned(path, exif)
    return height, width


def refuse_lossy(data: bytes, path: Path) -> None:
    """Refuse a JPEG where values must be exact.

    Raises:
        DataError: it is one.
    """
    if data.startswith(b"\xff\xd8"):
        raise DataError(
            f"{path} is a JPEG, which changes the values of pixels; expected a PNG with class ids "
            "or a mask. Make it anew from its source: what JPEG has changed cannot be restored",
            "format",
        )


def decode_image(data: bytes, path: Path, *, bits: tuple[int, ...] = (8,)) -> Codes:
    """Pixels ``[H, W, 3]`` in RGB order: alpha dropped, grey replicated.

    uint8 if 8 bits alone are allowed, else uint16, in which 8-bit codes are multiplied by 257.

    Raises:
        DataError: damaged, or of a format that ``check_header`` refuses.
    """
    check_header(data, path, bits=bits)
    deep = data.startswith(png.SIGNATURE) and data[24] == 16
    codes: Codes
    try:
        if (found := _checked(data)) is not None:
            codes = _three_channels(found)
            return codes if bits == (8,) or deep else codes.astype(np.uint16) * 257
        with opened(data) as image:
            if bits == (8,):
                return _rgb(image)
            if not deep:
                return _rgb(image).astype(np.uint16) * 257
            if image.mode not in _LOW_BYTES:
                grey = np.asarray(image).astype(np.uint16)
                return np.repeat(grey[:, :, None], 3, axis=2)
            high = _rgb(image)
        # PIL has no 16-bit RGB: it unpacks big-endian pixels to their high bytes. Asked to unpack
        # them as little-endian, it gives the low ones.
        with opened(data) as image:
            codec, box, offset, _ = image.tile[0]
            # older versions of PIL know tiles as plain tuples
            image.tile = [(codec, box, offset, _LOW_BYTES[image.mode])]  # type: ignore[list-item]
            codes = high.astype(np.uint16) << 8 | _rgb(image)
            return codes
    except DAMAGE as error:
        raise damaged(path, len(data), error) from error


def decode_ids(data: bytes, path: Path, *, red_alone: bool, palette: bool = False) -> Pixels:
    """The raw values ``[H, W]`` of an 8-bit label image: its only channel, or the red one.

    Args:
        data: content of the file.
        path: for messages.
        red_alone: whether green and blue may hold something else.
        palette: whether it may be a palette PNG, whose indices are then the values.

    Raises:
        DataError: damaged, of a format that ``check_header`` refuses, or painted: green or blue
            differ from red where they must not.
    """
    check_header(data, path, label=True, palette=palette)
    try:
        if (found := _checked(data)) is not None:
            if red_alone or found.ndim == 2 or found.shape[2] < 3:
                return found if found.ndim == 2 else found[:, :, 0]
            red, green, blue = (found[:, :, c] for c in range(3))
        else:
            with opened(data) as image:
                if red_alone or image.mode not in ("RGB", "RGBA"):
                    return np.asarray(image.getchannel(0))
                red, green, blue = (np.asarray(image.getchannel(c)) for c in range(3))
    except DAMAGE as error:
        raise damaged(path, len(data), error) from error
    painted = np.argwhere((red != green) | (red != blue))
    if len(painted):
        row, col = painted[0]
        colour = tuple(int(channel[row, col]) for channel in (red, green, blue))
        raise DataError(
            f"{path} is painted: red, green and blue differ in {len(painted)} pixels, {colour} at "
            f"row {row}, column {col} first; expected the class id in all three, or a grey image. "
            "Map each colour to its id and save the ids as grey, or check --data.dataset; where a "
            'TOML file describes the data, coding = "colours" reads them',
            "label",
        )
    return red


def damaged(path: Path, size: int, error: BaseException) -> DataError:
    """The error for a file that does not decode."""
    # PIL names the buffer that it was given: <_io.BytesIO object at 0x...>
    text = re.sub(r"\s*<[^<>]* at 0x\w+>", "", str(error))
    reason = text.splitlines()[0] if text else type(error).__name__
    return DataError(
        f"{path} is damaged or no image ({size} bytes; {reason}); fetch this file again", "damaged"
    )


def _refuse_turned(path: Path, exif: bytes) -> None:
    if not exif:
        return
    tags = Image.Exif()
    try:
        tags.load(exif)
        orientation = tags.get(_ORIENTATION, 1)
    except DAMAGE:  # no viewer can read it either
        return
    if orientation in range(2, 9):
        raise DataError(
            f"{path} has EXIF orientation {orientation}: viewers turn or mirror it, but not the "
            "other files of the sample; expected 1 or none. If all files fit as stored, remove the "
            "tag (exiftool -Orientation= FILE), else turn the pixels (ImageOps.exif_transpose in "
            "PIL)",
            "orientation",
        )


def _checked(data: bytes) -> Codes | None:
    """Pixels of a PNG as stored, after its checksums; None of what PIL has to decode."""
    if not data.startswith(png.SIGNATURE):
        return None
    png.check_pixels(data)
    return fast_png.pixels(data)


def _three_channels(found: Codes) -> Codes:
    """``[H, W, 3]`` of grey, grey with alpha, RGB or RGBA."""
    if found.ndim == 2 or found.shape[2] < 3:
        grey = found if found.ndim == 2 else found[:, :, 0]
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.ascontiguousarray(found[:, :, :3])


def _rgb(image: Image.Image) -> Pixels:
    # convert drops alpha without compositing and copies grey into all channels
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _wrong_depth(
    path: Path, depth: int, mode: str, bits: tuple[int, ...], *, label: bool
) -> DataError:
    wanted = " or ".join(f"{b}-bit" for b in bits)
    remedy = (
        "Convert it to 8 bit without scaling; ids above 255 do not fit, map them to others first"
        if label
        else "Convert it to 8 bit with the scaling you want, and save it as PNG"
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
