"""Forecast of a step, before the first one: memory by counting shapes, time by a rehearsal."""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastseg.engine.context import RunContext
from fastseg.engine.optim.optimizer import build_optimizer
from fastseg.engine.speed.choices import PLAIN
from fastseg.engine.stage_setup import StageNetworks, StageSetup
from fastseg.engine.step import TrainStep
from fastseg.models import Segmenter
from fastseg.models.parameter_groups import fixed_buffers
from fastseg.models.precision import reduced_dtype
from fastseg.pipelines import Batch


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are made inside the block and still alive.

    Attributes:
        now: alive at this moment.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        given = {id(_storage(x)) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = _storage(x)
                if id(storage) not in self._seen and id(storage) not in given:
                    self._track(storage)
        return out

    def _track(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._seen.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def _storage(x: Tensor) -> Any:
    return x.untyped_storage()


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes of a stage on one device.

    Attributes:
        networks: weights of all networks, and the optimizer's two moments.
        step: activations, gradients and losses at the worst moment of a step, batch included.
    """

    networks: int
    step: int

    def __str__(self) -> str:
        total = (self.networks + self.step) / 2**30
        return (
            f"{total:.2f} GiB: {self.networks / 2**30:.2f} for weights and moments, "
            f"{self.step / 2**30:.2f} for a step with all modalities"
        )


def count_memory(context: RunContext, setup: StageSetup, shards: int = 1) -> MemoryForecast:
    """Count what a step allocates, without memory or arithmetic; what allocators add is left out.

    Args:
        context: context of the run.
        setup: setup of the stage.
        shards: processes that hold one copy of a network together.
    """
    # regions that will be compiled run as they are: a compiler fuses, so this is an upper bound
    config = replace(setup.config, speed=PLAIN, accumulate=1)
    setup = replace(setup, config=config, steps_per_epoch=1)
    modalities, data, stage = len(context.modalities), config.data, setup.stage
    learning, frozen = (
        {name: context.new_network(seed=0, name=name) for name in names}
        for names in (stage.learners, stage.targets)
    )
    setup.method.hold(stage, learning)
    setup.method.prepare(stage, learning, replace(context.surroundings, folder=None))
    for network in frozen.values():
        network.freeze(reduced_dtype(config.precision) or torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        networks = StageNetworks(
            *(
                {name: _shapes_of(network, context.device) for name, network in some.items()}
                for some in (learning, frozen)
            )
        )
        size = sum(map(_size, networks.together().parameters()))
        # FSDP gathers what it has cut
        weights = 3 * size if shards == 1 else 3 * size // shards + size
        weights += sum(_size(p) for each in networks.frozen.values() for p in each.parameters())
        # weights that never learn are whole on every process
        weights += sum(_size(x) for each in networks for x in fixed_buffers(each))
        optimizer = build_optimizer(networks.together(), config.optim)
        train = TrainStep(setup, networks, optimizer)
        draws = train.draw(0, modalities, data.batch_size, kept=list(range(modalities)))
        with LiveBytes() as live:
            train.rehearse(blank_batch(train.device, modalities, data.batch_size, data.size), draws)
    return MemoryForecast(weights, live.peak)


def forecast_memory(context: RunContext, setup: StageSetup, shards: int = 1) -> str:
    """Result of `count_memory`, for people; a forecast that fails must not end a training."""
    try:
        return str(count_memory(context, setup, shards))
    except Exception as error:  # torch asserts what it has not implemented for shapes alone
        reason = (str(error).splitlines() or ["no reason given"])[0]
        return f"an unknown amount of memory ({type(error).__name__}: {reason})"


def _shapes_of(network: Segmenter, device: torch.device) -> Segmenter:
    """A copy without memory; the active fake mode is what its tensors live in."""
    tensors = [*network.buffers(), *network.constants()]
    copies: dict[int, Tensor] = {id(x): torch.empty_like(x, device=device) for x in tensors}
    for x in network.parameters():
        copies[id(x)] = nn.Parameter(torch.empty_like(x, device=device), x.requires_grad)
    return copy.deepcopy(network, copies)


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()


def blank_batch(device: torch.device, modalities: int, batch: int, side: int) -> Batch:
    """A batch of zeros: images ``[M, B, 3, side, side]``, labels ``[B, side, side]``."""
    images = torch.zeros((modalities, batch, 3, side, side), device=device)
    labels = torch.zeros((batch, side, side), dtype=torch.int64, device=device)
    return Batch(images, labels, modalities=("",) * modalities, sample_ids=("",) * batch)
