"""Clocks and counters of whole steps: providers take turns, so that drift hits them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from bench.harness import timing
from bench.step.cases import MODALITIES, OFFICIAL, Problem, StepCall, Values

WINDOW_MS = 100.0  # a GPU works through that many steps before the host waits for it
LONGEST_WINDOW = 20
ROUNDS = (5, 60)
# a GPU captures a step after three usual ones, so the next ones are replays
WARM_UPS = 5 if timing.ON_GPU else 1
# the loss values of a size are those of its last entry
CHECKED = (4, 1, 2, 3, 4, 4, 4, 4) if timing.ON_GPU else (4, 1, 4)
# relative difference of a term in float32 and bfloat16; the regulariser draws other noise
ROUNDING, SCATTER = {False: 1e-3, True: 0.03}, {False: 0.05, True: 0.1}
# of the loss: a term below has no digits to compare
NEGLIGIBLE = {False: 1e-4, True: 1e-2}


@dataclass
class Samples:
    """Milliseconds per step of the windows of one provider and one number of modalities."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the wall clock."""
        return statistics.median(self.wall)

    def quantile(self, share: float) -> float:
        """Of the wall clock."""
        return sorted(self.wall)[int(share * (len(self.wall) - 1) + 0.5)]


def take_turns(
    calls: Mapping[str, StepCall], steps: Mapping[int, Sequence[int]], seconds: float
) -> dict[tuple[str, int], Samples]:
    """Time every provider at every number of modalities, window by window in turn.

    Args:
        calls: warm providers.
        steps: numbers of steps by their number of modalities, to be used again and again.
        seconds: of all that is timed; at least five windows each, however long they take.
    """
    pairs = [(name, size) for size in steps for name in calls]
    found = {pair: Samples() for pair in pairs}
    lengths = dict.fromkeys(pairs, 1)
    if timing.ON_GPU:  # a CPU's steps end before the next ones begin
        for name, size in pairs:
            once, _ = _window(calls[name], steps[size][:1])
            lengths[name, size] = max(1, min(LONGEST_WINDOW, round(WINDOW_MS / once)))
    fewest, most = ROUNDS
    end = time.perf_counter() + seconds
    for number in range(most):
        if number >= fewest and time.perf_counter() > end:
            break
        first = number % len(pairs)
        for name, size in pairs[first:] + pairs[:first]:
            count = lengths[name, size]
            numbers = [steps[size][(number * count + i) % len(steps[size])] for i in range(count)]
            wall, cpu = _window(calls[name], numbers)
            found[name, size].wall.append(wall)
            found[name, size].cpu.append(cpu)
    return found


def _window(call: StepCall, numbers: Sequence[int]) -> tuple[float, float]:
    """Milliseconds per step of the clock and of all threads of the process."""
    timing.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for number in numbers:
        call(number)
    timing.wait()
    scale = 1e3 / len(numbers)
    return scale * (time.perf_counter() - wall), scale * (time.process_time() - cpu)


def first_losses(problem: Problem, call: StepCall) -> list[tuple[int, dict[str, float]]]:
    """Number of modalities and loss values of the first steps of a provider."""
    wanted = [size for size in CHECKED if size in problem.setting.sizes]
    numbers = {size: iter(problem.steps(size, len(wanted))) for size in set(wanted)}
    return [(size, _floats(call(next(numbers[size])), problem)) for size in wanted]


def _floats(values: Values, problem: Problem) -> dict[str, float]:
    return {name: float(values[name]) for name in (*problem.setting.weights, "loss")}


def hold_to(
    losses: Sequence[tuple[int, dict[str, float]]],
    others: Sequence[tuple[int, dict[str, float]]],
    weights: Mapping[str, float],
    short: bool = False,
    scatter: float | None = None,
) -> None:
    """Compare the losses of two providers, step by step; ``short`` if either is in bfloat16.

    Raises:
        AssertionError: a term differs by more than rounding, or the regulariser by more than
            other noise makes of it.
    """
    scatter = SCATTER[short] if scatter is None else scatter
    for step, ((size, mine), (_, wanted)) in enumerate(zip(losses, others, strict=True)):
        for name, weight in weights.items():
            share = scatter if name == "rrm" else ROUNDING[short]
            allowed = share * abs(wanted[name]) + NEGLIGIBLE[short] * wanted["loss"] / weight
            apart = abs(mine[name] - wanted[name])
            assert math.isfinite(mine[name]), f"step {step}: {name} is {mine[name]}"
            assert apart <= allowed, (
                f"step {step} of {size} modalities: {name} is {mine[name]:.6g}, "
                f"that of the other provider {wanted[name]:.6g}"
            )


def warmed(
    problem: Problem, provider: str, build: Callable[[str], StepCall]
) -> tuple[StepCall, float]:
    """A provider after steps of every number of modalities, when nothing is new any more.

    Beside it the MiB at the worst moment of a usual step with all modalities: networks, moments,
    batch, and what the step adds. On a GPU it is taken before steps are captured, since the memory
    of a graph is hidden from the counter.
    """
    batch = problem.batch
    before = torch.cuda.memory_allocated() if timing.ON_GPU else 0
    call = build(provider)
    numbers = {size: problem.steps(size, WARM_UPS + 2) for size in problem.setting.sizes}
    call(numbers[MODALITIES][0])
    timing.wait()
    kept = problem.resident_mib
    if timing.ON_GPU:
        # the published step copies the batch itself, so that it is among what the step adds
        own = 0 if provider == OFFICIAL else batch.images.nbytes + batch.labels.nbytes
        kept = (torch.cuda.memory_allocated() - before + own) / 2**20
    extra = timing.peak_extra_mib(lambda: call(numbers[MODALITIES][1]))
    for number in range(WARM_UPS):
        for size in problem.setting.sizes:
            call(numbers[size][number])
    timing.wait()
    return call, kept + extra


def busy_ms(call: StepCall, number: int) -> float | None:
    """Milliseconds of a step in which the GPU does something; None without one."""
    if not timing.ON_GPU:
        return None
    timing.wait()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call(number)
        timing.wait()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if str(event.device_type).endswith("CUDA")
        and not getattr(event, "is_user_annotation", False)
    )
    busy, until = 0.0, -math.inf
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e3 or None  # in microseconds; none seen is not none done
