"""Mean fusion: what the modalities of a sample have in common, level by level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_fusion(
    features: Sequence[Tensor], fused: Tensor | None = None, branches: int = 0
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Means over the modalities of all levels, and the features for their other users.

        w[p, m, b] = fused[p, m, b] / sum_m fused[p, m, b]
        out_i[p, b] = sum_m w[p, m, b] x_i[m, b]
        dx_i[m, b] = sum_p w[p, m, b] dout_i[p, b] + sum_n dbranch_n,i[m, b]

    Args:
        features: ``[M, B, C_i, h_i, w_i]`` of one M and B, at least one level; best with the
            channels the fastest axis in memory, which the means keep.
        fused: ``[P, M, B]``, 1 or 0, which modalities each of P fusions has of each sample, at
            least one; None: one fusion of all of them.
        branches: how many users the features have besides the fusion.

    Returns:
        The means, per level ``[B, C_i, h_i, w_i]``, with ``fused`` ``[P B, ...]``, one fusion after
        the other; and for each branch the features themselves.

    Raises:
        ValueError: shapes, dtypes, devices or the number of branches do not fit.
    """
    check_fusion(features, fused, branches)
    means = [_mean(x) if fused is None else _mean_of_marked(x, fused) for x in features]
    return means, fan_out(features, branches)


def fan_out(features: Sequence[Tensor], users: int) -> list[list[Tensor]]:
    """The same features for several users, whose gradients are added.

        dx_i = sum_n duser_n,i

    Args:
        features: ``[M, B, C_i, h_i, w_i]`` of one M and B, any float dtypes.
        users: how many.

    Returns:
        For each user the features themselves.

    Raises:
        ValueError: shapes, dtypes, devices or the number of users do not fit.
    """
    check_fusion(features, None, users)
    return [list(features) for _ in range(users)]


def check_fusion(features: Sequence[Tensor], fused: Tensor | None, branches: int) -> None:
    """Raise ValueError unless the levels fit each other and the marks."""
    if branches < 0:
        raise ValueError(f"expected a number of branches, at least 0, got {branches}")
    if not features or any(
        x.ndim != 5 or x.shape[:2] != features[0].shape[:2] or not len(x) for x in features
    ):
        shapes = [list(x.shape) for x in features]
        raise ValueError(f"expected levels [M, B, C, h, w] of one M and B, M > 0, got {shapes}")
    first = features[0]
    if any(not x.is_floating_point() or x.device != first.device for x in features):
        kinds = ", ".join(f"{x.dtype} on {x.device}" for x in features)
        raise ValueError(f"expected levels of floats on one device, got {kinds}")
    if fused is None:
        return
    if fused.ndim != 3 or fused.shape[1:] != first.shape[:2] or fused.device != first.device:
        wanted = f"[P, {first.shape[0]}, {first.shape[1]}] on {first.device}"
        raise ValueError(f"expected marks {wanted}, got {list(fused.shape)} on {fused.device}")


def _mean(x: Tensor) -> Tensor:
    # with the channels last the reduction runs over contiguous memory and stays in that layout
    return x[0] if x.shape[0] == 1 else x.movedim(2, -1).mean(dim=0).movedim(-1, 1)


def _mean_of_marked(x: Tensor, fused: Tensor) -> Tensor:
    weights = fused.to(x.dtype) / fused.sum(1, keepdim=True).to(x.dtype)
    mean = torch.einsum("pmb,mbhwc->pbhwc", weights, x.movedim(2, -1))
    return mean.flatten(0, 1).movedim(-1, 1)
