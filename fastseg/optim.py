"""The optimizer: AdamW as published, with a step that skips non-finite gradients on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimConfig:
    """AdamW."""

    weight_decay: float = 0.01
    """Decoupled weight decay of tensors with more than one dimension; others have none."""
    beta1: float = 0.9
    """Decay of the mean of the gradients."""
    beta2: float = 0.999
    """Decay of the mean of their squares."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    max_norm: float = 0.0
    """Clip the global gradient norm to this value; 0 does not clip (as published)."""

    def __post_init__(self) -> None:
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.eps <= 0:
            raise ValueError(f"eps must be above 0, got {self.eps}")
        if self.max_norm < 0:
            raise ValueError(f"max_norm must be at least 0, got {self.max_norm}")


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW with two groups: matrices and kernels decay, vectors do not.

    Source: released code of arXiv:2505.12861v1, ``semseg/optimizers.py``.
    """
    params = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def guarded_step(optimizer: torch.optim.AdamW, max_norm: float) -> tuple[Tensor, Tensor]:
    """One optimizer step that leaves everything as it is if any gradient is not finite.

    The decision is made inside the fused kernel, so the host never waits for it.

    Returns:
        ``(grad_norm, skipped)``: the global norm before clipping and 1.0 if the step was skipped.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in params if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads, foreach=True)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm, foreach=True)
    skipped = (~norm.isfinite()).float()
    optimizer.found_inf = skipped  # type: ignore[attr-defined]  # read by the fused kernel
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, skipped


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The same learning rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
