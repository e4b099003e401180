"""A description to the spec that loaders, checks, the cache and the scores read."""

from __future__ import annotations

from pathlib import PurePosixPath

from ..spec import (
    ILLEGAL,
    ConditionSpec,
    DatasetSpec,
    Decoder,
    FileSpec,
    LabelSpec,
    ModalitySpec,
    label_table,
)
from .description import Description, LabelText, SensorText
from .templates import IMAGES, fields, folder_of

_IGNORED = 255
"""Train id of pixels that are neither trained on nor scored."""


def build_spec(description: Description, origin: str) -> DatasetSpec:
    """The spec of a description.

    Args:
        description: checked.
        origin: file that it was read from, for messages.
    """
    first = description.sensors[0].files
    splits = description.splits
    return DatasetSpec(
        name=description.name,
        path_template=first,
        sample_id="/".join(f"{{{name}}}" for name in fields(first)),
        modalities=tuple(map(_modality, description.sensors)),
        label=_label(description),
        classes=tuple(each.name for each in description.classes),
        palette=tuple(each.colour for each in description.classes),
        splits=splits.names,
        split_list="{split}" if splits.lists else "",
        list_line=splits.line,
        split_paths=tuple((splits.folders or splits.lists).items()),
        shares=tuple(splits.shares.items()),
        share_seed=splits.seed,
        share_group=splits.group,
        conditions=tuple(ConditionSpec(*pair) for pair in description.conditions.items()),
        origin=origin,
        ignore_index=_IGNORED,
    )


def _file(template: str) -> FileSpec:
    path = PurePosixPath(template)
    return FileSpec(folder_of(template), suffix=path.suffix, path_template=template)


def _modality(sensor: SensorText) -> ModalitySpec:
    suffix = PurePosixPath(sensor.files).suffix.lower()
    decoder: Decoder = "image" if suffix in IMAGES else "array"
    first, second, third = sensor.channels
    return ModalitySpec(
        name=sensor.name,
        letter=sensor.letter,
        files=(_file(sensor.files),),
        sensor=sensor.kind,
        decoder=decoder,
        bits=sensor.bits or (8,),
        channels=(first, second, third),
        interpolation=sensor.interpolation,
        scale=sensor.scale,
        offset=sensor.offset,
        unit=sensor.unit,
        mean=sensor.mean,
        std=sensor.std,
        empty=sensor.empty if decoder == "array" else int(sensor.empty),
        shown=sensor.shown,
        any_size=sensor.any_size,
    )


def _label(description: Description) -> LabelSpec:
    label = description.label
    file = _file(label.files)
    other = _IGNORED if label.others == "ignored" else ILLEGAL
    if label.coding == "colours":
        colours = {each.colour: n for n, each in enumerate(description.classes)}
        colours |= dict.fromkeys(map(tuple, label.ignored), _IGNORED)
        return LabelSpec(
            file,
            label_table({}),
            coding="colours",
            colours=tuple(colours.items()),
            other_colours=other,
        )
    return LabelSpec(file, _table(description, label, other), coding=label.coding)


def _table(description: Description, label: LabelText, other: int) -> tuple[int, ...]:
    ids = dict.fromkeys(range(256), other) | dict.fromkeys(label.ignored, _IGNORED)
    for train_id, each in enumerate(description.classes):
        ids |= dict.fromkeys(each.ids, train_id)
    return label_table(ids)
