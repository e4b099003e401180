"""Arrays that a caller has decoded, as the pixels that the files of a sensor give."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseg.pipelines import DataError, ModalitySpec
from fastseg.pipelines.decode.by_spec import Array


def as_pixels(array: NDArray[Any], modality: ModalitySpec) -> Array:
    """Pixels ``[H, W, C]`` of an array of one sensor.

    Images are what ``numpy.asarray(PIL.Image.open(path))`` gives: ``[H, W]`` grey, ``[H, W, 3]``
    RGB, or with alpha behind, which is dropped; uint8, or 16-bit codes in uint16 or int32. Sensors
    of arrays take ``[H, W]`` or ``[H, W, C]`` of finite numbers.

    Raises:
        DataError: the shape, the dtype or a value is another one.
    """
    name, shape = modality.name, array.shape
    if array.ndim not in (2, 3) or 0 in shape:
        raise _unfit(name, f"has shape {list(shape)}", "[H, W] or [H, W, C]")
    pixels = array.reshape(*shape[:2], -1)
    if modality.decoder == "array":
        return _numbers(pixels, modality)
    if pixels.shape[2] > 4:
        raise _unfit(name, f"has shape {list(shape)}", "[H, W], [H, W, 3] or [H, W, 4]")
    # grey with or without alpha: three equal channels
    pixels = pixels[:, :, :3] if pixels.shape[2] > 2 else pixels[:, :, [0, 0, 0]]
    return _of_depth(pixels, modality)


def _numbers(pixels: NDArray[Any], modality: ModalitySpec) -> Array:
    if pixels.dtype.kind not in "fui":
        raise _unfit(modality.name, f"is of type {pixels.dtype}", "numbers")
    if max(modality.channels) >= pixels.shape[2]:
        wanted = f"at least {max(modality.channels) + 1}"
        raise _unfit(modality.name, f"has {pixels.shape[2]} channels", wanted)
    values = pixels.astype(np.float32)
    if not np.isfinite(values).all():
        raise _unfit(modality.name, "has values that are not finite", "finite float32 values")
    return values


def _of_depth(pixels: NDArray[Any], modality: ModalitySpec) -> Array:
    bits = " or ".join(f"uint{b}" for b in modality.bits)
    if pixels.dtype == np.uint8 and 8 in modality.bits:
        return pixels if modality.bits == (8,) else pixels.astype(np.uint16) * 257
    deep = pixels.dtype == np.uint16
    if pixels.dtype == np.int32:
        deep = bool(pixels.min() >= 0 and pixels.max() < 1 << 16)
    if deep and 16 in modality.bits:
        return pixels.astype(np.uint16)
    raise _unfit(modality.name, f"is of type {pixels.dtype}", f"{bits}, as its files hold")


def _unfit(name: str, found: str, wanted: str) -> DataError:
    return DataError(f"the image of {name} {found}; expected {wanted}", "value")
