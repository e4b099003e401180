"""Rehearsals before the first step: compilation and the choice of kernels take place here."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastseg.distributed.ranks import Ranks
from fastseg.engine.memory_forecast import blank_batch
from fastseg.engine.speed.attention import settle_attention
from fastseg.engine.speed.clock import elapsed_ms
from fastseg.engine.speed.compile import compile_failure
from fastseg.engine.step import TrainStep
from fastseg.pipelines import Batch


def warm_up(
    train: TrainStep, modalities: int, batch: int, side: int, ranks: Ranks
) -> tuple[float | None, list[str]]:
    """Choose kernels, compile for every number of modalities, and time a rehearsal.

    Weights, statistics and the draws of the training stay as they are. On a CPU without anything
    to compile a rehearsal would cost as much as a step and tell no more: there is none.

    Args:
        train: the step function.
        modalities: M.
        batch: samples per step.
        side: of an image, in pixels.
        ranks: the processes, which all rehearse together.

    Returns:
        Seconds of both passes of a step with all modalities, None without a rehearsal; and what
        was chosen, for people.
    """
    said = []
    if train.paths.attention.value:
        images = modalities * batch
        train.attention, chosen = settle_attention(
            list(train.networks), images, side, train.dtype, train.attention, ranks
        )
        said.append(f"attention kernels, both passes: {chosen}")
    if train.device.type == "cpu" and not train.paths.compile.value:
        return None, said
    blank = blank_batch(train.device, modalities, batch, side)
    try:
        return _rehearse(train, blank), said
    except RuntimeError as error:
        # other processes may be in the midst of a collective: then it is an error for all
        alone = train.config.speed.compile == "auto" and ranks.world == 1
        reason = compile_failure(error)
        if reason is None or not alone:
            raise
        train.run_as_written(f"torch.compile failed: {reason}")
    said.append(f"compile off ({train.paths.compile.why})")
    return _rehearse(train, blank), said


def _rehearse(train: TrainStep, blank: Batch) -> float:
    """Meet every shape that is compiled; seconds of both passes with all modalities."""
    modalities, batch = blank.images.shape[:2]
    seconds = 0.0
    for kept in (*_shapes(train, modalities, batch), list(range(modalities))):
        draws = train.draw(0, modalities, batch, kept=kept)
        seconds = elapsed_ms(partial(train.rehearse, blank, draws), train.device) / 1e3
    return seconds


def _shapes(train: TrainStep, modalities: int, batch: int) -> list[list[int] | Tensor]:
    """What may be left in a step, once for every shape; all modalities come last."""
    everything = list(range(modalities))
    if not train.paths.compile.value or train.stage.modalities != "drop":
        return [everything]
    if train.stage.modalities_per == "batch":
        return [everything[:count] for count in range(1, modalities + 1)]
    rule = train.paths.packing.value
    if rule is None:
        return [everything]
    # the first images of [M, B]: one of each sample, then more
    images = torch.arange(modalities * batch).view(modalities, batch)
    return [(images < number).long() for number in rule.numbers(modalities, batch)]
