"""Choice of the way to spread a network over processes: as told, or by measuring some steps."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fastseg.choice import Choice
from fastseg.distributed.parallelize import candidates
from fastseg.engine.context import RunContext
from fastseg.engine.speed.choices import PLAIN
from fastseg.engine.speed.clock import elapsed_ms
from fastseg.engine.stage_run import build_session
from fastseg.engine.stage_setup import StageNetworks, StageSetup
from fastseg.pipelines import Batch

_WARM_UP, _TIMED = 2, 5


def choose_mode(
    context: RunContext,
    setup: StageSetup,
    networks: StageNetworks,
    batches: Callable[[], Iterable[Batch]],
    state: Mapping[str, Any],
) -> Choice[str]:
    """Choose the way to spread the networks of a stage, equal on all ranks.

    With ``auto`` the fastest mode is measured once and kept when the run continues on as many
    processes, so that it continues to the last bit.

    Args:
        context: context of the run.
        setup: setup of the stage.
        networks: networks with their first weights, on the device; left as they are.
        batches: the micro-batches of one step, on the device.
        state: state of the checkpoint that the stage continues; empty without one.
    """
    config, ranks = context.config, context.ranks
    if ranks.world == 1:
        return Choice("single", "as launched")
    if config.parallel.mode != "auto":
        return Choice(config.parallel.mode, "as configured")
    if state.get("processes") == ranks.world:
        return Choice(state["parallel"], "as before the interruption")
    if config.optim.kind == "apex_lamb":
        return Choice("replicate", "apex_lamb needs whole tensors")
    step = list(batches())
    modes = candidates(ranks, config.parallel.shard_size)
    own = [_step_ms(context, setup, networks, step, mode) for mode in modes]
    # a step is as slow as its slowest process
    slowest = ranks.reduce(own, "max")
    fastest = modes[slowest.index(min(slowest))]
    measured = ", ".join(f"{m} {ms:.1f} ms" for m, ms in zip(modes, slowest, strict=True))
    return Choice(fastest, f"median of {_TIMED} steps: {measured}")


def _step_ms(
    context: RunContext,
    setup: StageSetup,
    networks: StageNetworks,
    batches: Sequence[Batch],
    mode: str,
) -> float:
    """Median milliseconds of a step of one mode.

    Copies of the networks are trained and thrown away; the networks themselves and the random
    state stay as they are, bit for bit.
    """
    device, times = context.device, []
    gpus = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=gpus):
        learning = copy.deepcopy(networks.learning)
        # compiling for every mode would take longer than the difference between them
        plain = replace(setup, config=replace(setup.config, speed=PLAIN))
        session = build_session(
            context, plain, replace(networks, learning=learning), mode=mode, kind="adamw"
        )
        for step in range(_WARM_UP + _TIMED):
            times.append(elapsed_ms(partial(session.step_fn, step, *batches), device))
    return statistics.median(times[_WARM_UP:])
