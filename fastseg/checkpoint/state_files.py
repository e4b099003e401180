"""Reading the tensors of a training state, whatever number of processes has written it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastseg.checkpoint.contents import (
    AVERAGE,
    KINDS,
    NETWORK,
    OPTIMIZER,
    Average,
    network_tensors,
)
from fastseg.checkpoint.layout import LAYOUT, VERSION, file_name
from fastseg.checkpoint.tensor_file import misfits
from fastseg.distributed.sharded_tensors import local_part, own_rows, placed_like
from fastseg.errors import CheckpointError, listed
from fastseg.pipelines.tools.json_values import json_values


@dataclass(frozen=True)
class Stored:
    """A tensor on disk.

    Attributes:
        kind: a tensor without content, of its dtype and whole shape.
        pieces: ``(file, first row, rows)`` in the order of the rows, which they cover.
    """

    kind: Tensor
    pieces: tuple[tuple[str, int, int], ...]


class StateFiles:
    """The tensors of a state by kind and name; parts of them are read on demand.

    States of one process, and those of versions before there were shards, have a file of whole
    tensors for each kind; the others a ``layout.json``, see `fastseg.checkpoint.layout`.

    Args:
        folder: folder of the state.

    Attributes:
        tensors: by kind and name.

    Raises:
        ValueError: the files are not those of a state, or do not fit the layout.
        OSError: a file cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        if (folder / LAYOUT).is_file():
            self.tensors = self._laid_out(json_values((folder / LAYOUT).read_text("utf-8")))
        else:
            self.tensors = {
                kind: self._whole(name)
                for kind in KINDS
                if (folder / (name := file_name(kind, 0, 1))).is_file()
            }
        if missing := [kind for kind in (NETWORK, OPTIMIZER) if kind not in self.tensors]:
            raise ValueError(f"no tensors of {listed(missing)}")

    def kinds(self, kind: str) -> dict[str, Tensor]:
        """The tensors of a kind without their content: names, dtypes and shapes."""
        return {name: stored.kind for name, stored in self.tensors.get(kind, {}).items()}

    def files(self) -> set[str]:
        """Names of the files that the tensors need."""
        stored = [found for named in self.tensors.values() for found in named.values()]
        files = {file for found in stored for file, _, _ in found.pieces}
        return files | {LAYOUT} & {path.name for path in self.folder.iterdir()}

    def read(self, kind: str, name: str, start: int = 0, rows: int | None = None) -> Tensor:
        """Rows of a tensor, all by default, in memory of their own on the CPU."""
        stored = self.tensors[kind][name]
        if not stored.kind.ndim:
            return self._file(stored.pieces[0][0]).get_tensor(name).clone()  # type: ignore[no-any-return]
        stop = stored.kind.shape[0] if rows is None else start + rows
        found = []
        for file, first, count in stored.pieces:
            low, high = max(start, first), min(stop, first + count)
            if low < high:
                found.append(self._file(file).get_slice(name)[low - first : high - first])
        if not found:
            return torch.empty((0, *stored.kind.shape[1:]), dtype=stored.kind.dtype)
        return found[0].clone() if len(found) == 1 else torch.cat(found)

    def fill(self, kind: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a kind into tensors of the same names and shapes; of shards this rank's rows.

        Raises:
            CheckpointError: names, shapes or dtypes differ; nothing is written to.
        """
        if lines := misfits(self.kinds(kind), tensors):
            raise CheckpointError(f"{self.folder}: {kind} does not fit ({'; '.join(lines)})")
        with torch.no_grad():
            for name, tensor in tensors.items():
                local_part(tensor).copy_(self.read(kind, name, *own_rows(tensor)))

    def read_like(self, kind: str, name: str, template: Tensor) -> Tensor:
        """A tensor, cut like the template where it has the template's shape; else the whole."""
        if self.tensors[kind][name].kind.shape != template.shape:
            return self.read(kind, name)
        return placed_like(self.read(kind, name, *own_rows(template)), template)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / name
            if not path.is_file():
                # of a named pipe the next line would wait for a writer
                raise ValueError(f"{name} is missing, or no file")
            # safetensors reports a file that may not be read without its name
            path.open("rb").close()
            try:
                self._open[name] = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{name}: {error}") from None
        return self._open[name]

    def _whole(self, file: str) -> dict[str, Stored]:
        found = {}
        for name in self._file(file).keys():  # noqa: SIM118  # no mapping
            kind = self._kind(file, name)
            found[name] = Stored(kind, ((file, 0, kind.shape[0] if kind.ndim else 1),))
        return found

    def _kind(self, file: str, name: str) -> Tensor:
        """Dtype and shape of what a file has under a name; its content is not read."""
        shape = self._file(file).get_slice(name).get_shape()
        empty = self._file(file).get_tensor(name) if 0 in shape or not shape else None
        dtype = (self._file(file).get_slice(name)[0:0] if empty is None else empty).dtype
        return torch.empty(shape, dtype=dtype, device="meta")

    def _laid_out(self, content: Any) -> dict[str, dict[str, Stored]]:
        try:
            if content["version"] != VERSION:
                raise ValueError(f"its version is {content['version']!r}, not {VERSION}")
            world, found = content["processes"], content["tensors"]
            if strange := found.keys() - set(KINDS):
                raise ValueError(f"it names tensors of {listed(sorted(strange))}")
            return {
                kind: {
                    name: self._stored(kind, name, entry, world) for name, entry in named.items()
                }
                for kind, named in found.items()
            }
        except (KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{LAYOUT} does not fit: {what}") from None

    def _stored(self, kind: str, name: str, entry: dict[str, Any], world: int) -> Stored:
        """A tensor of the layout, whose pieces are those of the files and cover all rows once."""
        shape, place, pieces, dtype = entry["shape"], 0, [], None
        for rank, start, rows in entry["pieces"]:
            if any(type(number) is not int for number in (rank, start, rows, *shape, world)):
                raise ValueError(f"{name} has a place that is no whole number")
            file = file_name(kind, int(rank), int(world))
            piece = self._kind(file, name)
            wanted = [rows, *shape[1:]] if shape else []
            if start != place or list(piece.shape) != wanted or dtype not in (None, piece.dtype):
                raise ValueError(f"{name} in {file} is not what belongs there")
            dtype, place = piece.dtype, place + rows
            pieces.append((file, start, rows))
        whole_rows = shape[0] if shape else 1
        if dtype is None or place != whole_rows or entry["dtype"] != f"{dtype}"[6:]:
            raise ValueError(f"{name} is not whole")
        return Stored(torch.empty(shape, dtype=dtype, device="meta"), tuple(pieces))


def load_state(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None = None,
) -> None:
    """Put a state of `TrainingStates.newest` back into a network, its optimizer and its average.

    Every process reads the rows that it holds, whatever number of processes has written them.

    Raises:
        CheckpointError: the state has other tensors than these.
    """
    files = StateFiles(path)
    files.fill(NETWORK, network_tensors(module))
    params = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key in files.tensors[OPTIMIZER]:
        index, name = key.split(".", 1)
        value = files.read_like(OPTIMIZER, key, params[int(index)])
        slots.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    if average is not None:
        files.fill(AVERAGE, average.own())
