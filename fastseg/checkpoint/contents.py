"""What a training state holds: the one place that says which tensors are saved and put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

KINDS = NETWORK, OPTIMIZER, AVERAGE = "network", "optimizer", "average"
"""Kinds of tensors, each in files of its own."""


class Average(Protocol):
    """Averaged weights, such as `fastseg.engine.optim.weight_average.WeightAverage`."""

    def own(self) -> dict[str, Tensor]:
        """This process's averages by parameter name, sharing memory; they may be shards."""


def network_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the networks that learn, by name, sharing memory; they may be shards.

    What is left out here is neither saved, nor compared, nor written to when a state is loaded.
    """
    return dict(module.state_dict())


def averaged_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of which there are averages, by name, where a run averages its weights."""
    return dict(module.named_parameters())


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as ``{"<parameter number>.<name>": tensor}``, sharing memory."""
    return {
        f"{index}.{name}": value
        for index, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
    }


def training_tensors(
    module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None = None
) -> dict[str, Mapping[str, Tensor]]:
    """All tensors of a training state by kind and name, sharing memory; they may be shards."""
    found: dict[str, Mapping[str, Tensor]] = {
        NETWORK: network_tensors(module),
        OPTIMIZER: optimizer_tensors(optimizer),
    }
    if average is not None:
        found[AVERAGE] = average.own()
    return found


def expected_bytes(module: nn.Module, averaged: bool) -> int:
    """Bytes of the tensors of a state before there are moments: two for each weight that learns."""
    tensors = list(network_tensors(module).values())
    tensors += [p for p in module.parameters() if p.requires_grad for _ in range(2)]
    tensors += averaged_parameters(module).values() if averaged else []
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
