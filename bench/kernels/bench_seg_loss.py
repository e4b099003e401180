"""The segmentation losses, and the predictions of an evaluation, from logits at stride 4.

Providers: ``official`` is the published way (:mod:`bench.rivals.published_losses`): upsample in
float32, boolean indexing for the valid and the hard pixels, a branch on the host, ``topk`` where
there are too few. ``eager`` is our definition, which has no branch on the host; ``torch_bf16`` the
same after an upsampling in bfloat16; ``compile`` is the definition under ``torch.compile``;
``fused`` are the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import largest_error
from bench.rivals import published_losses
from fastseg.kernels import reference
from fastseg.kernels.reference import segmentation

TESTS = [
    "test_segmentation_loss.py",
    "test_logit_layouts.py",
    "test_ohem_select.py",
    "test_predict.py",
]
KEPT = 1 / 16
# nothing is hard in the second case, so that the largest losses have to be found
THRESHOLDS = {"threshold": 0.7, "largest": 1e-12}
# relative, of the values and of the norm of the gradient: of two million pixels one or two are so
# near the edge of the selection that rounding decides, and each has a share of 1e-3 in the norm
SLACK = (1e-5, 1e-2)
SLACK_BF16 = (5e-2, 0.5)
SHAPES = (
    (
        shapes.PAPER,
        replace(shapes.PAPER, batch=1),
        replace(shapes.PAPER, batch=4),
        replace(shapes.PAPER, side=512),
        replace(shapes.PAPER, num_classes=19),
    )
    if shapes.ON_GPU
    else (shapes.SMALL, replace(shapes.SMALL, num_classes=19))
)
BLOBS = [setting for setting in shapes.settings(SHAPES) if setting.labels == "blobs"]
Loss = Callable[..., tuple[Tensor, Tensor]]


def eager(
    logits: Tensor, labels: Tensor, teacher: Tensor | None, threshold: float
) -> tuple[Tensor, Tensor]:
    """The definition."""
    return segmentation.segmentation_loss(
        logits, labels, teacher, threshold=threshold, min_kept=KEPT
    )


def torch_bf16(
    logits: Tensor, labels: Tensor, teacher: Tensor | None, threshold: float
) -> tuple[Tensor, Tensor]:
    """The definition after an upsampling in bfloat16."""
    size = labels.shape[1:]
    upsampled = partial(functional.interpolate, size=size, mode="bilinear", align_corners=False)
    full = upsampled(logits.bfloat16())
    ohem = reference.ohem_cross_entropy(full, labels, threshold, KEPT)
    if teacher is None:
        return ohem, ohem.new_zeros(())
    return ohem, reference.logit_distillation(full, upsampled(teacher.bfloat16()))


def providers() -> dict[str, Loss]:
    """Implementations that can run here, by the provider's name."""
    found: dict[str, Loss] = {
        "official": published_losses.segmentation_loss,
        "eager": eager,
        "torch_bf16": torch_bf16,
    }
    if shapes.ON_GPU:
        from fastseg.kernels.segmentation.loss import segmentation_loss

        found["fused"] = lambda x, y, t, p: segmentation_loss(x, y, t, threshold=p, min_kept=KEPT)
    return {**found, "compile": torch.compile(eager, dynamic=False)}


PROVIDERS = providers()


def rows() -> list[tuple[str, str, shapes.Setting, str]]:
    """Stage, selection, setting and provider; only the first setting in every way and layout."""
    settled = shapes.rows(PROVIDERS, ("official", "torch_bf16", "fused"), BLOBS)
    found = [("stage2", "threshold", *row) for row in settled]
    # as the head writes them
    found += [("stage2 channels-last", "threshold", BLOBS[0], name) for name in PROVIDERS]
    first, uncompiled = BLOBS[0], [name for name in PROVIDERS if name != "compile"]
    found += [("stage2", "largest", first, name) for name in uncompiled]
    found += [("stage1", "threshold", first, name) for name in PROVIDERS]
    return found + [("stage1", "largest", first, name) for name in uncompiled]


def both_ways(
    loss: Loss, logits: Tensor, labels: Tensor, teacher: Tensor | None, threshold: float
) -> tuple[Tensor, ...]:
    """Both losses, and the gradient with the published weight of 50 on the divergence."""
    x = logits.detach().requires_grad_()
    ohem, kl = loss(x, labels, teacher, threshold)
    (grad,) = torch.autograd.grad(ohem + 50 * kl, x)
    return ohem.detach(), kl.detach(), grad


@pytest.mark.parametrize(("stage", "selection", "setting", "provider"), rows(), ids=str)
def bench_seg_loss(
    measure: Measure, stage: str, selection: str, setting: shapes.Setting, provider: str
) -> None:
    shape, dtype = setting.shape, setting.dtype
    logits = shapes.make_logits(shape, dtype, seed=1)
    teacher = None if stage == "stage1" else shapes.make_logits(shape, dtype, seed=2)
    if stage.endswith("channels-last"):
        logits, teacher = (x.to(memory_format=torch.channels_last) for x in (logits, teacher))
    labels = shapes.make_labels(shape)
    inputs = (logits, labels, teacher, THRESHOLDS[selection])
    step = partial(both_ways, PROVIDERS[provider], *inputs)

    def check() -> float:
        wanted = both_ways(eager, logits.double(), labels, _double(teacher), inputs[3])
        plain = both_ways(eager, *inputs)
        slack, slack_grad = SLACK_BF16 if provider == "torch_bf16" else SLACK
        *values, grad = step()
        error = largest_error(values, plain[:2], wanted[:2], slack)
        off = float((grad.double() - wanted[2]).norm() / wanted[2].norm())
        assert off <= slack_grad, f"the gradient is off by {off:.1e} of its norm"
        return max(error, off)

    read = logits.nbytes + labels.nbytes + (0 if teacher is None else teacher.nbytes)
    measure(
        step,
        provider=provider,
        case=f"{stage} {selection} {shape}",
        mode="fwd+bwd",
        dtype=dtype,
        bytes_moved=read + logits.nbytes,
        check=check,
    )


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


def predictors() -> dict[str, Callable[[Tensor, Tensor, int], Tensor]]:
    """Functions that count an evaluation's predictions, by the name of the provider."""
    found: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {}
    found["eager"] = segmentation.upsample_confusion
    if shapes.ON_GPU:
        from fastseg.kernels.segmentation.predict import upsample_confusion

        found["fused"] = upsample_confusion
    return {**found, "compile": torch.compile(found["eager"], dynamic=False)}


PREDICTORS = predictors()


@pytest.mark.parametrize(("setting", "provider"), shapes.rows(PREDICTORS, (), BLOBS[:2]), ids=str)
def bench_predictions(measure: Measure, setting: shapes.Setting, provider: str) -> None:
    shape, dtype = setting.shape, setting.dtype
    logits, labels = shapes.make_logits(shape, dtype, seed=1), shapes.make_labels(shape)
    step = partial(PREDICTORS[provider], logits, labels, shape.num_classes)

    def check() -> float:
        wanted = segmentation.upsample_confusion(logits.double(), labels, shape.num_classes)
        apart = float((step() - wanted).abs().sum()) / labels.numel()
        assert apart < 1e-4, f"{apart:.1e} of the pixels are counted elsewhere"
        return apart

    measure(
        step,
        provider=provider,
        case=f"confusion {shape}",
        mode="forward",
        dtype=dtype,
        bytes_moved=logits.nbytes + labels.nbytes,
        check=check,
    )
