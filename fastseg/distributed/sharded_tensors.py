"""Tensors that are cut over ranks: their local part, and the whole for files and evaluation.

Every function works on plain tensors too, so the code of one process is that of many. Gathering
is collective: all ranks call, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory; a plain tensor is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, contiguous on the CPU."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).contiguous().cpu()


def cut_like(full: Tensor, template: Tensor) -> Tensor:
    """A full tensor, which every rank has, cut and placed like ``template``; nothing is sent."""
    if not isinstance(template, DTensor) or full.shape != template.shape:
        return full
    # a generator's place is the device: cut on it, or the mesh refuses
    full = full.to(template.device)
    return distribute_tensor(full, template.device_mesh, template.placements, src_data_rank=None)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The full state dict of a module."""
    return {key: whole(value) for key, value in module.state_dict().items()}


def load_module_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `module_tensors`, strict."""
    own = module.state_dict()
    cut = {key: cut_like(t, own[key]) if key in own else t for key, t in tensors.items()}
    module.load_state_dict(cut)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The full state of an optimizer as ``{"<parameter number>.<name>": tensor}``."""
    return {
        # a counter of steps may be one tensor for many parameters; files want one each
        f"{index}.{name}": whole(value) if value.ndim else whole(value).clone()
        for index, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = cut_like(value, params[int(index)])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
