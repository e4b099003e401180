"""Load weights from files, whatever names their authors gave the tensors.

A file is read without running code from it and its layout is recognised by its names. Every tensor
of the model is looked up under its name in that layout, and the model is written to only if all of
them fit, or if partial loading is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, listed
from .describe import advice, describe
from .layouts import LAYOUTS, Piece
from .recognise import Found, choose
from .report import LoadReport
from .sensors import choices_of
from .state_dicts import WeightFile, open_weights

# published files carry heads that no model here has: ImageNet classifiers, the unused classifier
# of AnySeg and RobustSeg, and that of mmseg's decoders
_UNUSED = re.compile(r"(head|classifier|decode_head\.conv_seg)\.(weight|bias)")
_ENCODERS = re.compile(r"(encoder|encoders\.[^.]+|auxiliary(?=\.(patch_embed|block\d|norm\d)))\.")


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    partial: bool = False,
    encoder_only: bool = False,
    part: str | None = None,
) -> LoadReport:
    """Set a network from a file of any known layout; nothing that the file holds is run.

    Encoders of a sensor each take a shared encoder, all the same. Print the report: it says what
    was loaded, missing, unexpected and reshaped.

    Args:
        model: a `Segmenter`, or a `MixTransformer`. It is written to only if everything fits.
        path: a safetensors file, or one saved by torch; the content decides, not the name.
        partial: set what fits and leave the rest as it is: another number of classes leaves the
            classifier, another head width the head, a new sensor its own parts, with norms copied
            from another one where each sensor has its own.
        encoder_only: set the encoders alone, and drop what else the file has. Of CMNeXt it is the
            one of the hub, of CMX both.
        part: the network in a file of several, such as ``student``.

    Raises:
        CheckpointError: the file cannot be read, its layout is not known, it holds several networks
            and none is chosen, values are not finite, nothing fits at all; or, without ``partial``,
            tensors are missing, unexpected or of another shape.
    """
    model = bare(model)
    path = Path(path)
    if getattr(model, "frozen", False):
        raise CheckpointError(f"{path}: a frozen network takes no weights; load before freeze()")
    encoder_only |= _is_encoder(model)
    file = open_weights(path)
    found = _own(model, file) or choose(file, part)
    plan = _planned(model, file, found, partial=partial, encoder_only=encoder_only)
    tensors = file.read(found.tensors)
    values = plan.values(tensors)
    extra = [name for name in tensors if name not in plan.used]
    beside = [n for n in extra if _UNUSED.fullmatch(n) or (encoder_only and not _of(found, n))]
    unexpected = [name for name in extra if name not in beside]
    problems = {"missing": plan.missing, "unexpected": unexpected, "of another shape": plan.misfits}
    where = f"{path} ({found.layout.name} layout{found.part and ', ' + found.part})"
    if plan.not_finite:
        raise CheckpointError(
            f"{where} is damaged, or was trained until it broke; nothing was loaded\n  "
            f"{len(plan.not_finite)} not finite: {listed(plan.not_finite)}"
        )
    if not values or (any(problems.values()) and not partial):
        lines = [f"{len(keys)} {what}: {listed(keys)}" for what, keys in problems.items() if keys]
        raise CheckpointError(
            f"{where} does not fit the model; nothing was loaded\n  "
            + "\n  ".join(lines)
            + f"\nthe file holds {describe(found)}: {advice(model, found, encoder_only, problems)}"
        )
    model.load_state_dict(values, strict=False)
    return LoadReport(
        path, found.layout.name, found.part, len(values), tuple(plan.missing), tuple(plan.misfits),
        tuple(unexpected), tuple(beside), tuple(plan.reshaped), tuple(_notes(model, found, plan)),
        file.skipped,
    )  # fmt: skip


def bare(model: nn.Module) -> nn.Module:
    """The network in the wrappers of torch.compile and of data parallelism."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def names_here(model: nn.Module) -> dict[str, str]:
    """Names of the tensors of a network; those of an encoder by itself as if it were in one."""
    start = "encoder." if _is_encoder(model) else ""
    return {key: start + key for key in model.state_dict()}


def _is_encoder(model: nn.Module) -> bool:
    return "patch_embed1.proj.weight" in model.state_dict()


def _own(model: nn.Module, file: WeightFile) -> Found | None:
    """All tensors of a file that has exactly the names of a model, whichever that is."""
    keys = set(model.state_dict())
    if _is_encoder(model) or any(key.startswith("encoder.") for key in keys):
        return None
    matching = [place for place, tensors in file.places.items() if keys == set(tensors)]
    if not matching:
        return None
    return Found(LAYOUTS["fastseg"], False, matching[0], file.places[matching[0]])


@dataclass
class _Plan:
    """Where each tensor of a model comes from.

    Attributes:
        sources: pieces of the file by the model's name, the tensor there, and whether the file has
            a 1x1 convolution in place of a linear layer.
        copied: what was said of tensors that are copies.
    """

    sources: dict[str, tuple[tuple[Piece, ...], Tensor, bool]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    dtypes: set[torch.dtype] = field(default_factory=set)

    def values(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that fit, by the model's names; the others are noted."""
        found = {}
        for key, (pieces, want, kernel) in self.sources.items():
            value = _joined(pieces, tensors)
            names = " + ".join(piece.name for piece in pieces)
            if kernel and value.shape[2:] == (1, 1):
                value = value[..., 0, 0]
            if value.shape != want.shape or value.is_floating_point() != want.is_floating_point():
                self.misfits.append(f"{names} {_kind(value)} for {_kind(want)}")
                continue
            if not value.isfinite().all():
                self.not_finite.append(names)
            if len(pieces) > 1 or pieces[0].parts > 1 or kernel:
                self.reshaped.append(f"{key} from {names}")
            self.dtypes.add(value.dtype)
            found[key] = value
        return found


def _planned(
    model: nn.Module, file: WeightFile, found: Found, *, partial: bool, encoder_only: bool
) -> _Plan:
    """Look up the names of every tensor, and of what it may be a copy of instead."""
    plan, state = _Plan(), model.state_dict()
    choices = choices_of(model, file, found, partial)
    for key, name in names_here(model).items():
        if encoder_only and not _ENCODERS.match(name):
            continue
        pieces: tuple[Piece, ...] = ()
        for choice, said in choices(name, encoder_only):
            pieces = found.layout.pieces(choice, found.alone)
            if pieces and all(piece.name in found.tensors for piece in pieces):
                if said and said not in plan.copied:
                    plan.copied.append(said)
                plan.sources[key] = (pieces, state[key], found.layout.is_kernel(choice))
                break
            plan.used |= {piece.name for piece in pieces if choice == name}
        else:
            absent = [p.name for p in found.layout.pieces(name, found.alone)] or [name]
            gone = [n for n in absent if n not in found.tensors]
            # counts only what the running statistics, which are there, have seen
            if not name.endswith(".num_batches_tracked") or _at(found, name, "running_mean"):
                # what has the name may be another sensor's
                plan.missing += gone or [f"{name} of this sensor"]
            else:
                plan.copied.append("num_batches_tracked is in no file of its kind: left as it was")
            continue
        plan.used |= {piece.name for piece in pieces}
    return plan


def _at(found: Found, name: str, leaf: str) -> bool:
    """Whether a file lacks the neighbour of a tensor."""
    neighbour = f"{name.rpartition('.')[0]}.{leaf}"
    return any(p.name not in found.tensors for p in found.layout.pieces(neighbour, found.alone))


def _joined(pieces: tuple[Piece, ...], tensors: Mapping[str, Tensor]) -> Tensor:
    cut = []
    for piece in pieces:
        value = tensors[piece.name]
        if piece.parts > 1 and value.ndim:
            rows = len(value) // piece.parts
            value = value[piece.start * rows : piece.stop * rows]
        cut.append(value)
    if len(cut) == 1 or len({x.shape[1:] for x in cut}) > 1 or not cut[0].ndim:
        return cut[0]
    return torch.cat(cut)


def _of(found: Found, name: str) -> bool:
    """Whether a tensor of a file belongs to its encoder."""
    if found.alone or found.layout.name == "mit":
        return not name.startswith(("head.", "classifier.", "decode_head."))
    start = found.layout.encoder
    inner = name.removeprefix(start) if start and name.startswith(start) else None
    return inner is not None and not inner.startswith(("extra_", "FRMs.", "FFMs."))


def _notes(model: nn.Module, found: Found, plan: _Plan) -> list[str]:
    notes = list(dict.fromkeys(plan.copied))
    short = {dtype for dtype in plan.dtypes if dtype.is_floating_point} - {torch.float32}
    if short:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in short)
        notes.append(f"converted from {names}")
    branch = getattr(model, "auxiliary", None)
    several = len(getattr(model, "others", ())) > 1
    if found.layout.branches and several and getattr(branch, "scramble", True) is False:
        notes.append(
            "released weights of three or more sensors were trained with scramble=True "
            "(--model.scramble), and this model is built without it"
        )
    return notes


def _kind(x: Tensor) -> str:
    """Shape and, unless it is the usual one, type."""
    return f"{list(x.shape)}" + ("" if x.is_floating_point() else f" {x.dtype}")
