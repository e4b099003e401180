"""NVIDIA apex, where it is installed: found, explained, and fitted to the engine's step.

apex is optional: it is never imported before it is asked for. The package that PyPI calls apex is
another project, and a source tree without its CUDA extensions imports but cannot compute; both are
told apart here.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fastseg.distributed.sharded_tensors import local_part
from fastseg.errors import ConfigError

INSTALL = (
    "git clone https://github.com/NVIDIA/apex && cd apex && git checkout 6424da3b && "
    "git submodule update --init && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 "
    "pip install --no-build-isolation ."
)
DEVICES = ("cuda",)
"""Kinds of device that apex computes on."""


def why_unusable() -> str | None:
    """Reason why apex cannot be used, or None if it can."""
    try:
        if importlib.util.find_spec("apex") is None:
            return "not installed"
        if importlib.util.find_spec("apex.optimizers") is None:
            return "not NVIDIA apex but another package of that name"
    except ImportError as error:
        return f"the web toolkit of PyPI, or broken: {error}"
    if importlib.util.find_spec("amp_C") is None:
        return "built without CUDA extensions"
    return None


def why_not_on(device: torch.device) -> str | None:
    """Reason why apex cannot be used on this device, or None if it can."""
    reason = why_unusable()
    if reason is None and device.type not in DEVICES:
        return f"it computes on {' and '.join(DEVICES)} only, this run on {device.type}"
    return reason


def require(option: str, device: torch.device) -> None:
    """Refuse an option that needs apex where apex cannot serve.

    Raises:
        ConfigError: the message names the option, the reason and how to install apex.
    """
    if reason := why_not_on(device):
        raise ConfigError(
            f"{option} needs NVIDIA apex: {reason}. Leave the option out, or install apex on a "
            f"machine with a GPU and torch's own CUDA version of nvcc:\n  {INSTALL}\n"
            "(`pip install apex` gives another project)"
        )


def use_layer_norm(network: nn.Module) -> int:
    """Compute every LayerNorm of a network by apex; returns how many.

    The parameters stay the same objects under the same names: seeds, checkpoints, optimizer and
    sharding do not notice.
    """
    layer_norm = importlib.import_module("apex.normalization").FusedLayerNorm
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if type(child) is nn.LayerNorm
    ]
    for parent, name, child in found:
        fused = layer_norm(child.normalized_shape, eps=child.eps)
        fused.weight, fused.bias = child.weight, child.bias
        parent.add_module(name, fused.train(child.training))
    return len(found)


class ApexOptimizer(torch.optim.Optimizer):
    """apex's FusedAdam or FusedMixedPrecisionLamb behind the step of the engine.

    apex reads raw memory: it is given each rank's local shards. It is given the decision to skip a
    step as well, on the device, in the form in which it asks a gradient scaler. State has the
    names and shapes of ``torch.optim.AdamW``, so files of either continue with the other kind of
    Adam.

    Args:
        kind: ``apex_adam`` or ``apex_lamb``.
        groups: parameter groups with ``params`` and ``weight_decay``.
        options: ``betas`` and ``eps``.

    Raises:
        ConfigError: LAMB with sharded parameters, or apex cannot be built.
    """

    def __init__(
        self, kind: str, groups: Iterable[dict[str, Any]], options: dict[str, Any]
    ) -> None:
        super().__init__(list(groups), {"lr": 0.0, **options})
        everything = [p for group in self.param_groups for p in group["params"]]
        if kind == "apex_lamb" and any(isinstance(p, DTensor) for p in everything):
            raise ConfigError(
                "apex_lamb scales each step by norms of whole tensors, but this run cuts them: "
                "use --parallel.mode replicate, or --optim.kind apex_adam"
            )
        # leaves that share memory with the local shards
        self._local = {p: local_part(p.detach()).requires_grad_() for p in everything}
        for group in self.param_groups:
            # one counter of steps per group, as in apex
            steps = torch.zeros((), device=group["params"][0].device)
            for p in group["params"]:
                self.state[p] = {
                    "step": steps,
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        self._apex = self._build(kind, options)

    def _build(self, kind: str, options: dict[str, Any]) -> Any:
        module = importlib.import_module("apex.optimizers")
        groups = [
            {"params": [self._local[p] for p in group["params"]],
             "weight_decay": group["weight_decay"]}
            for group in self.param_groups
        ]  # fmt: skip
        try:
            if kind == "apex_adam":
                # capturable: learning rate, step and decision are read on the device
                return module.FusedAdam(groups, lr=0.0, capturable=True, **options)
            # the gradient is clipped before, if at all
            return module.FusedMixedPrecisionLamb(
                groups, lr=0.0, max_grad_norm=float("inf"), **options
            )
        except (RuntimeError, TypeError) as error:
            raise ConfigError(
                f"apex refuses to build the optimizer ({error}): use --optim.kind adamw, or "
                f"install the tested commit of apex:\n  {INSTALL}"
            ) from None

    def step(self, skipped: Tensor) -> None:  # type: ignore[override]
        """One step, or none where ``skipped`` is 1.0; nothing waits for the device."""
        for outer, inner in zip(self.param_groups, self._apex.param_groups, strict=True):
            # a loaded state has a counter per parameter, on the CPU
            steps = self.state[outer["params"][0]]["step"].to(skipped.device)
            inner["lr"].fill_(outer["lr"])
            inner["step"] = steps.to(torch.int32).view(1)
            for p in outer["params"]:
                leaf, state = self._local[p], self.state[p]
                leaf.data = local_part(p.detach())
                leaf.grad = None if p.grad is None else local_part(p.grad)
                state["step"] = steps
                # not empty: apex takes these instead of making its own
                self._apex.state[leaf] = {
                    name: local_part(state[name]) for name in ("exp_avg", "exp_avg_sq")
                }
            steps += 1 - skipped
        # apex counts the step by the decision of the step before, unless it is told this one
        self._apex._dummy_overflow_buf.copy_(skipped)
        self._apex.step(grad_scaler=_Decision(skipped))
        for leaf in self._local.values():
            leaf.grad = None


class _Decision:
    """Stand-in for the gradient scaler that apex asks: overflow or none, and a scale of 1."""

    def __init__(self, skipped: Tensor) -> None:
        self._found_inf = skipped.view(1)

    def _check_inf_per_device(self, _optimizer: object) -> dict[torch.device, Tensor]:
        return {self._found_inf.device: self._found_inf}

    def _get_scale_async(self) -> Tensor:
        # gradients are unscaled already
        return torch.ones_like(self._found_inf)
