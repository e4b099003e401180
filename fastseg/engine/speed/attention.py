"""Choice among torch's attention kernels and ours, at the shapes of a network, by measurement.

The keys are few and the heads narrow (1024 keys, 32 channels for MiT-B0 at 1024 x 1024): published
timings of the kernels are for other shapes and disagree with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from fastseg.distributed.ranks import Ranks
from fastseg.kernels.common.switch import runs_on
from fastseg.kernels.network.heads import serves
from fastseg.models import AttentionLevel, Segmenter
from fastseg.models.backbones.attention import OWN, Kernel, token_attention

BACKENDS: dict[str, Kernel] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    OWN: OWN,
}
_WARM_UP, _TIMED = 3, 10

Clock = Callable[[Callable[[], None]], float]
Record = dict[str, Any]


def settle_attention(
    networks: Sequence[Segmenter],
    images: int,
    side: int,
    dtype: torch.dtype,
    before: Record | None,
    ranks: Ranks,
) -> tuple[Record, str]:
    """Take the kernels that a run began with, or measure where nothing has chosen yet.

    Two measurements may differ, and with another kernel a resumed run would round otherwise than
    one that was never stopped. On another device, torch or shape they are measured again, and where
    our kernels, which the run began with, no longer serve.

    Args:
        networks: as for :func:`choose_attention`, like the next three.
        images: number of images in one encoder call.
        side: height and width of an image.
        dtype: dtype of queries, keys and values.
        before: value that this function returned when the run began; the same on every process.
        ranks: processes that choose together.

    Returns:
        What was chosen and where, for the training state: ``where`` and, per level, the name of
        the kernel or None in ``levels``; and the same for people.
    """
    device = next(networks[0].parameters()).device
    # of rank 0, so that no process measures while others do not
    where = ranks.share(lambda: _place(device, images, side, dtype))
    if (
        before is not None
        and before["where"] == where
        and ranks.share(
            lambda: (
                OWN not in before["levels"] or runs_on(torch.empty((), device=device, dtype=dtype))
            )
        )
    ):
        for network in networks:
            _set_kernels(network.attention_levels(images, side), before["levels"])
        kernels = ", ".join(name or "torch's choice" for name in before["levels"])
        return before, f"levels 1 to 4: {kernels}, as this run began"
    says = choose_attention(networks, images, side, dtype, ranks=ranks)
    levels = networks[0].attention_levels(images, side)
    return {"where": where, "levels": _kernels_of(levels)}, says


def choose_attention(
    networks: Sequence[Segmenter],
    images: int,
    side: int,
    dtype: torch.dtype,
    clock: Clock | None = None,
    ranks: Ranks | None = None,
) -> str:
    """Time forward and backward of every kernel at every level and set the fastest.

    Args:
        networks: networks whose attention to set; of one backbone.
        images: number of images in one encoder call, all modalities together.
        side: height and width of an image, in pixels.
        dtype: dtype of queries, keys and values.
        clock: milliseconds of a call; the GPU's by default.
        ranks: processes that choose together, by the slowest of them.

    Returns:
        What was chosen, for people.
    """
    clock = clock or _gpu_ms
    device = next(networks[0].parameters()).device
    chosen = []
    levels = [network.attention_levels(images, side) for network in networks]
    for alike in zip(*levels, strict=True):
        (n, heads, length, d), keys = alike[0].queries, alike[0].keys
        sizes = ((n, length, heads, d), (n, keys, 2, heads, d))
        q, kv = (torch.randn(x, device=device, dtype=dtype, requires_grad=True) for x in sizes)
        own = [_ms(backend, q, kv, clock) for backend in BACKENDS.values()]
        times = dict(zip(BACKENDS, ranks.reduce(own, "max") if ranks else own, strict=True))
        best = min(times, key=lambda name: times[name])
        if math.isinf(times[best]):
            chosen.append("torch's choice")
            continue
        for layer in (layer for level in alike for layer in level.layers):
            layer.backend = BACKENDS[best]
        chosen.append(f"{best} {times[best]:.3f} ms")
    return "levels 1 to 4: " + ", ".join(chosen)


def _kernels_of(levels: Sequence[AttentionLevel]) -> list[str | None]:
    """Name of the kernel of every level, None where torch chooses."""
    names = {backend: name for name, backend in BACKENDS.items()}
    firsts = [level.layers[0].backend for level in levels]
    return [None if backend is None else names[backend] for backend in firsts]


def _set_kernels(levels: Sequence[AttentionLevel], names: Sequence[str | None]) -> None:
    """Inverse of :func:`_kernels_of`."""
    for name, level in zip(names, levels, strict=True):
        for layer in level.layers:
            layer.backend = None if name is None else BACKENDS[name]


def _place(device: torch.device, images: int, side: int, dtype: torch.dtype) -> str:
    """Conditions that a measurement holds for: device, torch, number and side of images, dtype."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, torch {torch.__version__}, {images} images of {side} pixels, {dtype}"


def _ms(kernel: Kernel, q: Tensor, kv: Tensor, clock: Clock) -> float:
    """Milliseconds of both passes; infinity where the kernel does not serve the shape."""
    if kernel == OWN and not serves(q):
        return math.inf

    def passes() -> None:
        # as the layer behind takes it
        out = token_attention(q, kv, kernel).flatten(2)
        torch.autograd.grad(out, (q, kv), out)

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
