"""The description of a data set in a config: read once, then kept with the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fastseg.config.run import TrainConfig
from fastseg.errors import listed
from fastseg.pipelines import DataConfig, DataError
from fastseg.pipelines.datasets.described.description import differences
from fastseg.pipelines.datasets.described.files import FILE, is_described, keep, plain_of
from fastseg.pipelines.tools.settings import as_path


def with_description(data: DataConfig) -> DataConfig:
    """The settings with the content of the file that ``data.dataset`` names, if it names one.

    A description that is kept already counts, unless it is that of another file.

    Raises:
        DataError: the file cannot be read, or is no description.
    """
    if not is_described(data.dataset):
        return replace(data, description={}) if data.description else data
    if data.description.get(FILE) == data.dataset:
        return data
    kept = keep(data.dataset)
    # whoever reads it may stand elsewhere
    kept[FILE] = str(as_path(data.dataset).absolute())
    return replace(data, dataset=kept[FILE], description=kept)


def set_description_aside(config: TrainConfig) -> TrainConfig:
    """The config without a kept description, whose keys are no options."""
    return replace(config, data=replace(config.data, description={}))


def put_description_back(config: TrainConfig, base: TrainConfig) -> TrainConfig:
    """The config with the description of ``base``, if it is still of the same data set."""
    if config.data.dataset != base.data.dataset:
        return config
    return replace(config, data=replace(config.data, description=base.data.description))


def changed_description(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys of two kept descriptions whose values differ, with both; their places do not count."""
    return differences(plain_of(old), plain_of(new))


def description_note(data: DataConfig) -> str:
    """What to say if the file is there and does not say what is kept; empty if nothing."""
    kept = data.description
    if not kept or not Path(data.dataset).is_file():
        return ""
    try:
        changed = changed_description(kept, keep(data.dataset))
    except DataError as error:
        return f"note: the run keeps its own description of the data; that of now is bad: {error}"
    if not changed:
        return ""
    return (
        f"note: {data.dataset} has changed since the run began ({listed(changed)}): the "
        "description that the run keeps counts"
    )
