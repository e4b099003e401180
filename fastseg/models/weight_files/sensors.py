"""What a network of other sensors takes from a file: its own, or a copy of another one's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import nn

from ...pipelines.tools.json_values import json_values
from .recognise import Found
from .state_dicts import WeightFile

_OWN_PART = re.compile(r"(auxiliary\.(?:embeds\.\d|hubs\.\d)\.(norms|scores)\.)(\d+)(?=\.)")

Choices = Callable[[str, bool], list[tuple[str, str]]]
"""From a name here, and whether encoders alone are wanted, to the names here of what may be taken
for it, the first one that the file has, and what to say of that."""


def choices_of(model: nn.Module, file: WeightFile, found: Found, partial: bool) -> Choices:
    """What each tensor of a model may be taken from.

    A sensor's own encoder may be a copy of a shared one. Parts of each sensor are found by its name
    where the file tells the names, else by position. With ``partial`` a new sensor's encoder, or
    its norms in CMNeXt, are those of the first sensor of the file that has such parts.
    """
    own = [m[1] for name in found.tensors if (m := re.match(r"encoders\.([^.]+)\.", name))]
    places = _places(
        getattr(model, "modalities", ()), getattr(model, "hub", 0), modalities_of(file)
    )

    def choices(name: str, encoder_only: bool) -> list[tuple[str, str]]:
        if match := re.match(r"encoders\.([^.]+)\.", name):
            rest = name[match.end() :]
            shared = (f"encoder.{rest}", "each sensor's own encoder is a copy of the shared one")
            if not own or not partial:
                return [(name, ""), shared]
            said = f"the encoder of {match[1]} is a copy of that of {own[0]}"
            return [(name, ""), shared, (f"encoders.{own[0]}.{rest}", said)]
        if encoder_only and name.startswith("auxiliary."):
            inner = name.removeprefix("auxiliary.")
            return [(name, ""), (f"encoder.{inner}", "the second branch is a copy of the encoder")]
        if match := _OWN_PART.match(name):
            start, end, place = match[1], name[match.end() :], places(int(match[3]))
            known = [] if place is None else [(f"{start}{place}{end}", "")]
            said = "norms of sensors that the file lacks are copies of those of its first one"
            copied = [(f"{start}0{end}", said)] if partial and match[2] == "norms" else []
            return known + copied
        return [(name, "")]

    return choices


def modalities_of(file: WeightFile) -> tuple[str, ...]:
    """Names of the sensors that a file of a run was trained with; none in files of others."""
    try:
        names = json_values(file.metadata.get("fastseg", "{}")).get("modalities", [])
    except (ValueError, AttributeError):
        return ()
    whole = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if whole else ()


def _places(here: Sequence[str], hub: int, there: Sequence[str]) -> Callable[[int], int | None]:
    """From the position of an auxiliary sensor of a model to that in a file."""
    if not here or not there or here[hub] != there[0]:
        # the hub of the file is not its first one, or the names are not known
        return lambda place: place
    others = [name for position, name in enumerate(here) if position != hub]
    positions = {name: place for place, name in enumerate(there[1:])}
    return lambda place: positions.get(others[place])
