"""Draws and schedule of one step, as one small tensor that travels without a wait.

A Python number or list that indexes a tensor on a GPU is copied from pageable memory, and the host
waits for every such copy. So all numbers of a step are packed into pinned memory and copied once,
asynchronously. Code that reads them from the packed tensor alone can be captured as a CUDA graph:
what a replay draws is what the tensor then holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastseg.models.packing import Packing

_FIXED = 2  # noise seed and learning rate
PLACES = "places of images"
"""Name of a draw ``[2, M B]``: the places of a packing, padded with zeros."""

Place = tuple[str, int, tuple[int, ...]]
"""Name of a method's own draw, where it begins in the packed tensor, and its shape."""


@dataclass(frozen=True)
class Draws:
    """The draws of one step.

    Attributes:
        present: positions of the modalities that the network sees, ascending.
        modalities: number of modalities, M.
        seed: key of the noise.
        packed: int64 on the device: seed, learning rate, ``present`` padded to ``[M]``, a 1 for
            every modality that is left, ``[M, 1]`` or ``[M, B]``, and the method's own draws.
        columns: 1, or B where each sample has its own modalities.
        own: places of the method's own draws in ``packed``.
        groups: of the images that are encoded, see `fastseg.models.packing.Packing`; empty where
            all of the present modalities are.
        replayed: true if this code will serve other draws as well, with as many modalities: then
            nothing but ``packed`` may be read, of ``present`` the length, and ``groups``.
    """

    present: tuple[int, ...]
    modalities: int
    seed: int
    packed: Tensor
    columns: int = 1
    own: tuple[Place, ...] = ()
    groups: tuple[int, ...] = ()
    replayed: bool = False

    def __getitem__(self, name: str) -> Tensor:
        """A draw of the method's own, in the shape in which it was drawn; int64 on the device."""
        start, shape = next((start, shape) for key, start, shape in self.own if key == name)
        return self.packed[start : start + math.prod(shape)].view(shape)

    @property
    def size(self) -> int:
        """What the shapes of a step depend on: number of images, or of modalities."""
        return sum(self.groups) or len(self.present)

    @property
    def packing_keyword(self) -> dict[str, Packing]:
        """The keyword ``packing`` of a model; none where all present modalities are encoded."""
        if not self.groups:
            return {}
        return {"packing": Packing(self[PLACES][:, : sum(self.groups)], self.groups)}

    @property
    def noise_seed(self) -> int | Tensor:
        """The key of the noise, as a tensor of one element where it has to be read late."""
        return self.packed[:1] if self.replayed else self.seed

    @property
    def learning_rate(self) -> Tensor:
        """A float32 scalar on the device."""
        return _rate_in(self.packed)

    @property
    def kept(self) -> Tensor:
        """``[M, 1]``, or ``[M, B]`` for samples on their own: int64, 1 for a modality that is left.

        In a step that drops modalities of all samples alike they are not there to be marked.
        """
        start = _FIXED + self.modalities
        return self.packed[start : start + self.modalities * self.columns].view(
            self.modalities, self.columns
        )

    def of(self, x: Tensor) -> Tensor:
        """The present ones of ``x [M, ...]``.

        A view where they are all, or evenly spaced and this code serves no other subset; 13 of the
        15 subsets of four modalities are. Else a copy by an index that is on the device already.
        Images and features ``[M, B, C, h, w]`` with the channels last in memory stay so.
        """
        count = len(self.present)
        if count == self.modalities:
            return x
        if not self.replayed:
            first, last = self.present[0], self.present[-1]
            step = self.present[1] - first if count > 1 else 1
            if self.present == tuple(range(first, last + 1, step)):
                return x[first : last + 1 : step]
        rows = self.packed[_FIXED : _FIXED + count]
        # the copy is contiguous: let its axes be in the order of x's memory, which kernels rely on
        if x.ndim == 5 and (pixels := x.movedim(2, -1)).is_contiguous():
            return pixels.index_select(0, rows).movedim(-1, 2)
        return x.index_select(0, rows)


def pack(
    device: torch.device,
    own: Mapping[str, Tensor],
    *,
    modalities: int,
    present: Sequence[int],
    kept: Sequence[int] | Tensor | None = None,
    seed: int = 0,
    rate: float = 0.0,
    packing: Packing | None = None,
) -> Draws:
    """Draws on the device; the host does not wait.

    Args:
        device: device that the draws are copied to.
        own: the method's own draws, int64 on the host, by name.
        modalities: M.
        present: positions of the modalities that the network sees, ascending.
        kept: positions of those that are left; or marks ``[M, B]`` for samples on their own; all by
            default.
        seed: 63-bit key of the noise.
        rate: learning rate.
        packing: the images that are encoded, with marks on their own; all by default.
    """
    marks = kept
    if not isinstance(marks, Tensor):
        marks = torch.tensor([[int(kept is None or m in kept)] for m in range(modalities)])
    rows = [*present, *[0] * (modalities - len(present))]
    values = torch.cat([torch.tensor([seed, 0, *rows]), marks.flatten()])
    _rate_in(values).fill_(rate)
    places: list[Place] = []
    groups: tuple[int, ...] = ()
    if packing is not None:
        # as many entries in every step, for graphs
        padded = torch.zeros((2, marks.numel()), dtype=torch.int64)
        padded[:, : packing.places.shape[1]] = packing.places
        own, groups = {**own, PLACES: padded}, packing.groups
    start = len(values)
    for name, tensor in own.items():
        places.append((name, start, tuple(tensor.shape)))
        start += tensor.numel()
    packed = torch.cat([values, *(tensor.flatten() for tensor in own.values())])
    # a tensor of a shape alone, of which memory is counted, cannot be pinned
    if device.type == "cuda" and type(packed) is Tensor:
        packed = packed.pin_memory()
    packed = packed.to(device, non_blocking=True)
    return Draws(tuple(present), modalities, seed, packed, marks.shape[1], tuple(places), groups)


def _rate_in(packed: Tensor) -> Tensor:
    """The learning rate: a float32 in the first half of the second int64."""
    return packed[1:2].view(torch.float32)[0]
