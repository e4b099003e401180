"""Tensors that are cut over ranks: their local part, who holds which rows, and the whole.

Every function works on plain tensors too, so the code of one process is that of many. Gathering
is collective: all ranks call, in the same order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


class HeldRows(NamedTuple):
    """Rows of a tensor, and the ranks that hold them; of a scalar there is one row.

    Attributes:
        start: first row.
        rows: number of rows.
        holders: ranks, in ascending order; each has the same values.
    """

    start: int
    rows: int
    holders: tuple[int, ...]


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory; a plain tensor is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, contiguous on the CPU."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).contiguous().cpu()


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The full state dict of a module."""
    return {key: whole(value) for key, value in module.state_dict().items()}


def held_rows(tensor: Tensor, world: int) -> list[HeldRows]:
    """The rows that the ranks hold of a tensor, in order; the same on every rank, nothing is sent.

    A plain tensor is held whole by all ``world`` ranks. Shards are those of FSDP2: along the first
    dimension, as ``torch.chunk`` cuts it; ranks without rows are not listed.
    """
    rows = tensor.shape[0] if tensor.ndim else 1
    if not isinstance(tensor, DTensor):
        return [HeldRows(0, rows, tuple(range(world)))]
    holders = _holders(tensor.device_mesh, _cut_axis(tensor))
    chunks = [_chunk(rows, len(holders), number) for number in range(len(holders))]
    return [HeldRows(*chunk, who) for chunk, who in zip(chunks, holders, strict=True) if chunk[1]]


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """First row and number of rows of this rank's part."""
    rows = tensor.shape[0] if tensor.ndim else 1
    if not isinstance(tensor, DTensor):
        return 0, rows
    axis, place = _cut_axis(tensor), tensor.device_mesh.get_coordinate()
    assert place is not None
    return _chunk(rows, tensor.device_mesh.size(axis), place[axis])


def placed_like(part: Tensor, template: Tensor) -> Tensor:
    """The rows `own_rows` of a tensor of the template's shape, as a shard like the template."""
    if not isinstance(template, DTensor):
        return part
    mesh, placements = template.device_mesh, template.placements
    return DTensor.from_local(
        part.to(template.device), mesh, placements,
        run_check=False, shape=template.shape, stride=template.stride(),
    )  # fmt: skip


@lru_cache(maxsize=16)  # a mesh finds its ranks anew for each of hundreds of tensors
def _holders(mesh: DeviceMesh, axis: int) -> tuple[tuple[int, ...], ...]:
    """The ranks that hold each of the parts along an axis of a mesh."""
    parts = mesh.mesh.unbind(axis)
    return tuple(tuple(sorted(part.flatten().tolist())) for part in parts)


def _cut_axis(tensor: DTensor) -> int:
    """The axis of the mesh along which a tensor is cut; along the others it is copied."""
    (axis,) = (i for i, p in enumerate(tensor.placements) if not p.is_replicate())
    assert tensor.placements[axis] == Shard(0), "FSDP2 cuts along the first dimension"
    return axis


def _chunk(rows: int, count: int, number: int) -> tuple[int, int]:
    """First row and number of rows of a chunk, as ``torch.chunk`` cuts."""
    size = -(-rows // count)
    start = min(number * size, rows)
    return start, min(size, rows - start)
