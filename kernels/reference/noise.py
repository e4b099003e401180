"""Gaussian noise addressed by a key, so that it can be drawn again instead of being kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def fold_key(*key: int) -> int:
    """One 64-bit seed from a key of integers, every bit of which depends on every integer.

    Args:
        key: integers, such as (seed, step, level, sample).

    Returns:
        A seed in ``[0, 2^64)``. The mixing is that of the SplitMix64 generator.
    """
    state = 0
    for part in key:
        state = ((state ^ (part & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def keyed_noise(shape: Sequence[int], like: Tensor, *key: int, out: Tensor | None = None) -> Tensor:
    """Standard normal numbers that depend on nothing but the shape, the device kind and the key.

    Args:
        shape: shape of the result.
        like: gives device and dtype. The numbers are drawn in float32 for every dtype, so that a
            float64 check sees the noise of the float32 run.
        key: integers, see :func:`fold_key`.
        out: float32 memory of ``shape`` to draw into; fresh memory costs a CPU as much as the draw.

    Returns:
        A tensor of ``shape``, which is ``out`` for float32.
    """
    generator = torch.Generator(like.device).manual_seed(fold_key(*key))
    noise = torch.randn(tuple(shape), generator=generator, device=like.device, out=out)
    return noise.to(like.dtype)
