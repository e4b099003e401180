"""Whole training steps, from a batch to updated weights, of one process on one device.

Providers: ``official`` is the published step with all of its loops, written from its description
(:mod:`bench.rivals.published_step`), in float32, batch copied within the step. ``best_torch`` is an
expert's plain PyTorch (:mod:`bench.rivals.expert_step`), ``fastseg`` the step function of the
trainer, which chooses its paths by itself; *compile* adds ``torch.compile`` to either. These two
have their batch on the device, where a loader copies it beside the step. On a GPU they compute in
bfloat16, on a CPU in float32 and, where it has instructions for it, in *bf16*, too. What is
compiled has no dropout, so that it is compiled once. As in the trainer freed memory stays with the
process, here for all providers.

All start from the same weights and see the same images, labels and subsets. The losses are those of
the released code, which all sides can compute: prototypes against the same modality and divided by
the class counts twice, the regulariser over the image height with ten samples (each level divided
by a constant, on all sides). What cannot be equal to the last digit is the regulariser, whose noise
is drawn in another order by each, and everything that follows from its gradient.

    pytest bench/step/bench_train_step.py
    pytest bench/step/bench_train_step.py -k "256px and not no-rrm" --threads 1
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from bench.conftest import TimeLeft
from bench.harness import profiling, timing
from bench.step import report as step_report
from bench.step import timing as step_timing
from bench.step.cases import (
    FASTSEG,
    MODALITIES,
    SETTINGS,
    FastsegStep,
    Problem,
    Setting,
    StepCall,
    is_short,
    providers,
)
from bench.step.rows import StepRow, mean_row
from fastseg.engine.speed.host_memory import keep_freed_memory

TESTS = [
    "test_segmentation_loss.py",
    "test_logit_layouts.py",
    "test_ohem_select.py",
    "test_functional_entropy.py",
    "test_hybrid_distillation.py",
    "test_prototype_pool.py",
    "test_gpu_step.py",
    "kernels/fusion/test_*.py",
    "kernels/network/test_*.py",
]
SECONDS = 4.0  # timed per provider and number of modalities, for each second of --seconds
Losses = list[tuple[int, dict[str, float]]]


class Comparison:
    """The providers of a setting: checked, then timed in turn.

    Attributes:
        rows: results, one row per provider and number of modalities.
    """

    def __init__(self, setting: Setting, graphs: bool = True) -> None:
        self.setting, self.rows = setting, []
        self.problem = Problem(setting, 0.0 if setting.compiled else 0.1, graphs=graphs)
        self.compiled: dict[str, StepCall] = {}
        self.status = dict.fromkeys(providers(setting), "did not end")
        self.losses: dict[str, Losses] = {}

    def run(
        self, seconds: float, profile: Path | None = None, keep: Callable[[], None] = lambda: None
    ) -> None:
        """Fill ``rows``; providers that fail say so in theirs.

        Args:
            seconds: that scale the timed ones.
            profile: folder for profiles of fastseg's steps.
            keep: called whenever ``rows`` say more: with all times, then with each one's counts.
        """
        self.check()
        warm = {}
        for provider in self.alive:
            with self._failing(provider):
                warm[provider] = step_timing.warmed(self.problem, provider, self._build)
        calls = {provider: call for provider, (call, _) in warm.items()}
        steps = {size: self.problem.steps(size, 20) for size in self.setting.sizes}
        total = SECONDS * seconds * len(calls) * len(steps)
        samples = step_timing.take_turns(calls, steps, total) if calls else {}
        found = {
            provider: [
                self._timed(calls[provider], *key, samples[key])
                for key in samples
                if key[0] == provider
            ]
            for provider in calls
        }
        for provider, timed in found.items():
            self.status[provider] = "ok"
            for row in timed:
                row.peak_mib = warm[provider][1] if row.modalities == str(MODALITIES) else None
        self._fill(found)
        keep()
        # the thousands of launches of the published step take longest to count
        for provider in reversed(calls):
            for row, (number, *_) in zip(found[provider], steps.values(), strict=True):
                self._count(row, calls[provider], number)
            self._fill(found)
            keep()
            if profile is not None and provider.split()[0] == FASTSEG:
                title = f"{self.setting} {provider}"
                _profile(calls[provider], steps[MODALITIES][0], title, profile)

    def _fill(self, found: Mapping[str, list[StepRow]]) -> None:
        self.rows = []
        for provider, status in self.status.items():
            if provider not in found:
                self.rows.append(replace(self._row(provider), status=status))
                continue
            # two and three modalities are for the mean alone
            self.rows += [x for x in found[provider] if x.modalities in ("1", str(MODALITIES))]
            if len(found[provider]) == MODALITIES:
                self.rows.append(mean_row(found[provider], self.setting.batch))

    @property
    def alive(self) -> list[str]:
        """Providers that nothing speaks against."""
        return [name for name, status in self.status.items() if status == "did not end"]

    def check(self) -> None:
        """Compare the first losses of all providers with those of the first one that has any."""
        problem = replace(self.problem, dropout=0.0)
        for provider in self.alive:
            with self._failing(provider):
                call = problem.build(provider)
                self.losses[provider] = step_timing.first_losses(problem, call)
                if self.setting.compiled:
                    self.compiled[provider] = call
                wanted = next(iter(self.losses.values()))
                short = any(map(is_short, self.losses))
                step_timing.hold_to(self.losses[provider], wanted, self.setting.weights, short)
            gc.collect()

    @contextmanager
    def _failing(self, provider: str) -> Iterator[None]:
        """A provider that fails in the block says so, and the others go on."""
        try:
            yield
        except torch.OutOfMemoryError:
            self.status[provider] = "out of memory"
            gc.collect()
            torch.cuda.empty_cache()
        except Exception as error:
            kind = "wrong" if isinstance(error, AssertionError) else type(error).__name__
            self.status[provider] = f"{kind}: {error}"

    def _build(self, provider: str) -> StepCall:
        """Step to be timed: the one compiled for the check, which took minutes, or a new one."""
        return self.compiled.pop(provider, None) or self.problem.build(provider)

    def _row(self, provider: str) -> StepRow:
        threads = None if timing.ON_GPU else torch.get_num_threads()
        dtype = "bfloat16" if is_short(provider) else "float32"
        return StepRow(str(self.setting), "", provider, dtype, threads)

    def _timed(
        self, call: StepCall, provider: str, size: int, samples: step_timing.Samples
    ) -> StepRow:
        row = replace(self._row(provider), modalities=str(size), status="ok")
        row.ms, row.p20, row.p80 = samples.median, samples.quantile(0.2), samples.quantile(0.8)
        row.images_per_s = 1e3 * self.setting.batch / row.ms
        row.cpu_ms = sorted(samples.cpu)[len(samples.cpu) // 2]
        row.ways = call.ways if isinstance(call, FastsegStep) else ""
        losses = reversed(self.losses[provider])
        values = next((values for of, values in losses if of == size), {})
        for name, value in values.items():
            setattr(row, name, value)
        return row

    def _count(self, row: StepRow, call: StepCall, number: int) -> None:
        # compiled code hides its operators from the CPU's counter
        if timing.ON_GPU or not self.setting.compiled:
            row.launches, row.host_syncs = timing.count(lambda: call(number))
        busy = step_timing.busy_ms(call, number)
        row.busy = None if busy is None or row.ms is None else busy / row.ms


def _profile(call: StepCall, number: int, title: str, folder: Path) -> None:
    """A table and a trace of one step; what goes wrong costs no row."""
    try:
        profiling.record(lambda: call(number), title.replace(" ", "-"), folder, profiling.OF_STEPS)
    except Exception as error:
        print(f"no profile of {title}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: str(setting).replace(" ", "-"))
def bench_train_step(setting: Setting, request: pytest.FixtureRequest, time_left: TimeLeft) -> None:
    option = request.config.getoption
    if option("--threads"):
        torch.set_num_threads(option("--threads"))
    keep_freed_memory()
    comparison = Comparison(setting, graphs=not option("--no-graphs"))
    started = [comparison._row(provider) for provider in providers(setting)]
    _append(option("--step-rows"), [replace(row, status="did not end") for row in started])
    if not time_left():
        status = "not run: no time left"
        _append(option("--step-rows"), [replace(row, status=status) for row in started])
        pytest.skip(status)
    first = setting in (SETTINGS[0], replace(SETTINGS[0], compiled=True))

    def keep() -> None:
        _append(option("--step-rows"), comparison.rows)

    try:
        comparison.run(option("--seconds"), option("--profile") if first else None, keep)
    except Exception as error:
        # times that are there stay, whatever could not be counted
        status = f"{type(error).__name__}: {error}"
        comparison.rows += [replace(row, status=status) for row in started]
        raise
    finally:
        keep()
        print("", *map(step_report.terminal_line, comparison.rows), sep="\n")
    fine = ("ok", "out of memory")
    wrong = {name: text for name, text in comparison.status.items() if text not in fine}
    assert not wrong, wrong


def _append(path: Path | None, rows: list[StepRow]) -> None:
    if path is not None:
        with path.open("a") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
