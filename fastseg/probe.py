"""How to spread a network over the processes: as told, or as a few measured steps of each say."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from fastseg.context import RunContext
from fastseg.fast_paths import SpeedConfig
from fastseg.models import SegFormer
from fastseg.parallel import candidates
from fastseg.pipelines import Batch
from fastseg.schedule import Stage
from fastseg.session import build_session

_WARM_UP, _TIMED = 2, 5
# compiling for every mode would take longer than the difference between them
_PLAIN = SpeedConfig(compile="off", graphs="off", attention="torch")


def choose_mode(
    context: RunContext,
    index: int,
    stage: Stage,
    network: SegFormer,
    teacher: SegFormer | None,
    batches: Callable[[], Iterable[Batch]],
    *,
    epoch: int,
    state: Mapping[str, Any],
) -> tuple[str, str]:
    """How to spread a network, equal on all ranks, and why.

    With ``auto`` the fastest mode is measured once and kept when the run continues on as many
    processes, so that it continues to the last bit.

    Args:
        context: of the run.
        index: of the stage.
        stage: what will be trained.
        network: first weights, on the device; left as they are.
        teacher: frozen network that the stage learns from.
        batches: the micro-batches of one step, on the device.
        epoch: steps of one epoch.
        state: of the checkpoint that the stage continues; empty without one.
    """
    config, ranks = context.config, context.ranks
    if ranks.world == 1:
        return "single", "as launched"
    if config.parallel.mode != "auto":
        return config.parallel.mode, "as configured"
    if state.get("processes") == ranks.world:
        return state["parallel"], "as before the interruption"
    if config.optim.kind == "apex_lamb":
        return "replicate", "apex_lamb needs whole tensors"
    step = list(batches())
    modes = candidates(ranks, config.parallel.shard_size)
    own = [_step_ms(context, index, stage, network, teacher, step, epoch, m) for m in modes]
    # a step is as slow as its slowest process
    slowest = ranks.reduce(own, "max")
    fastest = modes[slowest.index(min(slowest))]
    measured = ", ".join(f"{m} {ms:.1f} ms" for m, ms in zip(modes, slowest, strict=True))
    return fastest, f"median of {_TIMED} steps: {measured}"


def _step_ms(
    context: RunContext,
    index: int,
    stage: Stage,
    network: SegFormer,
    teacher: SegFormer | None,
    batches: Sequence[Batch],
    epoch: int,
    mode: str,
) -> float:
    """Median milliseconds of a step of one mode.

    A copy of the network is trained and thrown away; the network itself and the random state stay
    as they are, bit for bit.
    """
    device, times = context.device, []
    gpus = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=gpus):
        session = build_session(
            context, index, "probe", stage, copy.deepcopy(network), teacher,
            epoch=epoch, mode=mode, kind="adamw", speed=_PLAIN,
        )  # fmt: skip
        for step in range(_WARM_UP + _TIMED):
            began = time.perf_counter()
            session.train(step, *batches)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[_WARM_UP:])
