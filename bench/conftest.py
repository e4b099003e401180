"""``measure``: check a provider, then time it and count what it costs, as one row of the table.

    pytest bench/kernels/bench_proto_pool.py                a table on the terminal
    pytest bench --rows rows.jsonl                          and a line of JSON per row
    python bench/gpu_record.py                              everything, into bench/results/

A benchmark is a function ``bench_<what>`` in ``bench_<op>.py``::

    @pytest.mark.parametrize("provider", PROVIDERS)
    @pytest.mark.parametrize("shape", shapes.GRID, ids=str)
    def bench_prototype_pool(measure, shape, provider):
        step = ...  # no arguments; forward, or forward and backward; returns its results
        measure(
            step,
            provider=provider,                 # official, eager, compile, ..., fused
            case=str(shape),
            mode="fwd+bwd",
            dtype=torch.bfloat16,
            bytes_moved=...,                   # the least that must be read and written
            check=lambda: largest_error(step(), eager(), truth(), slack=1e-2),
        )

``check`` raises AssertionError where the results are wrong, and then there is no time; it returns
the error against float64 (``bench.harness.accuracy``). Where float64 does not fit at the timed size
it may check a smaller one. ``missing`` says what a provider needs that is not installed: its row
then has that as its status. ``fused`` is for a GPU: parametrise it away where ``shapes.ON_GPU`` is
false. A provider whose warm call takes over 20 seconds is left out. With ``--profile`` the first
``fused`` row of both passes is profiled, so put the most important size first. ``TESTS =
("test_prototype_pool.py",)`` at the top of the file names the files in tests, in whatever folder,
that have to pass on a GPU for its rows to claim anything; without it that is ``test_<op>.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from bench.harness import profiling, timing
from bench.harness.report import FUSED, OperatorRow, terminal_line

LONGEST_CALL_S = 20.0


TimeLeft = Callable[[], bool]


class Measure(Protocol):
    """The type of the ``measure`` fixture."""

    def __call__(
        self,
        fn: Callable[[], object],
        *,
        provider: str,
        case: str,
        mode: str,
        dtype: torch.dtype,
        bytes_moved: int,
        check: Callable[[], float],
        missing: str | None = None,
    ) -> None:
        """Check, time and count one provider; see the top of the file."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of a run."""
    parser.addoption("--rows", type=Path, help="append a line of JSON per row to this file")
    parser.addoption("--seconds", type=float, default=1.0, help="timed seconds per row")
    parser.addoption("--profile", type=Path, help="folder for profiles of the fused providers")
    parser.addoption("--step-rows", type=Path, help="the same for whole training steps")
    parser.addoption("--no-graphs", action="store_true", help="steps without CUDA graphs")
    parser.addoption("--threads", type=int, help="of the CPU, for whole training steps")
    parser.addoption("--time-limit", type=float, help="skip what is left after so many seconds")


def pytest_configure(config: pytest.Config) -> None:
    """Start the clock of ``--time-limit``."""
    limit = config.getoption("--time-limit")
    config.stash[_END] = time.monotonic() + limit if limit else None
    config.stash[_ROWS] = []
    config.stash[_PROFILED] = set()


_END: pytest.StashKey[float | None] = pytest.StashKey()
_ROWS: pytest.StashKey[list[OperatorRow]] = pytest.StashKey()
_PROFILED: pytest.StashKey[set[str]] = pytest.StashKey()


@pytest.fixture
def time_left(request: pytest.FixtureRequest) -> TimeLeft:
    """Function that returns True until ``--time-limit`` is reached; always without a limit."""
    end = request.config.stash[_END]
    return lambda: end is None or time.monotonic() <= end


@pytest.fixture
def measure(
    request: pytest.FixtureRequest, benchmark: Any, time_left: TimeLeft
) -> Iterator[Measure]:
    """Check, time and count one provider."""
    seconds = request.config.getoption("--seconds")
    op = Path(request.node.path).stem.removeprefix("bench_")
    rows: list[OperatorRow] = []

    def run(
        fn: Callable[[], object],
        *,
        provider: str,
        case: str,
        mode: str,
        dtype: torch.dtype,
        bytes_moved: int,
        check: Callable[[], float],
        missing: str | None = None,
    ) -> None:
        row = OperatorRow(
            op, case, mode, str(dtype).removeprefix("torch."), provider, "did not end"
        )
        rows.append(row)
        _append(request.config, row)
        if missing:
            row.status = f"not run: {missing}"
            pytest.skip(row.status)
        if not time_left():
            row.status = "not run: no time left"
            pytest.skip(row.status)
        try:
            if (took := _warm_seconds(fn)) > LONGEST_CALL_S:
                row.status = f"left out: a call takes {took:.0f} s"
                pytest.skip(row.status)
            row.error = check()
            row.fill(fn, bytes_moved, seconds)
        except torch.OutOfMemoryError:
            row.status = "out of memory"
            torch.cuda.empty_cache()
            pytest.skip(row.status)
        except Exception as error:
            kind = "wrong" if isinstance(error, AssertionError) else type(error).__name__
            row.status = f"{kind}: {error}"
            raise
        row.status = "ok"
        if (folder := request.config.getoption("--profile")) and provider == FUSED:
            _profile(fn, row, folder, request.config.stash[_PROFILED])
        benchmark.extra_info.update(asdict(row))
        # pytest-benchmark's own table: host time of the call and the wait for its end
        benchmark.pedantic(timing.host_ms, (fn,), rounds=5 if (row.ms or 0) < 50 else 1)

    yield run
    request.config.stash[_ROWS].extend(rows)
    for row in rows:
        _append(request.config, row)


def _append(config: pytest.Config, row: OperatorRow) -> None:
    """Write a row down; the last line of a row counts."""
    if path := config.getoption("--rows"):
        with path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def _warm_seconds(fn: Callable[[], object]) -> float:
    """Seconds of a call; of the second one where the first may have been spent on compiling."""
    took = timing.host_ms(fn) / 1e3
    return took if took <= LONGEST_CALL_S else timing.host_ms(fn) / 1e3


def _profile(fn: Callable[[], object], row: OperatorRow, folder: Path, done: set[str]) -> None:
    """Profile both passes of an operator once; what goes wrong costs no row."""
    if row.mode != "fwd+bwd" or row.op in done:
        return
    done.add(row.op)
    try:
        profiling.record(fn, row.op, folder)
    except Exception as error:
        print(f"no profile of {row.op}: {type(error).__name__}: {error}")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the rows of this run."""
    rows = config.stash[_ROWS]
    if rows:
        device = "GPU" if timing.ON_GPU else "no GPU: host time, operators for launches"
        terminalreporter.section(f"rows ({device})")
    for row in rows:
        terminalreporter.line(terminal_line(row))
