"""Parameters and buffers of networks in the order and groups that optimizers and states have."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from .interface import Segmenter


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


def layer_rates(module: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Share of the learning rate of each parameter that has less than the whole.

        rate of layer l = decay ^ (L - l),   l = 1 .. L from the images to the head

    Layers are those of `Segmenter.layers`. Source: arXiv:2003.10555, section A (layer-wise decay).

    Args:
        module: a network, or several as an ``nn.ModuleDict``; any other module has no layers.
        decay: above 0; 1 gives nothing.
    """
    networks = module.values() if isinstance(module, nn.ModuleDict) else [module]
    rates: dict[nn.Parameter, float] = {}
    for network in networks if decay < 1 else ():
        layers = network.layers() if isinstance(network, Segmenter) else []
        for behind, layer in enumerate(reversed(layers)):
            for part in layer if behind else ():
                rates |= dict.fromkeys(part.parameters(), decay**behind)
    return rates


def saved_buffers(module: nn.Module) -> list[Tensor]:
    """Buffers that a state dict holds, such as running statistics."""
    return _buffers(module, saved=True)


def fixed_buffers(module: nn.Module) -> list[Tensor]:
    """Buffers that no state dict holds: they never change, such as weights that do not learn."""
    return _buffers(module, saved=False)


def _buffers(module: nn.Module, saved: bool) -> list[Tensor]:
    return [
        buffer
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and (name not in part._non_persistent_buffers_set) == saved
    ]
