"""One sample on one sheet: all modalities, the label in its colours, and a legend."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastseg.pipelines.datasets.split_files import SplitFiles
from fastseg.pipelines.decode.by_spec import decode_modality
from fastseg.pipelines.inspection.display import picture, to_values
from fastseg.pipelines.loaders.samples import read_label
from fastseg.pipelines.synthetic import shown_name
from fastseg.pipelines.tools.names import readable
from fastseg.report.page.pictures import label_picture, reduced
from fastseg.report.page.theme import LIGHT

_GAP, _CAPTION, _HEADING, _ROW = 12, 40, 44, 22
_COLUMNS = 3
_NARROWEST = 340
"""Pixels of a column of pictures, for its captions."""
_LEGEND = 260
"""Pixels of a column of the legend."""


def draw_sheet(files: SplitFiles, index: int, longest: int = 512) -> Image.Image:
    """Every modality of a sample as stored, its label, and the classes in it by their area.

    Args:
        files: the split.
        index: of the sample.
        longest: pixels of a tile's longer side; smaller images are not enlarged.

    Raises:
        DataError: a file cannot be used.
    """
    tiles = _modality_tiles(files, index, longest)
    label = read_label(files, index)
    palette = np.array(files.spec.palette, np.uint8)
    size = f"{label.shape[1]} x {label.shape[0]}"
    tiles.append((f"label, {size}", "", label_picture(label, palette, longest)))

    columns = min(_COLUMNS, len(tiles))
    across = max(_NARROWEST, *(tile.shape[1] for *_, tile in tiles)) + _GAP
    down = max(tile.shape[0] for *_, tile in tiles) + _CAPTION + _GAP
    legend = _legend(files, label)
    width = columns * across + _GAP
    per_row = (width - _GAP) // _LEGEND
    top = _HEADING + math.ceil(len(tiles) / columns) * down
    height = top + math.ceil(len(legend) / per_row) * _ROW + _GAP
    sheet = Image.new("RGB", (width, height), LIGHT["paper"])
    pen = ImageDraw.Draw(sheet)
    small, large = ImageFont.load_default(13), ImageFont.load_default(17)

    name = shown_name(files.spec.name, files.root)
    title = f"{name} {files.split}: {readable(files.sample_ids[index])}"
    pen.text((_GAP, _HEADING - 14), title, LIGHT["ink"], large, anchor="ls")
    for position, (caption, values, tile) in enumerate(tiles):
        left = _GAP + position % columns * across
        upper = _HEADING + position // columns * down
        pen.text((left, upper + 14), caption, LIGHT["ink"], small, anchor="ls")
        pen.text((left, upper + 31), values, LIGHT["muted"], small, anchor="ls")
        sheet.paste(Image.fromarray(tile), (left, upper + _CAPTION))
    for position, (colour, text) in enumerate(legend):
        left = _GAP + position % per_row * _LEGEND
        upper = top + position // per_row * _ROW
        pen.rectangle((left, upper, left + 14, upper + 14), fill=colour, outline=LIGHT["line"])
        pen.text((left + 22, upper + 12), text, LIGHT["ink"], small, anchor="ls")
    return sheet


def _modality_tiles(
    files: SplitFiles, index: int, longest: int
) -> list[tuple[str, str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]]:
    """Caption, range of values and picture of each modality."""
    tiles = []
    for modality in files.modalities:
        codes = decode_modality(files.paths(index, modality.files), files.spec, modality)
        values = to_values(modality, codes)
        ranges = ", ".join(f"{plane.min():.3g} to {plane.max():.3g}" for plane in values)
        size = f"{codes.shape[2]} x {codes.shape[1]}"
        shown = reduced(picture(modality, values), Image.Resampling.BILINEAR, longest)
        caption = f"{modality.name} ({modality.letter}), {size}, {modality.dtype}"
        tiles.append((caption, f"{ranges} {modality.unit}".rstrip(), shown))
    return tiles


def _legend(
    files: SplitFiles, label: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> list[tuple[tuple[int, int, int] | str, str]]:
    """Colour and text of the classes in the label, the largest first, then of what is ignored."""
    counts = np.bincount(label.ravel(), minlength=256)
    rows: list[tuple[tuple[int, int, int] | str, str]] = []
    for train_id in np.argsort(-counts[: files.spec.num_classes], kind="stable").tolist():
        if counts[train_id]:
            share = 100 * counts[train_id] / label.size
            name = files.spec.classes[train_id]
            rows.append((files.spec.palette[train_id], f"{train_id} {name} {share:.2f} %"))
    ignored = counts[files.spec.ignore_index]
    if ignored:
        rows.append((LIGHT["ink"], f"ignored (hatched) {100 * ignored / label.size:.2f} %"))
    return rows
