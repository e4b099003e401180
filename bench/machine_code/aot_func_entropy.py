"""The launches of functional entropy and of the regularisers at the sizes of the benchmarks.

The operators themselves are run on tensors without memory while their launches are written down,
so a case is what a GPU would be asked for. Launches that compile to the same code are listed once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime import JITFunction

from bench.harness.shapes import PAPER
from bench.machine_code.counts import Case
from fastseg.kernels.entropy.fisher import _fisher_gradient, _fisher_regulariser
from fastseg.kernels.entropy.profile import _profile_gradient, _profile_regulariser
from fastseg.kernels.entropy.value import (
    _functional_entropy,
    _functional_entropy_gradient,
)

SIZES = (PAPER, replace(PAPER, backbone="b2"), replace(PAPER, side=512))
DTYPES = (torch.bfloat16, torch.float32)
# registers per thread; what was measured, with room for another release of the assembler. Programs
# of one warp run eight at a time per multiprocessor with 232 registers as well as with all of them
BUDGETS = {"_fisher_fwd_kernel": 255, "_profile_fwd_kernel": 255, "_gradient_kernel": 176}
BUDGET = 160
SHARED = 20_000

Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


def cases() -> list[Case]:
    """Every launch of a training step, both forms, and of the entropy of given values."""
    found: dict[Any, Case] = {}
    for name, launches in _steps():
        for kernel, arguments, options in launches:
            options = {k: v for k, v in options.items() if k not in ("grid", "warmup")}
            warps, stages = options.pop("num_warps"), options.pop("num_stages", 3)
            key = (kernel, warps, *options.items(), *map(_specialisation, arguments))
            budget = BUDGETS.get(kernel.__name__, BUDGET)
            case = Case(name, kernel, arguments, options, warps, stages, budget, SHARED)
            found.setdefault(key, case)
    return list(found.values())


def _steps() -> Iterator[tuple[str, list[Launch]]]:
    seed = torch.empty(1, dtype=torch.int64, device="meta")
    for shape in SIZES:
        for dtype in DTYPES:
            x = [torch.empty(size, dtype=dtype, device="meta") for size in shape.levels]
            name = f"{shape.side}px-{shape.backbone}-{str(dtype)[6:]}"
            upstream = torch.empty(len(x), device="meta")
            streams = list(range(len(x)))
            with _written_down() as launches:
                _, *rest = _profile_regulariser._init_fn(
                    x, x, [], seed, streams, [1.0] * len(x), 10, True, True, True
                )
                _profile_gradient._init_fn(x, upstream, *rest)
            yield f"code-{name}", launches
            yield f"paper-{name}", _fisher_launches(x, seed, streams, upstream)
            # channels next to each other in memory, as an encoder of tokens leaves them
            tokens = [y.movedim(2, 4).contiguous().movedim(4, 2) for y in x]
            yield f"paper-tokens-{name}", _fisher_launches(tokens, seed, streams, upstream)
    values = torch.empty((1, 10, 65536), device="meta")
    with _written_down() as launches:
        _functional_entropy_gradient._init_fn(values, _functional_entropy._init_fn(values))
    yield "values-10x65536", launches


def _fisher_launches(
    x: list[Tensor], seed: Tensor, streams: list[int], upstream: Tensor
) -> list[Launch]:
    with _written_down() as launches:
        _, *rest = _fisher_regulariser._init_fn(x, x, [], [], [], seed, streams, 10, 2, True, True)
        _fisher_gradient._init_fn(x, upstream, *rest, 2)
    return launches


@contextmanager
def _written_down() -> Iterator[list[Launch]]:
    """Launches are not made but added to the list."""
    launches: list[Launch] = []

    def run(kernel: Any, *arguments: Any, **options: Any) -> None:
        launches.append((kernel, arguments, options))

    with mock.patch.object(JITFunction, "run", run):
        yield launches


def _specialisation(argument: Any) -> Any:
    """Facts about an argument that the compiler specialises a kernel by."""
    if isinstance(argument, Tensor):
        return argument.dtype
    if isinstance(argument, tuple):
        return tuple(map(_specialisation, argument))
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return type(argument)
