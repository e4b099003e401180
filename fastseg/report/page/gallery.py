"""The page's pictures: per sample what the sensors saw, the label, and every prediction."""

from __future__ import annotations

import math
from html import escape

from ..results import Picture, RunReport
from .markup import DASH, css, key, keys, missing, rgb
from .pictures import accuracy, image_uri, label_uri, prediction_grid
from .theme import roles


def gallery(report: RunReport) -> str:
    """All samples with the legend of the class colours."""
    if not report.pictures:
        return missing("No pictures were taken in this run.")
    legend = keys(zip(report.classes, map(rgb, report.palette), strict=True))
    return (
        "<p>First the inputs and the label (hatched where it is ignored), then for some subsets "
        "what each network predicts from them, with the share of labelled pixels it has right.</p>"
        f"\n{legend}{''.join(_sample(picture, report) for picture in report.pictures)}"
    )


def _sample(picture: Picture, report: RunReport) -> str:
    inputs = [_tile(name, image_uri(image)) for name, image in picture.images.items()]
    inputs.append(_tile("label", label_uri(picture.label, report.palette)))
    models, subsets = prediction_grid(picture)
    colours = roles(models, report.compared)
    tiles = []
    for subset in subsets:
        parts = []
        for model in models:
            prediction = picture.predictions.get((model, subset))
            if prediction is None:
                continue
            share = accuracy(prediction, picture.label, len(report.classes))
            parts.append(
                f"<figcaption><b>{escape(subset)}</b>{key(css(colours[model]))}"
                f"<span>{escape(model)}</span><span>{_percent(share)}</span></figcaption>"
                f"{_image(f'{model} with {subset}', label_uri(prediction, report.palette))}"
            )
        tiles.append(f"<figure>{''.join(parts)}</figure>")
    grid = f'<div class="tiles">{"".join(tiles)}</div>\n' if tiles else ""
    lack = "" if tiles else missing("No predictions for this sample.")
    # both rows share their columns, so that modalities stand above predictions
    columns = max(len(inputs), len(subsets))
    return (
        f'<div class="sample" style="--n:{columns}"><h3>{escape(picture.sample_id)}</h3>\n'
        f'<div class="tiles">{"".join(inputs)}</div>\n{grid}{lack}</div>\n'
    )


def _tile(caption: str, uri: str) -> str:
    text = f"<figcaption>{escape(caption)}</figcaption>"
    return f"<figure>{text}{_image(caption, uri)}</figure>"


def _image(text: str, uri: str) -> str:
    return f'<img alt="{escape(text)}" src="{uri}">'


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%" if math.isfinite(share) else DASH
