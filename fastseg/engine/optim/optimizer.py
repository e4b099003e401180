"""The optimizer: AdamW as published, with a step that skips non-finite gradients on the device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fastseg.choice import Choice
from fastseg.config.sections import OptimConfig
from fastseg.distributed.ranks import Ranks
from fastseg.distributed.sharded_tensors import local_part
from fastseg.engine.optim import nvidia_apex
from fastseg.engine.optim.loss_scale import LossScale
from fastseg.engine.optim.nvidia_apex import ApexOptimizer
from fastseg.engine.speed.clock import elapsed_ms
from fastseg.models.parameter_groups import layer_rates, parameter_groups

Optimizer = torch.optim.AdamW | ApexOptimizer

_TIMED_STEPS = 20
_FACTOR = "rate_factor"


def build_optimizer(
    module: nn.Module,
    config: OptimConfig,
    kind: str = "adamw",
    factors: Mapping[str, float] | None = None,
) -> Optimizer:
    """The optimizer of ``kind``: matrices and kernels decay, vectors do not.

    Args:
        module: what learns, see `parameter_groups`.
        config: moments, decay, and share of the learning rate by layer.
        kind: ``adamw``, ``apex_adam`` or ``apex_lamb``.
        factors: what the learning rate is multiplied by, by the name of a network; 1 by default.

    Source: released code of arXiv:2505.12861v1, ``semseg/optimizers.py``.

    Raises:
        ConfigError: apex is asked for and cannot serve.
    """
    groups: list[dict[str, Any]] = []
    rates = layer_rates(module, config.layer_decay)
    for group in parameter_groups(module):
        decay = config.weight_decay if group.decays else 0.0
        of_network = (factors or {}).get(group.network, 1.0)
        # neighbours alone are put together: the order of the states stays that of the parameters
        for rate, params in groupby(group.parameters, lambda p: rates.get(p, 1.0)):
            groups.append({"params": list(params), "weight_decay": decay})
            if (factor := of_network * rate) != 1.0:
                groups[-1][_FACTOR] = factor
    options: dict[str, Any] = {"betas": (config.beta1, config.beta2), "eps": config.eps}
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, fused=True, **options)
    nvidia_apex.require(f"--optim.kind {kind}", next(module.parameters()).device)
    return ApexOptimizer(kind, groups, options)


def choose_optimizer(
    module: nn.Module, config: OptimConfig, ranks: Ranks, before: str | None = None
) -> Choice[str]:
    """The kind of optimizer to use, equal on all ranks, and why.

    ``before`` is the kind that wrote the state to continue: ``auto`` stays with it if it can, so
    that the run continues to the last bit.
    """
    if config.kind != "auto":
        return Choice(config.kind, "as configured")
    if reason := nvidia_apex.why_not_on(ranks.device):
        return Choice("adamw", f"apex: {reason}")
    if before is not None:
        return Choice(before, "as before the interruption")
    kinds = ("adamw", "apex_adam")
    times = ranks.reduce([_step_ms(module, config, kind) for kind in kinds], "max")
    measured = ", ".join(f"{k} {ms:.3f} ms" for k, ms in zip(kinds, times, strict=True))
    return Choice(kinds[times.index(min(times))], measured)


def _step_ms(module: nn.Module, config: OptimConfig, kind: str) -> float:
    """Milliseconds of a step on copies of the parameters, which themselves stay as they are."""
    copies = nn.ParameterList(local_part(p.detach()).clone() for p in module.parameters())
    optimizer = build_optimizer(copies, config, kind)
    device = copies[0].device

    def steps(count: int) -> None:
        for _ in range(count):
            for p in copies:
                p.grad = torch.zeros_like(p)
            guarded_step(optimizer, 0.0)

    elapsed_ms(partial(steps, 3), device)
    return elapsed_ms(partial(steps, _TIMED_STEPS), device) / _TIMED_STEPS


def guarded_step(
    optimizer: Optimizer, max_norm: float, scale: LossScale | None = None
) -> tuple[Tensor, Tensor]:
    """One optimizer step that leaves everything as it is if any gradient is not finite.

    The decision is made inside the fused kernel, so the host never waits for it. It follows the
    norm over all ranks (sharded gradients: one all-reduce; else they are equal), so it is the same
    on every rank.

    Args:
        optimizer: holds parameters with gradients; they are removed.
        max_norm: clip the global gradient norm to this value; 0 does not clip.
        scale: of the loss; it is undone, and learns from the outcome.

    Returns:
        ``(grad_norm, skipped)``: the global norm before clipping and 1.0 if the step was skipped.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in params if p.grad is not None]
    if scale is not None:
        scale.unscale(grads)
    norm = torch.nn.utils.get_total_norm(grads, foreach=True)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm, foreach=True)
    # the difference is 0 of finite norms alone, and not a number of others
    skipped = (norm - norm).ne_(0).float()
    if isinstance(optimizer, ApexOptimizer):
        optimizer.step(skipped)
    else:
        optimizer.found_inf = skipped  # type: ignore[attr-defined]  # read by the fused kernel
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if scale is not None:
        scale.update(skipped)
    return norm, skipped


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float | Tensor) -> None:
    """The learning rate of every group: ``lr`` times the group's factor, if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[_FACTOR] if _FACTOR in group else lr
