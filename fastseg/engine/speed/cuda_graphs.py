"""A step as a CUDA graph: one launch by the host instead of several hundred.

A graph repeats the kernels that were captured, with the addresses and numbers they had. So one is
captured for each number of modalities or packed images, inputs are copied into memory that stays
where it is, and whatever changes from step to step (subset, permutations, noise key, learning rate)
is read from :class:`fastseg.methods.draws.Draws` on the device; dropout follows torch's generator,
whose seed a replay reads anew. Before a capture the same step runs a few times as usual: those are
steps of the training like any other, in which libraries allocate and kernels are compiled and
loaded. They read what a replay will read, so that a capture meets no kernel for the first time, and
so that a step gives the same numbers whether it is replayed or not.

What cannot be captured falls back to the usual step, and :attr:`StepGraphs.reason` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fastseg.console import say
from fastseg.engine.optim.optimizer import set_learning_rate
from fastseg.methods.draws import Draws

Values = dict[str, Tensor]
Update = Callable[[Tensor, Tensor, Draws], Values]

_USUAL_STEPS = 3  # before a capture, as torch recommends


class Recorder(Protocol):
    """Runs work as a capture needs it, captures it, and replays what it captured."""

    def warm(self, work: Callable[[], Values]) -> Values:
        """Do the work now."""
        ...

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Capture the work without doing it: where its result will lie, and the replay."""
        ...


class CudaRecorder:
    """:class:`Recorder` by ``torch.cuda.CUDAGraph``; all graphs share their memory."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._broken: torch.cuda.CUDAGraph | None = None

    def warm(self, work: Callable[[], Values]) -> Values:
        """On a stream beside the usual one, as captures run on one."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            values = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return values

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Capture on the same stream; loaders' threads may go on meanwhile."""
        # what the usual steps have cached is of no use to the graph's own memory
        torch.cuda.empty_cache()
        usual = torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        cause: Exception | None = None
        try:
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                try:
                    result = work()
                except Exception as error:
                    # the end of a capture that was broken off fails as well, and says less
                    cause = error
                    raise
        except Exception as error:
            torch.cuda.set_stream(usual)
            self._recover(graph)
            raise cause or error from None
        return result, graph.replay

    def _recover(self, graph: torch.cuda.CUDAGraph) -> None:
        """Undo what torch leaves behind where a capture does not end.

        Up to 2.13 the error of its end comes before the generator, the allocator and the current
        stream are told: random numbers would be refused from then on, and memory that several
        streams have used would never be free again.
        """
        # the host's allocator may still ask the graph whose memory it is
        self._broken = graph
        index = torch.cuda.current_device()
        # where the capture did end, or torch has no such call, there is nothing to undo
        with suppress(RuntimeError, AttributeError):
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)
        generator = torch.cuda.default_generators[index]
        seed = generator.initial_seed()
        generator.graphsafe_set_state(torch.Generator(f"cuda:{index}"))
        generator.manual_seed(seed)


@dataclass(frozen=True)
class _Captured:
    names: tuple[str, ...]
    result: Tensor
    replay: Callable[[], None]


class StepGraphs:
    """Calls like the update of a step, and replays it where it can.

    Args:
        update: forward, backward and optimizer step; returns scalars.
        optimizer: stepped by the update; its learning rate is read from the draws in a graph.
        recorder: captures; on a GPU by default.

    Attributes:
        reason: why steps run as usual after all; None while they do not.
    """

    def __init__(
        self, update: Update, optimizer: torch.optim.Optimizer, recorder: Recorder | None = None
    ) -> None:
        self.reason: str | None = None
        self._update, self._optimizer = update, optimizer
        self._recorder = recorder or CudaRecorder()
        self._usual: dict[int, int] = {}
        self._captured: dict[int, _Captured] = {}
        self._inputs: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> Values:
        """One step; ``torch.manual_seed`` has been called for it."""
        draws = replace(draws, replayed=True)
        with _rate_of(self._optimizer, draws.learning_rate):
            if self.reason is not None or not self._fits(images, labels, draws):
                return self._update(images, labels, draws)
            count = draws.size
            self._usual[count] = self._usual.get(count, 0) + 1
            if self._usual[count] <= _USUAL_STEPS:
                return self._recorder.warm(partial(self._update, images, labels, draws))
            self._fill(images, labels, draws)
            if count not in self._captured:
                try:
                    self._captured[count] = self._capture(draws)
                except Exception as error:
                    self._give_up(error)
                    return self._update(images, labels, draws)
        captured = self._captured[count]
        captured.replay()
        # the next replay writes to the same place
        return dict(zip(captured.names, captured.result.clone().unbind(), strict=True))

    def _give_up(self, error: Exception) -> None:
        """Run as usual from here on: an error of the step itself will come again then."""
        said = str(error).strip().splitlines()
        self.reason = f"{type(error).__name__}: {said[0] if said else 'no reason given'}"
        say(f"CUDA graphs off from here on, the step cannot be captured ({self.reason})")
        self._captured.clear()
        self._optimizer.zero_grad(set_to_none=True)

    @property
    def sizes(self) -> list[int]:
        """Numbers of modalities, or of images, whose steps are replayed by now."""
        return sorted(self._captured)

    def describe(self, packed: bool) -> str:
        """The sizes that are replayed, of images where they are packed, or why none is."""
        numbers = " ".join(map(str, self.sizes)) or "no"
        why = f" ({self.reason})" if self.reason else ""
        return f"graphs of {numbers} {'images' if packed else 'modalities'}{why}"

    def _fits(self, images: Tensor, labels: Tensor, draws: Draws) -> bool:
        """True if the inputs are like those before; another shape runs as usual."""
        if self._inputs is None:
            return True
        given = (images, labels, draws.packed)
        return all(
            x.shape == y.shape and x.dtype == y.dtype
            for x, y in zip(given, self._inputs, strict=True)
        )

    def _fill(self, images: Tensor, labels: Tensor, draws: Draws) -> None:
        given = (images, labels, draws.packed)
        if self._inputs is None:
            self._inputs = (images.clone(), labels.clone(), draws.packed.clone())
            return
        for static, x in zip(self._inputs, given, strict=True):
            static.copy_(x, non_blocking=True)

    def _capture(self, draws: Draws) -> _Captured:
        assert self._inputs is not None
        images, labels, packed = self._inputs
        draws = replace(draws, packed=packed)
        names: tuple[str, ...] = ()

        def work() -> Tensor:
            nonlocal names
            # inside, so that the factor of a group is part of the graph
            with _rate_of(self._optimizer, draws.learning_rate, capturable=True):
                values = self._update(images, labels, draws)
            names = tuple(values)
            return torch.stack([value.float() for value in values.values()])

        result, replay = self._recorder.record(work)
        return _Captured(names, result, replay)


@contextmanager
def _rate_of(
    optimizer: torch.optim.Optimizer, rate: Tensor, capturable: bool = False
) -> Iterator[None]:
    """Within the block the optimizer reads its learning rate from the device."""
    groups = optimizer.param_groups
    before = [(group["lr"], group["capturable"]) for group in groups]
    set_learning_rate(optimizer, rate)
    for group in groups:
        group["capturable"] = capturable
    try:
        yield
    finally:
        for group, (lr, old) in zip(groups, before, strict=True):
            group["lr"], group["capturable"] = lr, old
