"""The parameters of a network in the order and groups that optimizers and states have."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class ParameterGroup(NamedTuple):
    """Parameters that are treated alike.

    Attributes:
        network: whose they are; empty where there is one.
        parameters: those that learn.
        decays: whether they have weight decay: matrices and kernels have, vectors have not.
    """

    network: str
    parameters: list[nn.Parameter]
    decays: bool


def parameter_groups(module: nn.Module) -> list[ParameterGroup]:
    """The parameters that learn, in the order of an optimizer's state.

    Of each network matrices and kernels come first. Several networks are an ``nn.ModuleDict``.
    """
    networks = module if isinstance(module, nn.ModuleDict) else {"": module}
    groups = []
    for name, network in networks.items():
        params = [p for p in network.parameters() if p.requires_grad]
        groups.append(ParameterGroup(name, [p for p in params if p.ndim > 1], True))
        groups.append(ParameterGroup(name, [p for p in params if p.ndim <= 1], False))
    return groups
