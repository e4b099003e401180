"""Looking at a run while it runs: a profiler window, TensorBoard scalars, a closing line."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from fastseg.console import say
from fastseg.distributed.ranks import Ranks
from fastseg.pipelines.tools.progress import duration, foretell

_FIRST_STEP = 10  # of the window, counted from 0: by then a stage runs evenly
_DEAREST = 10
_ACTIVITY = torch.profiler.ProfilerActivity


class StepWatch:
    """Counts the steps of one stage in this session, and profiles some of them.

    Args:
        title: title of the stage.
        folder: folder of the traces.
        ranks: the processes; the first one alone profiles and speaks, for all of them.
        profile_steps: length of the profiler's window; 0 for none. A validation that falls into it
            is profiled as well.
        expected: steps that this session may run; a short one is profiled from its beginning.
        forecast: say after the second step how long the stage may take; the first is no measure.
    """

    def __init__(
        self,
        title: str,
        folder: Path,
        ranks: Ranks,
        profile_steps: int,
        *,
        expected: int,
        forecast: bool = False,
    ) -> None:
        self._title, self._folder, self._ranks, self._device = title, folder, ranks, ranks.device
        self._window = profile_steps if ranks.is_first else 0
        self._first = max(0, min(_FIRST_STEP, expected - profile_steps))
        self._expected = expected if forecast and ranks.is_first else 0
        self._profile: torch.profiler.profile | None = None
        self._steps = self._samples = 0
        self._waited = 0.0
        self._began = self._step_began = time.perf_counter()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def before(self) -> None:
        """A step begins."""
        if self._window and self._steps == self._first:
            gpu = [_ACTIVITY.CUDA] if self._device.type == "cuda" else []
            self._profile = torch.profiler.profile(activities=[_ACTIVITY.CPU, *gpu])
            self._profile.start()
        self._step_began = time.perf_counter()

    def after(self, samples: int, waited: float) -> None:
        """A step is queued: its number of samples, and the seconds it waited for them."""
        self._steps += 1
        self._samples += samples
        self._waited += waited
        if self._expected and self._steps == 2:
            seconds = waited + time.perf_counter() - self._step_began
            say(f"{self._title}: {foretell('a step', seconds, self._expected - 2)}", detail=True)
        if self._profile is not None and self._steps == self._first + self._window:
            self._end_window()

    def close(self) -> None:
        """The stage ends, or the session does."""
        if self._profile is not None:
            self._end_window()
        if self._steps and self._ranks.is_first:
            say(self.summary())

    def summary(self) -> str:
        """Steps, time and speed of this session in the stage, validation and saving included."""
        seconds = time.perf_counter() - self._began
        text = (
            f"{self._title}: {self._steps} steps in {duration(seconds)}, "
            f"{self._ranks.world * self._samples / seconds:.1f} images/s, "
            f"{100 * self._waited / seconds:.0f} % of the time waiting for data"
        )
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / 2**30
            text += f", at most {peak:.2f} GiB of the GPU"
        return text

    def _end_window(self) -> None:
        assert self._profile is not None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._profile.stop()
        trace = self._folder / f"trace-{self._title}.json.gz"
        self._profile.export_chrome_trace(str(trace))
        count = self._steps - self._first
        head = f"{self._title}: {count} steps profiled, trace in {trace}; dearest operators:"
        say("\n".join([head, *self._dearest()]))
        self._profile = None

    def _dearest(self) -> list[str]:
        """The operators that took the most time themselves, on the device that trains."""
        assert self._profile is not None
        kind = "device" if self._device.type == "cuda" else "cpu"
        costs = [
            (float(getattr(event, f"self_{kind}_time_total")), event.count, event.key)
            for event in self._profile.key_averages()
        ]
        total = sum(cost for cost, _, _ in costs) or 1.0
        largest = sorted(costs, reverse=True)[:_DEAREST]
        return [
            f"  {100 * cost / total:5.1f} %  {cost / 1e3:9.2f} ms  {calls:6d} calls  {key[:80]}"
            for cost, calls, key in largest
        ]
