"""The kernels of the segmentation losses and predictions as the benchmarks launch them."""

from __future__ import annotations

from typing import Any

import torch

from fastseg.kernels.segmentation import bilinear, ohem_select, predict
from fastseg.kernels.segmentation import loss as host
from fastseg.kernels.segmentation import loss_kernels as loss

# batch, classes, height and width of the logits; 1024 x 1024 and 512 x 512 labels, DELIVER's,
# MCubeS's and MUSES's classes
SHAPES = ((2, 25, 256, 256), (2, 25, 128, 128), (2, 20, 256, 256), (2, 19, 256, 256))
FACTORS = (1, 2, 8)  # besides 4
FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LABELS = {"u8": torch.uint8, "i64": torch.int64}
REGISTERS = {"fwd": 240, "bwd": 190}
ALL = 255  # of channels-last logits, whose classes come several at a time
SLOTS = 8192


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def cases() -> list[tuple[Any, ...]]:
    """Losses with and without a teacher, selection, argmax and confusion matrix."""
    found = []
    # K, h and w are numbers of the launch: other shapes are the same machine code
    first, small = SHAPES[:2]
    for dtype in FLOATS:
        found += _loss(first, dtype) + _loss(first, dtype, has_teacher=False)
        found += _loss(first, dtype, last=(True, True))
    for factor in FACTORS:
        found += _loss(small, "fp32", factor=factor)
    found += _loss(small, "fp32", labels="i64") + _loss(small, "fp32", wide=True)
    found += _loss(small, "fp32", tempered=True) + _loss(small, "fp32", weighted=True)
    found += _loss(first, "bf16", last=(True, False))
    found += _loss(first, "bf16", last=(True, True), has_teacher=False)
    found += _loss(first, "bf16", last=(True, True), weighted=True)
    return [*found, *_fold(), *_selection(), *_predictions()]


def _logits(shape: tuple[int, int, int, int], dtype: str, last: bool) -> torch.Tensor:
    x = _meta(*shape, dtype=FLOATS[dtype])
    return x.to(memory_format=torch.channels_last) if last else x


def _loss(
    shape: tuple[int, int, int, int],
    dtype: str,
    *,
    last: tuple[bool, bool] = (False, False),
    labels: str = "u8",
    factor: int = 4,
    has_teacher: bool = True,
    tempered: bool = False,
    weighted: bool = False,
    wide: bool = False,
) -> list[tuple[Any, ...]]:
    b, k, h, w = shape
    x, teacher = (_logits(shape, dtype, channels_last) for channels_last in last)
    teacher = teacher if has_teacher else None
    layout = host.layout(x, teacher, 2.0 if tempered else 1.0)
    target = _meta(b, h * factor, w * factor, dtype=LABELS[labels])
    blocks, groups = bilinear.launch_grid(x, factor)
    cells = blocks * bilinear.LANES
    maps = _meta(4, factor, factor, cells)
    sums, counts = _meta(2, SLOTS), _meta(2, SLOTS, dtype=torch.int32)
    class_weights = _meta(k) if weighted else None
    flags = {
        "HAS_TEACHER": has_teacher, "TEMPERED": tempered, "WEIGHTED": weighted, **layout,
        "FACTOR": factor, "ROWS": bilinear.ROWS[factor], "BLOCK": bilinear.LANES, "WIDE": wide,
    }  # fmt: skip
    words = [f"K{k}-{h}x{w}-f{factor}-{dtype}", "" if labels == "u8" else labels]
    words += ["" if has_teacher else "no-teacher"]
    words += [{(0, 0): "", (1, 1): "nhwc", (1, 0): "nhwc-nchw", (0, 1): "nchw-nhwc"}[last]]
    words += ["tempered" * tempered, "weighted" * weighted, "wide" * wide]
    name = "-".join(word for word in words if word)
    more = 20 * tempered + 16 * wide
    registers = {way: ALL if any(last) else number + more for way, number in REGISTERS.items()}
    forward = (
        name, loss._segmentation_loss_fwd_kernel,
        (x, teacher, target, class_weights, maps, sums, counts, b, k, h, w, cells, 0.35, 1.0, 255),
        {**flags, "SAVE": True, "maxnreg": host.REGISTERS}, 1, 3, registers["fwd"], 8192,
    )  # fmt: skip
    corners = _meta(4, groups, k, cells)
    backward = (
        name, loss._segmentation_loss_bwd_kernel,
        (x, teacher, target, class_weights, maps, _meta(3), _meta(), _meta(), corners,
         b, k, h, w, cells, 1.0, 1e-8, 255),
        flags, 1, 3, registers["bwd"], 8192,
    )  # fmt: skip
    return [forward, backward]


def _fold() -> list[tuple[Any, ...]]:
    found = []
    b, k, h, w = SHAPES[0]
    for factor in (4, *FACTORS):
        for layout in ("nchw", "nhwc") if factor == 4 else ("nchw",):
            for dtype in FLOATS if factor == 4 else ("fp32",):
                grad = _meta(b, k, h, w, dtype=FLOATS[dtype])
                if layout == "nhwc":
                    grad = grad.to(memory_format=torch.channels_last)
                blocks, groups = bilinear.launch_grid(grad, factor)
                cells = blocks * bilinear.LANES
                corners = _meta(4, groups, k, cells)
                flags = {
                    "FACTOR": factor,
                    "GROUPS": groups,
                    **host.fold_tile(grad),
                    "WIDE": False,
                    "UP": False,
                }
                found.append((
                    f"K{k}-{h}x{w}-f{factor}-{dtype}-{layout}",
                    loss._segmentation_loss_fold_kernel,
                    (corners, grad, k, h, w, cells, *grad.stride()), flags, 4, 3, 96, 16384,
                ))  # fmt: skip
    return found


def _selection() -> list[tuple[Any, ...]]:
    sums, counts = _meta(2, SLOTS), _meta(2, SLOTS, dtype=torch.int32)
    state, selection = _meta(9, dtype=torch.int32), _meta(3)
    bins, programs = ohem_select._BINS, ohem_select._MOST_PROGRAMS
    histograms = _meta(4, programs, bins, dtype=torch.int32)
    losses, above = _meta(4, 4, 132640), _meta(programs)
    fixed = {"PROGRAMS": programs, "BINS": bins}
    found: list[tuple[Any, ...]] = [
        ("decide", ohem_select._ohem_decide_kernel,
         (sums, counts, _meta(), _meta(), selection, state, SLOTS, 0.35, 1 << 60, 1e-8),
         {"HAS_TEACHER": True, "BLOCK": 1024}, 8, 3, 64, 8192),
        ("finish", ohem_select._ohem_finish_kernel,
         (histograms, above, state, _meta(), selection),
         {"PASS": ohem_select._LAST, **fixed}, 8, 3, 96, 32768),
    ]  # fmt: skip
    for index, shift in enumerate(ohem_select._SHIFTS):
        flags = {"PASS": index, "SHIFT": shift, "LAST": index == ohem_select._LAST, **fixed}
        found.append((
            f"pass{index}", ohem_select._ohem_radix_kernel,
            (losses, histograms, above, state, losses.numel(), 0.35),
            {**flags, "BLOCK": ohem_select._BLOCK}, 8, 3, 160, 32768,
        ))  # fmt: skip
    return found


def _predictions() -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for b, k, h, w in SHAPES:
        for factor in (4, *FACTORS) if (k, h) == (25, 256) else (4,):
            for dtype, float_dtype in FLOATS.items():
                x = _meta(b, k, h, w, dtype=float_dtype)
                out = _meta(b, h * factor, w * factor, dtype=torch.uint8)
                flags = {"FACTOR": factor, "ROWS": bilinear.ROWS[factor]}
                flags |= {"BLOCK": bilinear.LANES, "WIDE": False}
                name = f"K{k}-{h}x{w}-f{factor}-{dtype}"
                found.append((name, predict._upsample_argmax_kernel, (x, out, b, k, h, w),
                              flags, 1, 3, 128, 8192))  # fmt: skip
    for k in (19, 20, 25, 200):
        for labels, label_dtype in LABELS.items():
            predictions = _meta(2, 1024, 1024, dtype=torch.uint8)
            target = _meta(2, 1024, 1024, dtype=label_dtype)
            partial = _meta(128, k * k, dtype=torch.int32)
            found.append((f"K{k}-{labels}", predict._confusion_kernel,
                          (predictions, target, partial, target.numel(), k, predict._BINS // k),
                          {"BINS": predict._BINS, "BLOCK": predict._BLOCK},
                          4, 3, 128, 32768))  # fmt: skip
    counts = _meta(25, 25, dtype=torch.int64)
    found.append(("K25", predict._confusion_sum_kernel,
                  (_meta(512, 625, dtype=torch.int32), counts, 625, 512),
                  {"BLOCK": 64, "BLOCK_R": 32}, 4, 3, 96, 8192))  # fmt: skip
    return found
