"""The files of a training state: which process writes which rows of which tensor.

One process writes every kind of tensors as a file of whole tensors. Several write one file each of
a kind, and ``layout.json`` says where its rows belong. Nothing is gathered and nothing is written
twice: rows that several processes hold are dealt to those that have least to write. Every process
finds the same layout by itself, from names, shapes and placements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastseg.distributed.sharded_tensors import held_rows, local_part

LAYOUT = "layout.json"
VERSION = 1


@dataclass(frozen=True)
class Layout:
    """The pieces of all tensors of a state.

    Attributes:
        world: number of processes that write.
        tensors: by kind and name the dtype, the shape and, as ``[rank, start, rows]``, the pieces.
        sizes: bytes that each rank writes.
    """

    world: int
    tensors: dict[str, dict[str, dict[str, Any]]]
    sizes: tuple[int, ...]

    def content(self) -> dict[str, Any]:
        """Content of ``layout.json``."""
        return {"version": VERSION, "processes": self.world, "tensors": self.tensors}


def file_name(kind: str, rank: int, world: int) -> str:
    """Name of the file with what a rank writes of a kind."""
    return f"{kind}.safetensors" if world == 1 else f"{kind}-{rank:05d}-of-{world:05d}.safetensors"


def lay_out(tensors: Mapping[str, Mapping[str, Tensor]], world: int) -> Layout:
    """Deal the rows of all tensors to the processes; the same on every rank, nothing is sent.

    Args:
        tensors: by kind and name; plain ones are equal on all ranks.
        world: number of processes.
    """
    loads, found, dealt = [0] * world, {}, []
    for kind, named in tensors.items():
        found[kind] = {name: _entry(tensor) for name, tensor in named.items()}
        for name, tensor in named.items():
            per_row = tensor.nbytes // max(1, tensor.shape[0]) if tensor.ndim else tensor.nbytes
            for held in held_rows(tensor, world):
                dealt.append((held.holders, held.rows * per_row, kind, name, held))
    # what has one holder first, then the largest: the loads come out nearly even
    for holders, size, kind, name, held in sorted(
        dealt, key=lambda piece: (len(piece[0]), -piece[1], piece[2], piece[3], piece[4].start)
    ):
        rank = min(holders, key=lambda holder: (loads[holder], holder))
        loads[rank] += size
        found[kind][name]["pieces"].append([rank, held.start, held.rows])
    for named_entries in found.values():
        for entry in named_entries.values():
            entry["pieces"].sort(key=lambda piece: piece[1])
    return Layout(world, found, tuple(loads))


def own_pieces(
    layout: Layout, tensors: Mapping[str, Mapping[str, Tensor]], rank: int
) -> dict[str, dict[str, Tensor]]:
    """By file and name what a rank has to write, sharing memory with the tensors."""
    files: dict[str, dict[str, Tensor]] = {}
    for kind, named in tensors.items():
        mine = {
            name: local_part(tensor).detach()
            for name, tensor in named.items()
            if any(piece[0] == rank for piece in layout.tensors[kind][name]["pieces"])
        }
        # a file of one process may be empty, such as that of an optimizer before its first step
        if mine or layout.world == 1:
            files[file_name(kind, rank, layout.world)] = mine
    return files


def _entry(tensor: Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "pieces": []}
