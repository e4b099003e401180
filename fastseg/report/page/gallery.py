"""The page's pictures: per sample what the sensors saw, the label, and every prediction."""

from __future__ import annotations

from markupsafe import Markup

from ..results import Picture, RunReport, by_model
from .markup import css, fill, missing, points, rgb
from .pictures import HATCH, accuracy, image_uri, label_uri, main_subsets, prediction_grid
from .theme import roles


def gallery(report: RunReport) -> Markup:
    """All samples with the legend of the class colours, and a switch per sensor.

    Every prediction is a picture of the page; the switches choose among them.
    """
    if not report.pictures:
        return missing("No pictures were taken in this run.")
    models = dict.fromkeys(m for p in report.pictures for m in prediction_grid(p)[0])
    colours = {name: css(role) for name, role in roles(models, report.compared).items()}
    return fill(
        "pictures.html",
        legend=list(zip(report.classes, map(rgb, report.palette), strict=True)),
        sensors=_sensors(report),
        scores=_scores(report),
        ignored=[colour for colour in HATCH if colour not in map(tuple, report.palette.tolist())],
        models=list(colours.items()),
        samples=[_sample(picture, report, colours) for picture in report.pictures],
    )


def _sensors(report: RunReport) -> dict[str, str]:
    """Letter of every sensor by its name; empty where no prediction has all of them."""
    for picture in report.pictures:
        full = max(prediction_grid(picture)[1], key=len, default="")
        if len(full) == len(picture.images):
            return dict(zip(picture.images, full, strict=True))
    return {}


def _scores(report: RunReport) -> dict[str, str]:
    """What the networks score with a subset of the sensors over the whole split, as text."""
    texts: dict[str, list[str]] = {}
    for model, group in by_model(report.results).items():
        for subset, result in group.items():
            texts.setdefault(subset, []).append(f"{model} {points(100 * result.miou_all)} mIoU")
    return {subset: ", ".join(parts) for subset, parts in texts.items()}


def _sample(picture: Picture, report: RunReport, colours: dict[str, str]) -> dict[str, object]:
    models, subsets = prediction_grid(picture)
    sensors = _sensors(report)

    def column(subset: str) -> tuple[str, list[tuple[str, str, float, str]]]:
        parts = []
        for model in models:
            if (classes := picture.predictions.get((model, subset))) is not None:
                share = accuracy(classes, picture.label, len(report.classes))
                parts.append((model, colours[model], share, label_uri(classes, report.palette)))
        return subset, parts

    first = main_subsets(subsets)
    others = [subset for subset in subsets if subset not in first]
    return {
        "name": picture.sample_id,
        "note": picture.note,
        "inputs": [
            (name, sensors.get(name, ""), image_uri(image))
            for name, image in picture.images.items()
        ],
        "label": label_uri(picture.label, report.palette),
        "subsets": subsets,
        "groups": [
            ("All sensors, each alone, and all but the first", list(map(column, first))),
            ("All other subsets", list(map(column, others))),
        ],
        # both rows share their columns, so that modalities stand above predictions
        "columns": max(len(picture.images) + 1, len(first)),
    }
