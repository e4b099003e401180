"""The loss scale that keeps fp16 gradients in range."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# the usual values of dynamic loss scaling, arXiv:1710.03740
_FIRST_SCALE, _GROWTH, _BACKOFF, _INTERVAL = 2.0**16, 2.0, 0.5, 2000


class LossScale:
    """Dynamic loss scaling that lives on the device: nothing here waits for it.

    The loss is multiplied by s before the backward pass and the gradients by 1 / s after it, so
    that small ones do not vanish in fp16. After a skipped step s is halved; after ``interval``
    good steps in a row it is doubled. Powers of two change no bit of a gradient in range.

    Attributes:
        scale: s, a float32 scalar.
        good_steps: good steps since s last changed, a float32 scalar.
    """

    def __init__(self, device: torch.device, interval: int = _INTERVAL) -> None:
        self.interval = interval
        self.scale = torch.tensor(_FIRST_SCALE, device=device)
        self.good_steps = torch.zeros((), device=device)

    def __call__(self, loss: Tensor) -> Tensor:
        """The scaled loss."""
        return loss * self.scale

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        torch._foreach_mul_(list(gradients), 1 / self.scale)

    def update(self, skipped: Tensor) -> None:
        """Learn from a step; ``skipped`` is 1.0 if it was not finite and 0.0 otherwise."""
        good = (self.good_steps + 1) * (1 - skipped)
        grown = good >= self.interval
        factor = torch.where(skipped > 0, _BACKOFF, torch.where(grown, _GROWTH, 1.0))
        # in place: a CUDA graph reads and writes them where they are
        self.scale.mul_(factor)
        self.good_steps.copy_(torch.where(grown, 0.0, good))

    def state(self) -> dict[str, float]:
        """State for a checkpoint: the scale, and the good steps since it last changed."""
        return {"scale": float(self.scale), "good_steps": float(self.good_steps)}

    def restore(self, state: dict[str, float]) -> None:
        """Inverse of `state`."""
        self.scale.fill_(state["scale"])
        self.good_steps.fill_(state["good_steps"])
