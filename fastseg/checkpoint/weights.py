"""Weights files with an identity and a checksum.

Nothing here unpickles: tensors are stored as safetensors, everything else as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from fastseg.checkpoint.tensor_file import misfits, not_finite, write_tensors
from fastseg.distributed.sharded_tensors import module_tensors
from fastseg.errors import CheckpointError, listed
from fastseg.models import Segmenter
from fastseg.pipelines.tools.json_values import json_values
from fastseg.pipelines.tools.tensor_digest import tensors_digest
from fastseg.pipelines.tools.whole_files import commit

_CONSTANTS = "constants"


@dataclass(frozen=True)
class Identity:
    """Network, data set and model of weights; a file of another identity is refused."""

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
    """Write the state dict of ``module`` as safetensors; the file appears whole or not at all.

    Its metadata hold the identity, the facts, the `tensors_digest` of the tensors, and the digests
    of files that the network needs besides, see `Segmenter.constants_of_files`.

    Raises:
        CheckpointError: a tensor is not finite; nothing is written.
    """
    tensors = module_tensors(module)
    if bad := not_finite(tensors):
        raise CheckpointError(
            f"the {identity.network} has values that are not finite in {listed(bad)}: {path} is "
            "not written; start anew with --fresh and a lower learning rate"
        )
    metadata = {"fastseg": json.dumps(asdict(identity)), "facts": json.dumps(facts)}
    metadata["sha256"] = tensors_digest(tensors)
    if constants := constants_of(module):
        metadata[_CONSTANTS] = json.dumps(constants)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        write_tensors(tensors, partial, metadata)
        commit(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_identity(path: Path) -> tuple[Identity, dict[str, Any]]:
    """Identity and facts of a weights file.

    Raises:
        CheckpointError: there is no such file or it was not written by `save_weights`.
    """
    try:
        metadata = _metadata(path)
        return _identity(json_values(metadata["fastseg"])), _facts(json.loads(metadata["facts"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(_foreign(path, error)) from None


def weights_digest(path: Path) -> str:
    """The `tensors_digest` of a weights file: its checksum, or computed where it has none.

    Raises:
        CheckpointError: there is no such file, or it is none of safetensors.
    """
    return _metadata(path).get("sha256") or tensors_digest(load_file(path))


def fact(path: Path, facts: dict[str, Any], name: str, kind: type) -> Any:
    """The value of one of the facts of a weights file.

    Raises:
        CheckpointError: the fact is missing or is no ``kind``.
    """
    value = facts.get(name)
    if type(value) is not kind:
        raise CheckpointError(
            f"{path} does not say the {name} that it was trained with (found {value!r}, expected "
            f"{kind.__name__}): give a file that a run has written"
        )
    return value


def stage_of(path: Path, stages: Sequence[str]) -> int:
    """Position of the stage that wrote a weights file among those of its run.

    Raises:
        CheckpointError: the file cannot be read, or names none of them.
    """
    stage = fact(path, read_identity(path)[1], "stage", str)
    if stage not in stages:
        raise CheckpointError(
            f"{path} was written by a stage {stage!r}, this run has {', '.join(stages)}: move the "
            "file away, or use another --name"
        )
    return stages.index(stage)


def load_weights(path: Path, module: nn.Module, wanted: Identity, role: str | None = None) -> bool:
    """Load a weights file strictly into ``module``, which is written to only if all fits.

    Args:
        path: written by `save_weights`.
        module: has the names, shapes and dtypes of the file.
        wanted: identity that the weights must have, the network's name aside.
        role: the network's name that the file has to have; None takes any.

    Returns:
        Whether the file has a checksum to compare; those of earlier versions have none.

    Raises:
        CheckpointError: the file belongs to other data or another network (every difference is
            listed), its tensors do not fit, are not finite or are not those that were written.
    """
    found, _ = read_identity(path)
    differences = found.differences(wanted)
    if role is not None and found.network != role:
        differences.insert(0, f"network: {found.network} in the file, {role} wanted")
    if differences:
        raise CheckpointError(
            f"{path} does not fit this run:\n  "
            + "\n  ".join(differences)
            + "\nGive the weights of a run with the same data set, modalities and model"
            + (f", its {role}.safetensors." if role else ".")
        )
    try:
        kept = _facts(json_values(_metadata(path).get(_CONSTANTS, "{}")))
    except ValueError as error:
        raise CheckpointError(_foreign(path, error)) from None
    check_constants(path, {name: str(kept[name]) for name in kept}, constants_of(module))
    tensors = load_file(path)
    checksum = _metadata(path).get("sha256")
    if checksum is not None and checksum != tensors_digest(tensors):
        raise CheckpointError(
            f"{path} is damaged: its tensors are not those that were written; restore it from a "
            "copy, or remove it and let its stage run again"
        )
    problems = misfits(tensors, module.state_dict())
    if bad := not_finite(tensors):
        problems.append(f"{len(bad)} not finite: {listed(bad)}")
    if problems:
        raise CheckpointError(
            f"{path} does not fit the network; nothing was loaded\n  "
            + "\n  ".join(problems)
            + "\nGive a weights file that a run has written."
        )
    module.load_state_dict(tensors)
    return checksum is not None


def constants_of(module: nn.Module) -> dict[str, str]:
    """Digests of files that the networks in a module need beside their weights, by name."""
    parts = [m for m in module.modules() if isinstance(m, Segmenter)]
    return {name: digest for m in parts for name, digest in m.constants_of_files().items()}


def check_constants(path: Path, kept: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse weights that belong to other files than those at hand.

    Args:
        path: where the weights are.
        kept: `constants_of` the network that they were trained in.
        now: that of the network at hand.

    Raises:
        CheckpointError: they differ.
    """
    names = [name for name in {**kept, **now} if kept.get(name) != now.get(name)]
    if not names:
        return
    lines = [
        f"--model.{name}: {kept.get(name, 'none')[:12]} with the weights, "
        f"{now.get(name, 'none')[:12]} at hand"
        for name in names
    ]
    raise CheckpointError(
        f"{path} was trained with other files than those at hand (digests):\n  "
        + "\n  ".join(lines)
        + f"\nGive the ones that it was trained with: --model.{names[0]} DIR"
    )


def _metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}: give a .safetensors file of a finished stage")
    # safetensors reports a file that may not be read without its name
    path.open("rb").close()
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(_foreign(path, error)) from None


def _foreign(path: Path, error: Exception) -> str:
    why = f"no {error} in its metadata" if isinstance(error, KeyError) else error
    return (
        f"{path} is not a fastseg weights file ({why}); "
        "foreign checkpoints are read by python -m fastseg.train --model.weights"
    )


def _identity(values: dict[str, Any]) -> Identity:
    """The identity in a file's metadata; a ValueError or TypeError says what is wrong with it."""
    names = ("classes", "modalities")
    for name in names:
        if not isinstance(values[name], list) or not all(isinstance(x, str) for x in values[name]):
            raise ValueError(f"{name} is no list of names")
    identity = Identity(**{**values, **{name: tuple(values[name]) for name in names}})
    if not isinstance(identity.embed_dim, int):
        raise ValueError("embed_dim is no integer")
    for name in ("network", "dataset", "backbone"):
        if not isinstance(getattr(identity, name), str):
            raise ValueError(f"{name} is no name")
    return identity


def _facts(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"facts are {type(values).__name__}, not an object")
    return values
