"""The kernels of prototype pooling, as the launchers of the operator launch them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.harness.shapes import WIDTHS
from fastseg.kernels.common.feature_maps import layout_of
from fastseg.kernels.prototypes import pool

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
KERNELS = tuple(f"_prototype_pool_{part}_kernel" for part in ("fwd", "reduce", "bwd"))
# registers and bytes of shared memory
BUDGETS = {
    "_prototype_pool_fwd_kernel": (200, 40_960),
    "_prototype_pool_reduce_kernel": (64, 4096),
    "_prototype_pool_bwd_kernel": (96, 4096),
    "_prototype_divergence_fwd_kernel": (128, 8192),
}


class _Recorder:
    """Stands in for a kernel: notes the launch in place of it."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, Any, Any]]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


@contextmanager
def recorded(module: ModuleType, *names: str) -> Iterator[list[tuple[Any, Any, Any]]]:
    """Note the launches of a module's kernels: the kernel, its arguments and its options."""
    launches: list[tuple[Any, Any, Any]] = []
    with ExitStack() as stack:
        for name in names:
            recorder = _Recorder(getattr(module, name), launches)
            stack.enter_context(mock.patch.object(module, name, recorder))
        yield launches


def as_cases(
    name: str, launches: Sequence[tuple[Any, Any, Any]], more: int = 0
) -> list[tuple[Any, ...]]:
    """Launches as cases of ``bench.machine_code.aot``, with some registers more than the budget."""
    found = []
    for kernel, arguments, options in launches:
        warps, stages = options.pop("num_warps"), options.pop("num_stages", 3)
        registers, shared = BUDGETS[kernel.__name__]
        found.append((name, kernel, arguments, options, warps, stages, registers + more, shared))
    return found


def levels(
    widths: Sequence[int],
    side: int,
    *,
    m: int = 4,
    b: int = 2,
    dtype: torch.dtype = torch.bfloat16,
    planar: bool = False,
) -> list[Tensor]:
    """Features of every level without memory."""
    found = []
    for i, c in enumerate(widths):
        s = side // (4 << i)
        shape = (m, b, c, s, s) if planar else (m, b, s, s, c)
        x = torch.empty(shape, dtype=dtype, device="meta")
        found.append(x if planar else x.movedim(-1, 2))
    return found


def launches_of(
    student: list[Tensor],
    teacher: list[Tensor],
    labels: Tensor,
    num_classes: int,
) -> list[tuple[Any, Any, Any]]:
    """Both networks pooled, and the student's gradient."""
    with recorded(pool, *KERNELS) as launches:
        _, counts = pool.pool_maps([*student, *teacher], labels, num_classes, False)
        size = sum(pool.sizes_of([x.shape for x in student], num_classes))
        grad = torch.empty(size, device="meta")
        layouts = [number for x in student for number in layout_of(x)]
        scale = torch.empty((), device="meta")
        pool.unpool_maps(grad, scale, labels, counts, layouts, False)
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
        more: int = 0,
        **options: Any,
    ) -> None:
        target = torch.empty((options.get("b", 2), side, side), dtype=labels, device="meta")
        own, others = (levels(widths, side, m=m, **options) for m in (student, 4))
        found.extend(as_cases(name, launches_of(own, others, target, num_classes), more))

    for name, dtype in DTYPES.items():
        add(f"b0-1024-B2-M4-{name}", dtype=dtype)
        add(f"b2-1024-B2-M4-{name}", WIDTHS["b2"], dtype=dtype)
        add(f"b0-512-B8-M4-{name}", side=512, b=8, dtype=dtype)
        add(f"b0-1024-B2-M4-{name}-planar", dtype=dtype, planar=True)
        add(f"b0-256-B2-M4-K200-{name}", side=256, dtype=dtype, num_classes=200)
    add("b0-1024-B1-M1-of-4-bf16", b=1, student=1)
    add("b0-1024-B2-M4-K19-bf16-i64", num_classes=19, labels=torch.int64)
    # one element at a time
    add("unaligned-B2-M4-bf16", (33, 65, 5), side=224, more=144)
    add("unaligned-B2-M4-fp32-planar", (33, 65, 5), side=200, dtype=torch.float32, planar=True)
    return found
