"""The all-MLP head behind its projections: two passes over the fused map, and four backward.

    x = sum_i up(y_i) + W f,   logits = P (factor relu(bn(x))) + p

Forward x is written once, together with the statistics of the BatchNorm, and read once for the
logits. Backward it is read for the sums that the BatchNorm's gradient needs and again for dx, which
is written once and read by the gather of the levels' gradients. Everything else is of the size of
the deeper levels, of the first one or of the logits. Between the two passes of each direction lie
the statistics ``[3, E]`` and the sums ``[2, E]``, which processes may share. Sums are float32 in a
fixed order: results repeat bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import reference
from ...common.switch import DEVICES
from ...reference.network.mlp_head import check_head
from . import mlp_head_launch as launch
from .upsampling import new_map, served, upsampled_sum_bwd


@torch.library.custom_op("fastseg::head_sum", mutates_args=(), device_types=DEVICES)
def _head_sum(
    levels: Sequence[Tensor], first: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return launch.fused_sum(levels, first, weight)


@_head_sum.register_fake
def _(levels: Sequence[Tensor], first: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, _, height, width = first.shape
    e, chunks = weight.shape[0], launch.chunks_fwd(b * height)[0]
    rows, counts = (
        first.new_empty(shape, dtype=torch.float32) for shape in ((chunks, 2, e), (chunks,))
    )
    return new_map(b, (height, width), e, first), rows, counts


def _setup_sum(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.sizes = [number for x in inputs[0] for number in x.shape[2:]]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward_sum(
    ctx: Any, grad: Tensor | None, _rows: Any, _counts: Any
) -> tuple[Sequence[Tensor | None], None, None]:
    if grad is None:
        return [None] * (len(ctx.sizes) // 2), None, None
    # the gradients of the first level and its projection come from the logits, see below
    return upsampled_sum_bwd(grad, ctx.sizes), None, None


_head_sum.register_autograd(_backward_sum, setup_context=_setup_sum)


@torch.library.custom_op(
    "fastseg::head_statistics",
    mutates_args=("running_mean", "running_var", "batches"),
    device_types=DEVICES,
)
def _head_statistics(
    rows: Tensor, counts: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    batches: Tensor | None, momentum: float,
) -> Tensor:  # fmt: skip
    running = running_mean, running_var, batches
    return launch.combined_statistics(rows, counts, running, momentum)


@_head_statistics.register_fake
def _(
    rows: Tensor, counts: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    batches: Tensor | None, momentum: float,
) -> Tensor:  # fmt: skip
    return rows.new_empty((3, rows.shape[2]))


@torch.library.custom_op("fastseg::head_logits", mutates_args=(), device_types=DEVICES)
def _head_logits(
    x: Tensor, first: Tensor, projection: Tensor, stats: Tensor, norm_weight: Tensor,
    norm_bias: Tensor, factor: Tensor | None, weight: Tensor, bias: Tensor, eps: float, group: str,
) -> Tensor:  # fmt: skip
    return launch.classified(x, stats, (norm_weight, norm_bias), factor, weight, bias, eps)


@_head_logits.register_fake
def _(
    x: Tensor, first: Tensor, projection: Tensor, stats: Tensor, norm_weight: Tensor,
    norm_bias: Tensor, factor: Tensor | None, weight: Tensor, bias: Tensor, eps: float, group: str,
) -> Tensor:  # fmt: skip
    return new_map(x.shape[0], x.shape[2:], len(weight), x)


@torch.library.custom_op("fastseg::head_bwd_sums", mutates_args=(), device_types=DEVICES)
def _bwd_sums(
    grad: Tensor, x: Tensor, first: Tensor, stats: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    factor: Tensor | None, weight: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    norm = (norm_weight, norm_bias)
    return launch.backward_sums(grad, x, first, stats, norm, factor, weight, eps)


@_bwd_sums.register_fake
def _(
    grad: Tensor, x: Tensor, first: Tensor, stats: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    factor: Tensor | None, weight: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    parts, _ = launch.chunks_bwd(len(x), x.shape[2] * x.shape[3])
    e, k, c = x.shape[1], len(weight), first.shape[1]
    shapes = (2, e), (parts, k + 2 * c, e), (parts, k + c)
    sums, products, columns = (x.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return sums, products, columns, torch.empty_like(norm_weight), torch.empty_like(norm_bias)


@torch.library.custom_op("fastseg::head_bwd_maps", mutates_args=(), device_types=DEVICES)
def _bwd_maps(
    grad: Tensor, x: Tensor, stats: Tensor, sums: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    factor: Tensor | None, weight: Tensor, projection: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    norm = (norm_weight, norm_bias)
    return launch.backward_maps(grad, x, stats, sums, norm, factor, weight, projection, eps)


@_bwd_maps.register_fake
def _(
    grad: Tensor, x: Tensor, stats: Tensor, sums: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    factor: Tensor | None, weight: Tensor, projection: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    b, e, *size = x.shape
    return new_map(b, size, e, x), new_map(b, size, projection.shape[1], x)


@torch.library.custom_op("fastseg::head_bwd_weights", mutates_args=(), device_types=DEVICES)
def _bwd_weights(
    products: Tensor, columns: Tensor, stats: Tensor, sums: Tensor, norm_weight: Tensor,
    weight: Tensor, bias: Tensor, projection: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return launch.backward_weights(
        products, columns, stats, sums, norm_weight, weight, bias, projection, eps
    )


@_bwd_weights.register_fake
def _(
    products: Tensor, columns: Tensor, stats: Tensor, sums: Tensor, norm_weight: Tensor,
    weight: Tensor, bias: Tensor, projection: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    d_weight, d_bias, d_projection = (x.new_empty(x.shape) for x in (weight, bias, projection))
    return d_weight, d_bias, d_projection


def _setup_logits(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.eps, ctx.group = inputs
    ctx.save_for_backward(*tensors)


def _backward_logits(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, first, projection, stats, norm_weight, norm_bias, factor, weight, bias = ctx.saved_tensors
    norm = norm_weight, norm_bias, factor, weight
    own, *parts, d_norm_weight, d_norm_bias = _bwd_sums(grad, x, first, stats, *norm, ctx.eps)
    sums = own
    if ctx.group:
        reduced = torch.ops._c10d_functional.all_reduce(own, "sum", ctx.group)
        sums = torch.ops._c10d_functional.wait_tensor(reduced)
    dx, d_first = _bwd_maps(grad, x, stats, sums, *norm, projection, ctx.eps)
    d_weight, d_bias, d_projection = _bwd_weights(
        *parts, stats, sums, norm_weight, weight, bias, projection, ctx.eps
    )
    found = dx, d_first, d_projection, None, d_norm_weight, d_norm_bias, None, d_weight, d_bias
    return (*found, None, None)


_head_logits.register_autograd(_backward_logits, setup_context=_setup_logits)


@torch.library.custom_op("fastseg::head_frozen", mutates_args=(), device_types=DEVICES)
def _head_frozen(
    levels: Sequence[Tensor], first: Tensor, projection: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    return launch.frozen(levels, first, projection, weight, bias)


@_head_frozen.register_fake
def _(
    levels: Sequence[Tensor], first: Tensor, projection: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    return new_map(first.shape[0], first.shape[2:], len(weight), first)


def _batch_statistics(norm: nn.BatchNorm2d, rows: Tensor, counts: Tensor, group: Any) -> Tensor:
    """Statistics of all processes from those of chunks; the running ones take their share."""
    running: tuple[Tensor | None, ...] = (None, None, None)
    with torch.no_grad():
        if group is not None:
            own, world = _head_statistics(rows, counts, *running, 0.0), group.size()
            functional = torch.ops._c10d_functional
            gathered = functional.all_gather_into_tensor(own, world, group.group_name)
            parts = functional.wait_tensor(gathered).view(world, *own.shape)
            rows, counts = parts[:, :2], parts[:, 2, 0]
        if norm.track_running_stats:
            running = norm.running_mean, norm.running_var, norm.num_batches_tracked
        stats: Tensor = _head_statistics(rows, counts, *running, norm.momentum)
    return stats


def _running_statistics(norm: nn.BatchNorm2d) -> Tensor:
    """The running statistics as those of infinitely many pixels, on which nothing depends."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var = norm.running_mean.float(), norm.running_var.float()
    return torch.stack([mean, var, torch.full_like(mean, torch.inf)])


def _is_usual(norm: nn.BatchNorm2d) -> bool:
    """True if the kernels compute what the module would, whose ``forward`` is not called."""
    known = type(norm).forward is nn.BatchNorm2d.forward or hasattr(norm, "group")
    return known and norm.affine and norm.running_mean is not None and norm.momentum is not None


def mlp_head(
    levels: Sequence[Tensor],
    first: Tensor,
    projection: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: nn.BatchNorm2d | None = None,
    factor: Tensor | None = None,
) -> Tensor:
    """Logits of the all-MLP head from its projected levels.

        x = sum_i up(levels[i]) + projection first
        logits = weight (factor relu(norm(x))) + bias

    On a GPU x is made once and nothing else of its size but its gradient. The statistics of the
    BatchNorm are those of x as it is stored, in float32. Float64, an empty batch, levels that are
    larger than the first one, more than 256 classes or channels of the first level, a BatchNorm
    without weight, momentum or running statistics or with a ``forward`` of its own, and gradients
    through a head without one take the definition.

    Args:
        levels: ``[B, E, h_i, w_i]`` of one float dtype, levels 2 to 4 times their projections.
        first: ``[B, C, h, w]``, level 1; a copy is made where its dtype is another one.
        projection: ``[E, C]``, of level 1, likewise.
        weight: ``[K, E]`` of the classifier, any float dtype.
        bias: ``[K]``.
        norm: BatchNorm of x, whose running statistics a training call updates; None where it is
            part of the projections. Its attribute ``group``, if it has one, is the process group
            whose batches it normalises together.
        factor: ``[B, E]``, factor on the channels behind the ReLU; constant.

    Returns:
        ``[B, K, h, w]`` in the dtype of the levels, the channels last in memory.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    check_head(levels, first, projection, weight, bias, factor)
    learns = torch.is_grad_enabled() and any(
        x.requires_grad for x in (*levels, first, projection, weight, bias)
    )
    training = norm is not None and norm.training
    fitting = (
        served(levels, first.shape[2:])
        and max(len(weight), first.shape[1]) <= launch.MAX_WIDTH
        and not (training and first.numel() == first.shape[1])
        and (not (learns or factor is not None) if norm is None else _is_usual(norm))
    )
    if not fitting:
        return reference.mlp_head(levels, first, projection, weight, bias, norm, factor)
    levels, dtype = list(levels), levels[0].dtype
    first, projection = first.to(dtype), projection.to(dtype)
    out: Tensor
    if norm is None:
        out = _head_frozen(levels, first, projection, weight, bias)
        return out
    group = getattr(norm, "group", None) if training else None
    name = "" if group is None else str(group.group_name)
    x, rows, counts = _head_sum(levels, first.detach(), projection.detach())
    stats = _batch_statistics(norm, rows, counts, group) if training else _running_statistics(norm)
    out = _head_logits(
        x, first, projection, stats, norm.weight, norm.bias,
        None if factor is None else factor.detach(), weight, bias, norm.eps, name,
    )  # fmt: skip
    return out
