"""Which of torch's attention kernels is the fastest at the shapes of a network, by measurement.

The keys are few and the heads narrow (1024 keys, 32 channels for MiT-B0 at 1024 x 1024): published
timings of the kernels are for other shapes and disagree with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from fastseg.models import SegFormer
from fastseg.models.attention import Attention, attention
from fastseg.ranks import Ranks

BACKENDS: dict[str, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_WARM_UP, _TIMED = 3, 10

Clock = Callable[[Callable[[], None]], float]


def attention_shapes(
    network: SegFormer, images: int, side: int
) -> list[tuple[tuple[int, int, int, int], int]]:
    """Per level the shape ``[N, heads, L, d]`` of the queries, and the number of keys."""
    config, shapes = network.encoder.config, []
    for i in range(4):
        rows = side // (4 << i)
        queries = (images, config.heads[i], rows**2, config.widths[i] // config.heads[i])
        shapes.append((queries, (rows // config.reductions[i]) ** 2))
    return shapes


def choose_attention(
    networks: Sequence[SegFormer],
    images: int,
    side: int,
    dtype: torch.dtype,
    clock: Clock | None = None,
    ranks: Ranks | None = None,
) -> str:
    """Time forward and backward of every kernel at every level and set the fastest.

    Args:
        networks: whose attention to set; of one backbone.
        images: of one encoder call, all modalities together.
        side: of an image, in pixels.
        dtype: of queries, keys and values.
        clock: milliseconds of a call; the GPU's by default.
        ranks: processes that choose together, by the slowest of them.

    Returns:
        What was chosen, for people.
    """
    clock = clock or _gpu_ms
    device = next(networks[0].parameters()).device
    chosen = []
    for level, (shape, keys) in enumerate(attention_shapes(networks[0], images, side)):
        tensors = [
            torch.randn(
                (shape[0], length, shape[1], shape[3]), device=device, dtype=dtype
            ).transpose(1, 2).requires_grad_()
            for length in (shape[2], keys, keys)
        ]  # fmt: skip
        own = [_ms(backend, tensors, clock) for backend in BACKENDS.values()]
        times = dict(zip(BACKENDS, ranks.reduce(own, "max") if ranks else own, strict=True))
        best = min(times, key=lambda name: times[name])
        if math.isinf(times[best]):
            chosen.append("torch's choice")
            continue
        for network in networks:
            for block in list(network.encoder.levels())[level][1]:
                cast(Attention, block.attn).backend = BACKENDS[best]
        chosen.append(f"{best} {times[best]:.3f} ms")
    return "levels 1 to 4: " + ", ".join(chosen)


def _ms(backend: SDPBackend, tensors: Sequence[Tensor], clock: Clock) -> float:
    """Milliseconds of both passes; infinity where the kernel does not serve the shape."""
    q, k, v = tensors

    def passes() -> None:
        out = attention(q, k, v, backend)
        torch.autograd.grad(out, tensors, out)

    try:
        return clock(passes)
    except RuntimeError:
        return math.inf


def _gpu_ms(call: Callable[[], None]) -> float:
    for _ in range(_WARM_UP):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(_TIMED):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / _TIMED
