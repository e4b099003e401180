"""Values that come with their gradient, and the checks that the two regularisers share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# elements of a block: it and its temporaries stay in a core's cache, which makes an elementwise
# operation three times as fast; fewer would be mostly the cost of calls
_BLOCK = 1 << 17


class _WithGradient(torch.autograd.Function):
    """The identity on ``value``; its derivative with respect to ``x`` is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None


def with_gradient(x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """The scalar ``value`` as a function of ``x`` whose derivative is ``gradient``."""
    result: Tensor = _WithGradient.apply(x, value, gradient)  # type: ignore[no-untyped-call]
    return result


def image_blocks(images: Tensor) -> list[slice]:
    """Ranges of the images ``[N, ...]`` to go through one after the other: one on a GPU."""
    count = images.shape[0]
    if images.device.type != "cpu":
        return [slice(0, count)]
    size = max(1, _BLOCK // max(1, images[0].numel()))
    return [slice(start, start + size) for start in range(0, count, size)]


def check_pair(
    student: Tensor, teacher: Tensor, samples: int, noise: Tensor | None, *, sides: tuple[int, ...]
) -> None:
    """Reject features that do not match, and noise that is not ``[S, *sides, M, B, C, h, w]``.

    Raises:
        ValueError: a shape does not fit, a feature map is empty, or there is no sample.
    """
    if student.ndim != 5 or student.shape != teacher.shape or student.numel() == 0:
        raise ValueError(
            f"expected student and teacher features [M, B, C, h, w] of one shape, none of it 0, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    wanted = (samples, *sides, *student.shape)
    if noise is not None and noise.shape != wanted:
        raise ValueError(f"expected noise of shape {wanted}, got {tuple(noise.shape)}")
