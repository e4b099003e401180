"""Hard-pixel cross-entropy and logit distillation of low-resolution logits, upsampling inside.

    z = bilinear(logits),  t = bilinear(teacher_logits)          [B, K, f h, f w], never in memory
    loss_p = w[y_p] (logsumexp(z_p) - z_p[y_p]),   w = 1 without weights of the classes
    ohem = mean of the max(|hard|, n_min) largest losses
    kl = T^2 / (B K H W) sum_p KL(softmax(t_p / T) || softmax(z_p / T))
    dz_p = d_ohem weight_p w[y_p] (softmax(z_p) - onehot(y_p))
         + d_kl T / (B K H W) (softmax(z_p / T) - softmax(t_p / T))

Forward is one kernel over the pixels and the selection of :mod:`.ohem_select`, backward one kernel
over the pixels, which combines both gradients, and one that folds them; 9 launches in all, none of
which waits for the host. Between them live 8 bytes per pixel, 12 with a teacher, 16 with a teacher
and a temperature; backward needs ``16 B K (h + 1) (w + 1)`` bytes for a moment (four times that for
f = 8). Full-size logits of 25 classes in float32 are 100 bytes per pixel and tensor. Student and
teacher are read as they lie in memory, each contiguous or channels-last (:mod:`.corners`).

Source: ``OhemCrossEntropy`` and L_KL of RobustSeg, arXiv:2505.12861, where the logits are upsampled
first and the host waits for the number of hard pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .. import reference
from ..common.device import on_device_of
from ..common.switch import DEVICES, UP, runs_on
from ..reference.segmentation import check_loss
from .bilinear import LANES, ROWS, cell_blocks, launch_grid, served_factor
from .loss_kernels import (
    _segmentation_loss_bwd_kernel,
    _segmentation_loss_fold_kernel,
    _segmentation_loss_fwd_kernel,
)
from .ohem_select import hard_loss, ohem_select

REGISTERS = 255  # left to itself the assembler stops at 128 for sm_100, and spills


def _empty_maps(
    logits: Tensor, factor: int, teacher: Tensor | None, temperature: float, save: bool
) -> Tensor:
    """Maps of the losses and the logarithms, each ``[f, f, cells]``, cells in whole programs."""
    logarithms = 1 if teacher is None else 2 + (temperature != 1)
    shape = (1 + save * logarithms, factor, factor, cell_blocks(logits) * LANES)
    return logits.new_empty(shape, dtype=torch.float32)


def _readable(x: Tensor) -> Tensor:
    """Contiguous or channels-last; a copy of what is neither."""
    return x if is_last(x) else x.contiguous()


def is_last(x: Tensor) -> bool:
    """True if the classes of ``[B, K, h, w]`` are side by side in memory, without a gap."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def layout(logits: Tensor, teacher: Tensor | None, temperature: float) -> dict[str, Any]:
    """How the kernels read the logits: as they are, a few classes at a time where side by side."""
    networks = [logits] if teacher is None else [logits, teacher]
    last = [is_last(x) for x in networks]
    # four classes of two networks in float32 would need more registers than there are
    narrow = teacher is None or (temperature == 1 and all(x.dtype.itemsize < 4 for x in networks))
    chunk = (4 if narrow else 2) if any(last) else 1
    return {"LAST": last[0], "TEACHER_LAST": teacher is not None and last[1], "CHUNK": chunk}


def fold_tile(grad: Tensor) -> dict[str, int]:
    """Tile of the last kernel: of channels-last gradients whole pixels, which are contiguous."""
    classes = 32 if is_last(grad) else 16
    return {"BLOCK_K": classes, "BLOCK_P": 1024 // classes}


@torch.library.custom_op("fastseg::segmentation_loss", mutates_args=(), device_types=DEVICES)
def _segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    class_weights: Tensor | None,
    factor: int,
    threshold: float,
    min_kept: float,
    ignore_index: int,
    temperature: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both losses, the selection and, for a backward, the maps that it needs."""
    logits, labels = _readable(logits), labels.contiguous()
    teacher = None if teacher is None else _readable(teacher)
    b, k, h, w = logits.shape
    maps = _empty_maps(logits, factor, teacher, temperature, save)
    grid = launch_grid(logits, factor)
    sums = logits.new_empty((2, grid[0] * grid[1]), dtype=torch.float32)
    counts = logits.new_empty((2, grid[0] * grid[1]), dtype=torch.int32)
    with on_device_of(logits):
        _segmentation_loss_fwd_kernel[grid](
            logits, teacher, labels, class_weights, maps, sums, counts,
            b, k, h, w, maps.shape[3], hard_loss(threshold), 1 / temperature, ignore_index,
            HAS_TEACHER=teacher is not None, TEMPERED=teacher is not None and temperature != 1,
            WEIGHTED=class_weights is not None, SAVE=save, **layout(logits, teacher, temperature),
            FACTOR=factor, ROWS=ROWS[factor], BLOCK=LANES,
            WIDE=max(logits.numel(), maps.numel()) >= 2**31, num_warps=1, maxnreg=REGISTERS,
        )  # fmt: skip
    ohem, kl, selection = ohem_select(
        maps[0],
        sums,
        counts,
        threshold=threshold,
        min_kept=min_kept,
        kl_scale=temperature**2 / (k * labels.numel()),
        has_teacher=teacher is not None,
    )
    return ohem, kl, selection, maps


@_segmentation_loss.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    class_weights: Tensor | None,
    factor: int,
    threshold: float,
    min_kept: float,
    ignore_index: int,
    temperature: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scalars = [logits.new_empty((), dtype=torch.float32) for _ in range(2)]
    maps = _empty_maps(logits, factor, teacher, temperature, save)
    return scalars[0], scalars[1], logits.new_empty(3, dtype=torch.float32), maps


@torch.library.custom_op("fastseg::segmentation_loss_bwd", mutates_args=(), device_types=DEVICES)
def _segmentation_loss_bwd(
    d_ohem: Tensor,
    d_kl: Tensor,
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    class_weights: Tensor | None,
    selection: Tensor,
    maps: Tensor,
    ignore_index: int,
    temperature: float,
) -> Tensor:
    """Gradient of both losses, in the dtype and the strides of the logits."""
    grad = torch.empty_like(logits)
    logits, labels = _readable(logits), labels.contiguous()
    teacher = None if teacher is None else _readable(teacher)
    b, k, h, w = logits.shape
    factor, cells = maps.shape[2:]
    grid = launch_grid(logits, factor)
    corners = maps.new_empty((4 if factor > 1 else 1, grid[1], k, cells))
    wide = max(corners.numel(), maps.numel(), logits.numel()) >= 2**31
    with on_device_of(logits):
        _segmentation_loss_bwd_kernel[grid](
            logits, teacher, labels, class_weights, maps, selection,
            d_ohem, d_kl, corners, b, k, h, w, cells, 1 / temperature,
            temperature / (k * labels.numel()), ignore_index,
            HAS_TEACHER=teacher is not None, TEMPERED=teacher is not None and temperature != 1,
            WEIGHTED=class_weights is not None, **layout(logits, teacher, temperature),
            FACTOR=factor, ROWS=ROWS[factor], BLOCK=LANES, WIDE=wide, num_warps=1,
        )  # fmt: skip
        fold = fold_tile(grad)
        blocks = (triton.cdiv(h * w, fold["BLOCK_P"]), triton.cdiv(k, fold["BLOCK_K"]), b)
        _segmentation_loss_fold_kernel[blocks](
            corners, grad, k, h, w, cells, *grad.stride(),
            FACTOR=factor, GROUPS=grid[1], WIDE=wide, UP=UP, **fold, num_warps=4,
        )  # fmt: skip
    return grad


@_segmentation_loss_bwd.register_fake
def _(
    d_ohem: Tensor,
    d_kl: Tensor,
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    class_weights: Tensor | None,
    selection: Tensor,
    maps: Tensor,
    ignore_index: int,
    temperature: float,
) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    logits, labels, teacher, class_weights, _, _, _, ctx.ignore_index, ctx.temperature, _ = inputs
    _, _, selection, maps = output
    ctx.mark_non_differentiable(selection, maps)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, labels, teacher, class_weights, selection, maps)


def _backward(
    ctx: Any, d_ohem: Tensor | None, d_kl: Tensor | None, _d_selection: Any, _d_maps: Any
) -> tuple[Tensor | None, ...]:
    rest = (None,) * 9
    given = d_kl if d_ohem is None else d_ohem
    if given is None:
        return (None, *rest)
    # a term without a gradient may still have one the next time: the kernel takes both
    d_ohem, d_kl = (torch.zeros_like(given) if d is None else d for d in (d_ohem, d_kl))
    options = ctx.ignore_index, ctx.temperature
    return (_segmentation_loss_bwd(d_ohem, d_kl, *ctx.saved_tensors, *options), *rest)


_segmentation_loss.register_autograd(_backward, setup_context=_setup_context)


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    threshold: float = 0.7,
    min_kept: float = 1 / 16,
    ignore_index: int = 255,
    temperature: float = 1.0,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the hard pixels and divergence from a teacher, at the labels' resolution.

    What ``reference.segmentation_loss`` computes, without the full-resolution logits. Differences:
    pixels that share the n-th largest loss share its gradient (see :mod:`.ohem_select`), and the
    divergence of a pixel has an absolute error of about 2e-7, of either sign, which the mean over
    many pixels reduces; its gradient does not depend on that.

    Args:
        logits: ``[B, K, h, w]``, any float dtype and strides; the gradient has the same. What is
            neither contiguous nor channels-last is copied, in each pass.
        labels: ``[B, H, W]`` integers; ``ignore_index`` and everything outside ``[0, K)`` is
            ignored by the cross-entropy. The divergence runs over all pixels. The kernel serves
            1, 2, 4 and 8 times ``(h, w)``, the reference other sizes.
        teacher_logits: the shape of ``logits``, any float dtype and strides; constant.
        threshold: probability of the true class below which a pixel is hard, in (0, 1].
        min_kept: smallest share of the valid pixels that is kept, in [0, 1].
        ignore_index: label of pixels without a class.
        temperature: of the divergence, positive.
        class_weights: ``[K]`` float32, positive, on the device of the logits; constant. A loss is
            that of its pixel times the weight of its class, also where the hard ones are chosen.

    Returns:
        ``(ohem, kl)``, float32 scalars. ``ohem`` is zero with zero gradient when no pixel is kept,
        ``kl`` is at least zero, and zero without a teacher; both are zero for an empty batch.

    Raises:
        ValueError: a shape, dtype, device or option is wrong.
    """
    check_loss(logits, labels, teacher_logits, threshold, min_kept, temperature, class_weights)
    factor = served_factor(logits, labels.shape[1:])
    double = teacher_logits is not None and teacher_logits.dtype == torch.float64
    if factor is None or double or not runs_on(logits):
        return reference.segmentation.segmentation_loss(
            logits,
            labels,
            teacher_logits,
            threshold=threshold,
            min_kept=min_kept,
            ignore_index=ignore_index,
            temperature=temperature,
            class_weights=class_weights,
        )
    teacher = None if teacher_logits is None else teacher_logits.detach()
    save = torch.is_grad_enabled() and logits.requires_grad
    ohem, kl, _, _ = _segmentation_loss(
        logits,
        labels,
        teacher,
        class_weights,
        factor,
        threshold,
        min_kept,
        ignore_index,
        temperature,
        save,
    )
    return ohem, kl
