"""Calls of a stage's networks by the loss terms: in which arithmetic, and with which gradients."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fastseg.engine.stage_setup import StageNetworks
from fastseg.methods.base import Forward
from fastseg.models import Segmenter, SegmenterOutput
from fastseg.models.precision import autocast


@dataclass(frozen=True)
class Calls:
    """Functions that give the output of a network, by its name.

    Attributes:
        outputs: of those that learn, with gradients, and of the frozen ones, without.
        settled: of those that learn, as targets: evaluation mode, without gradients.
    """

    outputs: Mapping[str, Forward]
    settled: Mapping[str, Forward]


def calls_of(
    networks: StageNetworks,
    forwards: Mapping[str, nn.Module],
    device: torch.device,
    precision: str | None,
) -> Calls:
    """The calls of a stage.

    Args:
        networks: all networks.
        forwards: modules that are called for those that learn, by name: wrappers, or themselves.
        device: device of the networks.
        precision: arithmetic of autocast; None where weights have the dtype of the step already.
    """
    learning = {
        name: partial(_learning, forwards[name], device, precision) for name in networks.learning
    }
    frozen = {name: partial(_constant, network) for name, network in networks.frozen.items()}
    settled = {
        name: partial(_as_target, network, learning[name])
        for name, network in networks.learning.items()
    }
    return Calls({**frozen, **learning}, settled)


def _constant(network: Segmenter, *inputs: Any, **keywords: Any) -> SegmenterOutput:
    with torch.no_grad():
        output: SegmenterOutput = network(*inputs, **keywords)
    return output


def _learning(
    forward: nn.Module, device: torch.device, precision: str | None, *inputs: Any, **keywords: Any
) -> SegmenterOutput:
    with nullcontext() if precision is None else autocast(device, precision):
        output: SegmenterOutput = forward(*inputs, **keywords)
    return output


def _as_target(network: Segmenter, call: Forward, *inputs: Any, **keywords: Any) -> SegmenterOutput:
    network.eval()
    try:
        with torch.no_grad():
            return call(*inputs, **keywords)
    finally:
        network.train()
