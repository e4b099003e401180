"""From a picture to the input of CLIP: resize, centre crop, normalise.

The rules are those of the model's own ``preprocessor_config.json``, carried out in torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastseg.errors import ConfigError

Triple = tuple[float, float, float]
MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue that CLIP was trained with (``clip/clip.py`` of openai/CLIP)."""
STD: Triple = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviation."""
_RULES = {2: "bilinear", 3: "bicubic"}
"""Rules of resizing by their number in PIL, which configs hold."""
_STEPS = ("do_resize", "do_rescale", "do_normalize")


@dataclass(frozen=True)
class Preprocessing:
    """Resizing with antialias, a centre crop, and ``(x / 255 - mean) / std``.

    Attributes:
        resize: (height, width), or the length of the shorter side.
        crop: (height, width) of the input.
        mean: of red, green and blue.
        std: their standard deviation.
        rule: ``bicubic`` or ``bilinear``.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    mean: Triple = MEAN
    std: Triple = STD
    rule: str = "bicubic"

    def __call__(self, pictures: Tensor) -> Tensor:
        """The input ``[N, 3, h, w]`` float32 of pictures ``[N, 3, H, W]``.

        Values are rounded to 256 levels. It is the result of PIL up to two levels.

        Args:
            pictures: uint8, or float from 0 to 1.

        Raises:
            ValueError: another shape or dtype.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape[2:]:
            raise ValueError(f"expected pictures [N, 3, H, W], got {tuple(pictures.shape)}")
        if pictures.dtype != torch.uint8 and not pictures.is_floating_point():
            raise ValueError(
                f"expected pictures in uint8, or in float from 0 to 1, got {pictures.dtype}"
            )
        levels = pictures.float()
        if pictures.dtype != torch.uint8:
            levels = levels * 255
        height, width = levels.shape[2:]
        size = self._size(height, width)
        # along rows, then along columns, each rounded to 8 bits: the models learnt from PIL's
        for passed in ((height, size[1]), size):
            if passed != tuple(levels.shape[2:]):
                levels = functional.interpolate(
                    levels, passed, mode=self.rule, align_corners=False, antialias=True
                )
            levels = levels.clamp(0, 255).round()
        top, left = ((have - want) // 2 for have, want in zip(size, self.crop, strict=True))
        levels = levels[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (levels.new_tensor(x).view(3, 1, 1) for x in (self.mean, self.std))
        return (levels / 255 - mean) / std

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing."""
        if isinstance(self.resize, tuple):
            return self.resize
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize


def read_preprocessing(settings: Mapping[str, Any], side: int, place: object) -> Preprocessing:
    """The rules in a ``preprocessor_config.json``; CLIP's for what it does not name.

    Args:
        settings: content of the file.
        side: height and width of the network's input.
        place: name of the file, for messages.

    Raises:
        ConfigError: a rule is unknown, or does not end in the network's input.
    """
    try:
        resize = _resize(settings.get("size", side))
        cropped = settings.get("do_center_crop", True) is True
        crop = _crop(settings.get("crop_size", side)) if cropped else resize
        mean, std = (
            tuple(map(float, settings.get(name, default)))
            for name, default in (("image_mean", MEAN), ("image_std", STD))
        )
        rule = _RULES[settings.get("resample", 3)]
        left_out = [step for step in _STEPS if settings.get(step, True) is not True]
        scaled = abs(float(settings.get("rescale_factor", 1 / 255)) * 255 - 1) < 1e-6
        if left_out or not scaled or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(", ".join(left_out) or "rescale_factor, image_mean or image_std")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{place} asks for a preprocessing that is not CLIP's ({error}); expected resizing by "
            "resample 2 or 3, a centre crop, and (value / 255 - image_mean) / image_std"
        ) from None
    smallest = min(resize) if isinstance(resize, tuple) else resize
    if crop != (side, side) or smallest < side:
        raise ConfigError(
            f"{place} resizes to {resize} and crops to {crop}, but the network takes {side} x "
            f"{side}: it belongs to other weights; fetch the folder again"
        )
    return Preprocessing(resize, (side, side), mean, std, rule)


def _resize(size: Any) -> int | tuple[int, int]:
    """The length of the shorter side, or (height, width)."""
    if isinstance(size, Mapping):
        return int(size["shortest_edge"]) if "shortest_edge" in size else _crop(size)
    return int(size)


def _crop(size: Any) -> tuple[int, int]:
    """(height, width)."""
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    return int(size), int(size)
