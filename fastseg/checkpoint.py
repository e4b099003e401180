"""Files that survive a crash: weights with an identity, and training states that resume exactly.

Nothing here unpickles: tensors are stored as safetensors, everything else as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastseg.ema import WeightAverage
from fastseg.errors import CheckpointError
from fastseg.files import commit, sync
from fastseg.shards import (
    load_module_tensors,
    load_optimizer_tensors,
    module_tensors,
    optimizer_tensors,
)

_MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Identity:
    """What weights belong to; a file of another identity is refused."""

    network: str
    dataset: str
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    backbone: str
    embed_dim: int

    def differences(self, other: Identity) -> list[str]:
        """One line per field (the network's name aside) that differs."""
        lines = []
        for name in (f.name for f in fields(self) if f.name != "network"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                lines.append(f"{name}: {_brief(mine)} in the file, {_brief(theirs)} wanted")
        return lines


def _brief(value: object) -> str:
    if isinstance(value, tuple):
        names = " ".join(map(str, value[:6])) + (" ..." if len(value) > 6 else "")
        return f"{len(value)} ({names})"
    return str(value)


def save_weights(path: Path, module: nn.Module, identity: Identity, facts: dict[str, Any]) -> None:
    """Write the state dict of ``module`` as safetensors; the file appears whole or not at all."""
    tensors = module_tensors(module)
    metadata = {"fastseg": json.dumps(asdict(identity)), "facts": json.dumps(facts)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        _write_tensors(tensors, partial, metadata)
        commit(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_identity(path: Path) -> tuple[Identity, dict[str, Any]]:
    """Identity and facts of a weights file.

    Raises:
        CheckpointError: there is no such file or it was not written by `save_weights`.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}: give a .safetensors file of a finished stage")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        values = json.loads(metadata["fastseg"])
        values["classes"], values["modalities"] = (
            tuple(values["classes"]),
            tuple(values["modalities"]),
        )
        return Identity(**values), json.loads(metadata["facts"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a fastseg weights file ({error or type(error).__name__}); "
            "foreign checkpoints are read by python -m fastseg.train --model.weights"
        ) from None


def load_weights(path: Path, module: nn.Module, wanted: Identity) -> dict[str, Any]:
    """Load a weights file strictly into ``module``; returns the file's facts.

    Raises:
        CheckpointError: the file belongs to other data or another network; every difference is
            listed.
    """
    found, facts = read_identity(path)
    if differences := found.differences(wanted):
        raise CheckpointError(
            f"{path} does not fit this run:\n  "
            + "\n  ".join(differences)
            + "\nGive the weights of a run with the same data set, modalities and model."
        )
    module.load_state_dict(load_file(path))
    return facts


def save_state(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    average: WeightAverage | None = None,
    writes: bool = True,
) -> Path:
    """Write a training state to ``folder/step-XXXXXXXX``.

    Everything goes to a temporary folder first, then a manifest of sizes and hashes, then one
    rename: the state is complete or absent. Older states beyond ``keep`` are removed last.

    The files hold whole tensors, so any number of processes can read what any other wrote. All
    ranks call; the one with ``writes`` writes.
    """
    tensors = {"network": module_tensors(module), "optimizer": optimizer_tensors(optimizer)}
    if average is not None:
        tensors["average"] = average.tensors()
    final = folder / f"step-{state['step']:08d}"
    if not writes:
        return final
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, values in tensors.items():
            _write_tensors(values, partial / f"{name}.safetensors")
        (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        manifest = {path.name: _digest(path) for path in sorted(partial.iterdir())}
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in partial.iterdir():
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        commit(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in sorted(folder.glob("step-????????"))[:-keep]:
        shutil.rmtree(old)
    return final


def _write_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file; what the system refuses is an OSError that names it."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)|code: (\d+)", str(error))
        if code is None:
            raise
        number = int(code[1] or code[2])
        raise OSError(number, os.strerror(number), str(path)) from error


def newest_state(folder: Path, stage: str) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact state of a stage, or None. Damaged ones are reported and passed over."""
    for path in sorted(folder.glob("step-????????"), reverse=True):
        fault = _fault(path)
        if fault:
            print(f"warning: {path} is passed over: {fault}", flush=True)
            continue
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state["stage"] == stage:
            return path, state
    return None


def load_state(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None = None,
) -> None:
    """Put a state of `newest_state` back into a network, its optimizer and its average."""
    load_module_tensors(module, load_file(path / "network.safetensors"))
    load_optimizer_tensors(optimizer, load_file(path / "optimizer.safetensors"))
    if average is not None:
        average.load(load_file(path / "average.safetensors"))


def remove_states(folder: Path) -> None:
    """Remove all states, for instance once their stage is finished and its weights are written."""
    shutil.rmtree(folder, ignore_errors=True)


def _fault(path: Path) -> str | None:
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read ({error})"
    for name, digest in manifest.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _digest(path / name) != digest:
            return f"{name} is damaged"
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
