"""Whether a training state is what was written, and whether it can continue a network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.checkpoint.contents import (
    AVERAGE,
    NETWORK,
    OPTIMIZER,
    averaged_parameters,
    network_tensors,
)
from fastseg.checkpoint.state_files import StateFiles
from fastseg.checkpoint.tensor_file import misfits
from fastseg.errors import listed
from fastseg.models.parameter_groups import parameter_groups
from fastseg.pipelines.tools.json_values import json_values

MANIFEST, STATE = "MANIFEST.json", "state.json"
_NUMBER = (int, float)
_COUNTS = 5
"""Numbers of a row of ``meter`` before the sums of the step's values."""
# what every state says, and the types that it may have
_FIELDS: dict[str, tuple[type, ...]] = {
    "stage": (str,),
    "step": (int,),
    "fingerprint": (str,),
    "skipped_in_row": _NUMBER,
    "loss_scale": (dict, type(None)),
    "parallel": (str,),
    "processes": (int,),
    "optimizer": (str,),
}


def examine(path: Path) -> str | None:
    """Reason why a state is not what was written, or None if it is."""
    try:
        manifest = read_json(path / MANIFEST)
        if not isinstance(manifest, dict) or STATE not in manifest:
            return f"{MANIFEST} does not list {STATE}"
        for name, digest in manifest.items():
            if Path(name).name != name:
                return f"{MANIFEST} names {name!r}, which is no file of its folder"
            if not (path / name).is_file():
                return f"{name} is missing"
            if file_digest(path / name) != digest:
                return f"{name} is damaged"
        if unlisted := StateFiles(path).files() - manifest.keys():
            return f"{MANIFEST} does not list {listed(sorted(unlisted))}"
        return _wrong_field(read_json(path / STATE), int(path.name.removeprefix("step-")))
    except (OSError, ValueError) as error:
        return f"it cannot be read ({error})"


def misfit(path: Path, network: nn.Module, averaged: bool) -> str | None:
    """Reason why an intact state's tensors cannot continue a network like this one, or None."""
    files = StateFiles(path)
    wanted: dict[str, Mapping[str, Tensor]] = {NETWORK: network_tensors(network)}
    if averaged:
        wanted[AVERAGE] = averaged_parameters(network)
    for kind, tensors in wanted.items():
        if kind not in files.tensors:
            return f"there is no {kind}"
        if lines := misfits(files.kinds(kind), tensors):
            return f"the {kind} does not fit ({'; '.join(lines)})"
    slots: dict[str, list[str]] = {}
    found = files.kinds(OPTIMIZER)
    for key in found:
        index, dot, slot = key.partition(".")
        if not dot:
            return f"the optimizer has {key!r}, which is of no parameter"
        slots.setdefault(slot, []).append(index)
    order = [p for group in parameter_groups(network) for p in group.parameters]
    # parameters without a gradient so far have no moments, such as those of a modality that was
    # not drawn yet
    known = {index for indices in slots.values() for index in indices}
    for slot, indices in slots.items():
        if set(indices) != known or not known <= set(map(str, range(len(order)))):
            return f"the optimizer has {slot} of other parameters than the network"
        for index in indices:
            if found[f"{index}.{slot}"].shape not in (order[int(index)].shape, torch.Size()):
                return f"the optimizer has {slot} of another shape than the network"
    return None if slots else "the optimizer is empty"


def stage_of(path: Path) -> str | None:
    """Stage that a state names, believed only to leave the state aside; None if it names none."""
    try:
        stage = read_json(path / STATE)["stage"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stage if isinstance(stage, str) else None


def stamp(path: Path) -> object:
    """Value that changes when a file of a state is replaced, cut or written to."""
    facts = [(p.name, p.lstat()) for p in sorted(path.iterdir())] if path.is_dir() else []
    return [(name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in facts]


def read_json(path: Path) -> Any:
    """Content of a JSON file."""
    return json_values(path.read_text(encoding="utf-8"))


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _wrong_field(state: Any, step: int) -> str | None:
    if not isinstance(state, dict):
        return f"{STATE} is no object"
    for name, kinds in _FIELDS.items():
        if name not in state:
            return f"{STATE} lacks the field {name}"
        if type(state[name]) not in kinds:
            return f"{STATE} has {name} {state[name]!r}"
    scale = state["loss_scale"]
    if scale is not None and not all(
        type(scale.get(name)) in _NUMBER for name in ("scale", "good_steps")
    ):
        return f"{STATE} has loss_scale {scale!r}"
    if state["step"] != step:
        return f"{STATE} is that of step {state['step']}"
    return None if _is_log(state) else f"{STATE} has sums of the log that no step leaves"


def _is_log(state: Mapping[str, Any]) -> bool:
    """Whether the sums since the last row of the log are as `StepLog` writes them, or not there."""
    names, rows = state.get("values", []), state.get("meter", [])
    seen = state.get("modalities", {})
    if not (isinstance(names, list) and isinstance(rows, list) and isinstance(seen, dict)):
        return False
    numbers = [*seen.values()]
    for row in rows:
        # replaced samples, then the four counts of `Meter`, then a sum for each name
        if not isinstance(row, list) or len(row) != _COUNTS + len(names):
            return False
        numbers += row
    return all(isinstance(name, str) for name in names) and all(
        type(number) in _NUMBER for number in numbers
    )
