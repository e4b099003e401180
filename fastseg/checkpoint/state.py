"""The training states of a run: written whole, checked before use, kept in small number."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastseg.checkpoint.tensor_file import misfits, write_tensors
from fastseg.console import say
from fastseg.distributed.sharded_tensors import (
    load_module_tensors,
    load_optimizer_tensors,
    module_tensors,
    optimizer_tensors,
)
from fastseg.errors import listed
from fastseg.models.parameter_groups import parameter_groups
from fastseg.pipelines.tools.whole_files import commit, remove, sync, unfinished

_MANIFEST, _STATE = "MANIFEST.json", "state.json"
_NETWORK, _OPTIMIZER, _AVERAGE = (f"{x}.safetensors" for x in ("network", "optimizer", "average"))
_NUMBER = (int, float)
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


class Average(Protocol):
    """Averaged weights, such as `fastseg.engine.optim.weight_average.WeightAverage`."""

    def tensors(self) -> dict[str, Tensor]:
        """The full averages by parameter name, on the CPU; collective."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`."""


class TrainingStates:
    """The folder of a run's training states, ``step-XXXXXXXX`` after so many steps of a stage.

    A state is intact if its manifest lists all its files with their SHA-256 and its ``state.json``
    has every field. What was found, or written by this process, is remembered with the size and
    time of the files: a state that is kept is read once, not at every save.

    Args:
        folder: need not exist; a link to another folder stays one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._faults: dict[Path, tuple[object, str | None]] = {}
        self._stuck: set[Path] = set()

    def save(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        keep: int,
        average: Average | None = None,
        writes: bool = True,
    ) -> Path:
        """Write a state; of the others, only ``keep - 1`` intact ones of its stage stay.

        Everything goes to a temporary folder first, then a manifest of sizes and hashes, then one
        rename: the state is complete or absent. Older states are removed last; what cannot be
        removed is reported.

        The files hold whole tensors, so any number of processes can read what any other wrote. All
        ranks call; the one with ``writes`` writes.
        """
        tensors = {_NETWORK: module_tensors(module), _OPTIMIZER: optimizer_tensors(optimizer)}
        if average is not None:
            tensors[_AVERAGE] = average.tensors()
        final = self.folder / f"step-{state['step']:08d}"
        if not writes:
            return final
        partial = final.with_name(f"{final.name}.partial")
        self._remove(partial)
        partial.mkdir(parents=True)
        try:
            for name, values in tensors.items():
                write_tensors(values, partial / name)
            (partial / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            manifest = {path.name: _digest(path) for path in sorted(partial.iterdir())}
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for path in partial.iterdir():
                sync(path)
            self._remove(final)
            commit(partial, final)
        finally:
            self._remove(partial)
        self._faults[final] = _stamp(final), None
        self._retire(final, state["stage"], keep)
        return final

    def newest(
        self, stage: str, network: Callable[[], nn.Module], averaged: bool = False
    ) -> tuple[Path, dict[str, Any]] | None:
        """The newest intact state of a stage that fits, or None.

        What is damaged or does not fit is reported and passed over.

        Args:
            stage: states of others are left aside.
            network: makes a network like that of the states; called if there is one to compare.
            averaged: true if the states have to have averaged weights.
        """
        passed = 0
        for path in self._paths():
            if _stage_of(path) not in (stage, None):
                continue
            fault = self._fault(path) or _misfit(path, network(), averaged)
            if fault is None:
                state: dict[str, Any] = _read_json(path / _STATE)
                return path, state
            self._faults[path] = _stamp(path), fault
            say(f"warning: {path} is passed over: {fault}")
            passed += 1
        if passed:
            say(
                f"warning: none of the {passed} states of the stage {stage} in {self.folder} can "
                "be used: the stage starts again at step 0"
            )
        return None

    def remove(self) -> None:
        """Remove all states, for instance once their stage is finished and its weights written."""
        for path in [*self._paths(), *unfinished(self.folder)]:
            self._remove(path)
        if self.folder.is_dir() and not self.folder.is_symlink() and not any(self.folder.iterdir()):
            self._remove(self.folder)

    def _paths(self) -> list[Path]:
        """All states, whatever their stage and condition, the newest first."""
        found = [p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)

    def _retire(self, newest: Path, stage: str, keep: int) -> None:
        others = [path for path in self._paths() if path != newest]
        useful = [p for p in others if _stage_of(p) == stage and self._fault(p) is None]
        useless = [path for path in others if path not in useful]
        for path in [*useless, *useful[keep - 1 :]]:
            self._remove(path)

    def _fault(self, path: Path) -> str | None:
        """Reason why a state is not intact, or None; read again only if its files have changed."""
        stamp = _stamp(path)
        if self._faults.get(path, (None, None))[0] != stamp:
            self._faults[path] = stamp, _examine(path)
        return self._faults[path][1]

    def _remove(self, path: Path) -> None:
        reason = remove(path)
        if reason and path not in self._stuck:
            self._stuck.add(path)
            say(f"warning: a training state that is not needed stays: {reason}; remove it by hand")


def load_state(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None = None,
) -> None:
    """Put a state of `TrainingStates.newest` back into a network, its optimizer and its average."""
    load_module_tensors(module, load_file(path / _NETWORK))
    load_optimizer_tensors(optimizer, load_file(path / _OPTIMIZER))
    if average is not None:
        average.load(load_file(path / _AVERAGE))


def _examine(path: Path) -> str | None:
    """Reason why a state is not what was written, or None if it is."""
    try:
        manifest = _read_json(path / _MANIFEST)
        needed = {_STATE, _NETWORK, _OPTIMIZER}
        if not isinstance(manifest, dict) or not needed <= manifest.keys():
            return f"{_MANIFEST} does not list {listed(sorted(needed))}"
        for name, digest in manifest.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if _digest(path / name) != digest:
                return f"{name} is damaged"
        return _wrong_field(_read_json(path / _STATE), int(path.name.removeprefix("step-")))
    except (OSError, ValueError) as error:
        return f"it cannot be read ({error})"


def _wrong_field(state: Any, step: int) -> str | None:
    if not isinstance(state, dict):
        return f"{_STATE} is no object"
    for name, kinds in _FIELDS.items():
        if name not in state:
            return f"{_STATE} lacks the field {name}"
        if type(state[name]) not in kinds:
            return f"{_STATE} has {name} {state[name]!r}"
    scale = state["loss_scale"]
    if scale is not None and not all(
        type(scale.get(name)) in _NUMBER for name in ("scale", "good_steps")
    ):
        return f"{_STATE} has loss_scale {scale!r}"
    if state["step"] != step:
        return f"{_STATE} is that of step {state['step']}"
    return None


def _misfit(path: Path, network: nn.Module, averaged: bool) -> str | None:
    """Reason why an intact state's tensors cannot continue a network like this one, or None."""
    parameters = dict(network.named_parameters())
    wanted: dict[str, Mapping[str, Tensor]] = {_NETWORK: network.state_dict()}
    if averaged:
        wanted[_AVERAGE] = parameters
    for name, tensors in wanted.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if lines := misfits(load_file(path / name), tensors):
            return f"{name} does not fit the network ({'; '.join(lines)})"
    slots: dict[str, list[str]] = {}
    found = load_file(path / _OPTIMIZER)
    for key in found:
        index, _, slot = key.partition(".")
        slots.setdefault(slot, []).append(index)
    order = [p for group in parameter_groups(network) for p in group.parameters]
    # parameters without a gradient so far have no moments, such as those of a modality that was
    # not drawn yet
    known = {index for indices in slots.values() for index in indices}
    for slot, indices in slots.items():
        if set(indices) != known or not known <= set(map(str, range(len(order)))):
            return f"{_OPTIMIZER} has {slot} of other parameters than the network"
        for index in indices:
            if found[f"{index}.{slot}"].shape not in (order[int(index)].shape, torch.Size()):
                return f"{_OPTIMIZER} has {slot} of another shape than the network"
    return None if slots else f"{_OPTIMIZER} is empty"


def _stage_of(path: Path) -> str | None:
    """Stage that a state names, believed only to leave the state aside; None if it names none."""
    try:
        stage = _read_json(path / _STATE)["stage"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stage if isinstance(stage, str) else None


def _stamp(path: Path) -> object:
    """Value that changes when a file of a state is replaced, cut or written to."""
    facts = [(p.name, p.lstat()) for p in sorted(path.iterdir())] if path.is_dir() else []
    return [(name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in facts]


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
