"""The kernels of prototype similarity and its divergence, as their launchers launch them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from bench.harness.shapes import WIDTHS
from bench.machine_code.aot_proto_pool import DTYPES, levels, recorded
from fastseg.kernels.prototypes.pool import sizes_of
from fastseg.kernels.similarity import divergence, maps
from fastseg.kernels.similarity.maps import pixels_of, similarity_gradients, similarity_maps

# registers and bytes of shared memory
BUDGETS = {
    "_prototype_similarity_fwd_kernel": (168, 8192),
    "_prototype_similarity_pull_kernel": (255, 98_304),
    "_prototype_similarity_project_kernel": (104, 4096),
    "_prototype_similarity_bwd_kernel": (144, 8192),
    "_similarity_divergence_sum_kernel": (40, 2048),
    "_similarity_divergence_fwd_kernel": (64, 4096),
}
KERNELS = {
    module: [name for name in BUDGETS if hasattr(module, name)] for module in (maps, divergence)
}


def launches_of(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    labels: Tensor,
    num_classes: int,
    axis: str = "row",
    selected: Tensor | None = None,
    through: bool = True,
) -> list[tuple[Any, Any, Any]]:
    """The maps of both networks, their divergence, and the student's gradient."""
    shapes = [x.shape for x in (*student, *teacher)]
    prototypes = torch.empty(sum(sizes_of(shapes, num_classes)), device="meta")
    counts = torch.empty((len(shapes), len(labels), num_classes), dtype=torch.int64, device="meta")
    with ExitStack() as stack:
        launches = [stack.enter_context(recorded(*item)) for item in _recordings()]
        maps, inverses = similarity_maps(
            [*student, *teacher], labels, prototypes, num_classes, len(student)
        )
        split = sum(pixels_of(shapes[: len(student)]))
        _, table = divergence.diverge_maps(
            maps[:split], maps[split:], labels, num_classes,
            [(x.shape[3], x.shape[4]) for x in student], range(len(student[0])), len(teacher[0]),
            selected, axis, "mask", 2.0,
        )  # fmt: skip
        similarity_gradients(
            table, torch.empty((), device="meta"), student, labels, maps, inverses, prototypes,
            counts, num_classes, through,
        )  # fmt: skip
    return [launch for found in launches for launch in found]


def _recordings() -> list[tuple[Any, ...]]:
    return [(module, *names) for module, names in KERNELS.items()]


def launches_of_one(x: Tensor, labels: Tensor, num_classes: int) -> list[tuple[Any, Any, Any]]:
    """The map of one level, and the gradients of its features and of prototypes that are given."""
    prototypes = torch.empty(sum(sizes_of([x.shape], num_classes)), device="meta")
    with recorded(*_recordings()[0]) as launches:
        maps, inverses = similarity_maps([x], labels, prototypes, num_classes, 1)
        similarity_gradients(
            maps, None, [x], labels, maps, inverses, prototypes, None, num_classes, True
        )
    return launches


def cases() -> list[tuple[Any, ...]]:
    """The encoder's features at the sizes of the benchmarks, then what else may come."""
    found = []

    def add(
        name: str,
        widths: Sequence[int] = WIDTHS["b0"],
        side: int = 1024,
        *,
        student: int = 4,
        num_classes: int = 25,
        labels: torch.dtype = torch.uint8,
        forward: dict[str, Any] | None = None,
        more: int = 0,
        **options: Any,
    ) -> None:
        target = torch.empty((options.get("b", 2), side, side), dtype=labels, device="meta")
        own, others = (levels(widths, side, m=m, **options) for m in (student, 4))
        append(name, launches_of(own, others, target, num_classes, **(forward or {})), more)

    def append(name: str, launches: Sequence[tuple[Any, Any, Any]], more: int = 0) -> None:
        for kernel, arguments, constants in launches:
            warps, stages = constants.pop("num_warps"), constants.pop("num_stages", 3)
            registers, shared = BUDGETS[kernel.__name__]
            budget = (registers + more, shared)
            found.append((name, kernel, arguments, constants, warps, stages, *budget))

    for name, dtype in DTYPES.items():
        add(f"b0-1024-B2-M4-{name}", dtype=dtype)
        add(f"b2-1024-B2-M4-{name}", WIDTHS["b2"], dtype=dtype)
        add(f"b0-512-B8-M4-{name}", side=512, b=8, dtype=dtype)
        add(f"b0-1024-B2-M4-{name}-planar", dtype=dtype, planar=True)
        add(f"b0-256-B2-M4-K200-{name}", side=256, dtype=dtype, num_classes=200)
    selected = torch.empty((1, 1), dtype=torch.bool, device="meta")
    add("b0-1024-B1-M1-of-4-selected-bf16", b=1, student=1, forward={"selected": selected})
    add("b0-1024-B2-M4-K19-bf16-i64", num_classes=19, labels=torch.int64)
    add("b0-1024-B2-M4-map-detached-bf16", forward={"axis": "map", "through": False})
    # one element at a time
    unaligned, fp32 = (33, 65, 5), DTYPES["fp32"]
    add("unaligned-B2-M4-bf16", unaligned, side=224, more=112)
    add("unaligned-B2-M4-fp32-planar", unaligned, side=200, dtype=fp32, planar=True, more=112)
    for name, dtype in DTYPES.items():
        (level,) = levels((64,), 512, dtype=dtype, planar=dtype == fp32)
        target = torch.empty((2, 512, 512), dtype=torch.uint8, device="meta")
        append(f"level-given-{name}", launches_of_one(level, target, 25))
        (pixel,) = levels((1,), 4, m=1, b=1, dtype=dtype)
        append(f"one-pixel-given-{name}", launches_of_one(pixel, target[:1, :1, :1], 1), 112)
    return found
