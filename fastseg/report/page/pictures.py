"""Images, labels and predictions as small pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..results import Picture, RunReport
from .theme import LIGHT

LONGEST = 256  # pixels of a picture's longer side on the page; larger ones are reduced
HATCH = ((0, 0, 0), (84, 84, 84))  # two colours, so that no class's colour is mistaken for it
_GAP, _CAPTION, _HEADING = 12, 30, 48


def image_uri(image: NDArray[np.uint8]) -> str:
    """``[H, W, 3]`` uint8 as a PNG data URI, reduced to at most `LONGEST` pixels."""
    return _uri(Image.fromarray(reduced(image, Image.Resampling.BILINEAR)))


def label_uri(label: NDArray[np.uint8], palette: NDArray[np.uint8]) -> str:
    """``[H, W]`` classes as a palette PNG data URI; what is no class is hatched."""
    indices, colours = _hatched(reduced(label, Image.Resampling.NEAREST), palette)
    picture = Image.fromarray(indices)  # eight-bit grey, made a palette image by the next line
    picture.putpalette(colours.astype(np.uint8).tobytes())
    return _uri(picture)


def accuracy(prediction: NDArray[np.uint8], label: NDArray[np.uint8], num_classes: int) -> float:
    """Share of the labelled pixels that are right; NaN if no pixel is labelled."""
    valid = label < num_classes
    count = np.count_nonzero(valid)
    return float(np.count_nonzero((prediction == label) & valid) / count) if count else float("nan")


def prediction_grid(picture: Picture) -> tuple[list[str], list[str]]:
    """Networks and subsets of a sample's predictions, in order of first appearance."""
    models = list(dict.fromkeys(model for model, _ in picture.predictions))
    return models, list(dict.fromkeys(subset for _, subset in picture.predictions))


def main_subsets(subsets: Sequence[str]) -> list[str]:
    """The full set, every single modality, and what is left when the first one is missing."""
    full = max(subsets, key=len, default="")
    wanted = list(dict.fromkeys([full, *full, full[1:]]))
    return [subset for subset in wanted if subset in subsets]


def draw_pictures(report: RunReport) -> Image.Image:
    """All pictures on one sheet, every pixel doubled, with captions.

    Per sample a row of modalities and label, then one row per network with a column for each of
    `main_subsets`.

    Raises:
        ValueError: the report has no pictures.
    """
    if not report.pictures:
        raise ValueError("the report has no pictures to draw")
    blocks = [(picture.sample_id, _rows(picture, report.palette)) for picture in report.pictures]
    rows = [row for _, block in blocks for row in block]
    tiles = [tile for row in rows for tile in row.values()]
    down = _CAPTION + 2 * max(tile.shape[0] for tile in tiles) + _GAP
    across = 2 * max(tile.shape[1] for tile in tiles) + _GAP
    width = max(map(len, rows)) * across + _GAP
    height = len(blocks) * _HEADING + len(rows) * down + _GAP
    sheet = Image.new("RGB", (width, height), LIGHT["paper"])
    pen = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(15), ImageFont.load_default(19)
    top = 0
    for name, block in blocks:
        top += _HEADING
        pen.text((_GAP, top - 10), name, LIGHT["ink"], large, anchor="ls")
        for row in block:
            top += _CAPTION
            for column, (caption, tile) in enumerate(row.items()):
                left = _GAP + column * across
                pen.text((left, top - 6), caption, LIGHT["muted"], small, anchor="ls")
                double = Image.fromarray(tile.repeat(2, axis=0).repeat(2, axis=1))
                sheet.paste(double, (left, top))
            top += down - _CAPTION
    return sheet


def reduced(
    pixels: NDArray[np.uint8], how: Image.Resampling, longest: int = LONGEST
) -> NDArray[np.uint8]:
    """A picture whose longer side has at most ``longest`` pixels; smaller ones stay as they are."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((longest, longest), how)
    return np.asarray(picture)


def label_picture(
    label: NDArray[np.uint8], palette: NDArray[np.uint8], longest: int = LONGEST
) -> NDArray[np.uint8]:
    """``[H, W]`` classes in their colours, ``[h, w, 3]``; what is no class is hatched."""
    indices, colours = _hatched(reduced(label, Image.Resampling.NEAREST, longest), palette)
    chosen: NDArray[np.uint8] = colours[indices]
    return chosen


def _rows(picture: Picture, palette: NDArray[np.uint8]) -> list[dict[str, NDArray[np.uint8]]]:
    """Rows of captioned ``[h, w, 3]`` tiles of one sample."""
    inputs = {
        name: reduced(image, Image.Resampling.BILINEAR) for name, image in picture.images.items()
    }
    rows = [inputs | {"label": label_picture(picture.label, palette)}]
    models, subsets = prediction_grid(picture)
    for model in models:
        pairs = [(model, subset) for subset in main_subsets(subsets)]
        pairs = [pair for pair in pairs if pair in picture.predictions]
        rows.append({", ".join(p): label_picture(picture.predictions[p], palette) for p in pairs})
    return rows


def _hatched(
    label: NDArray[np.uint8], palette: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Palette indices with a diagonal hatch where there is no class, and the palette with it."""
    count = len(palette)
    down, across = np.indices(label.shape)
    stripe = (down + across) // 4 % 2
    indices = np.where(label < count, label, count + stripe).astype(np.uint8)
    return indices, np.concatenate([palette, np.array(HATCH)]).astype(np.uint8)


def _uri(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
