"""Times of the exported files and of torch on this CPU, side by side."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from .deployed import Deployed
from .formats import Runner, run_module, run_onnx, run_pt2
from .sensors import random_images

WARM_UP, ROUNDS, MOST_S = 3, 15, 20.0
"""Runs before the clock, runs with it, and the seconds after which no further round begins."""


@dataclass(frozen=True)
class Latency:
    """One row: milliseconds of one sample with all sensors.

    Attributes:
        size: height and width in pixels.
        threads: of the arithmetic.
        runtime: what ran.
        median_ms: median over the rounds; None if it could not run.
        fastest_ms: the fastest round.
        note: why it could not run, or the number of rounds.
    """

    size: int
    threads: int
    runtime: str
    median_ms: float | None
    fastest_ms: float | None
    note: str


def measure(
    deployed: Deployed, files: Mapping[str, Path], sizes: Sequence[int], threads: Sequence[int]
) -> list[Latency]:
    """Time every runtime on the same image; they take turns, so that all meet the same machine."""
    before, rows = torch.get_num_threads(), []
    try:
        for count in threads:
            torch.set_num_threads(count)
            for size in sizes:
                torch.compiler.reset()
                rows += _measure_one(deployed, files, size, count)
    finally:
        torch.set_num_threads(before)
    return rows


def _measure_one(
    deployed: Deployed, files: Mapping[str, Path], size: int, threads: int
) -> list[Latency]:
    modalities = deployed.modalities
    images = random_images(modalities, 1, size, size)
    present = np.ones((1, len(modalities)), np.bool_)
    makers: dict[str, Callable[[], Runner]] = {
        "torch, eager": lambda: run_module(deployed, modalities),
        "torch, compiled": lambda: run_module(torch.compile(deployed), modalities),
    }
    for name, path in files.items():
        if path.suffix == ".onnx":
            makers[f"ONNX Runtime, {name}"] = lambda path=path: run_onnx(path, threads)  # type: ignore[misc]
        else:
            makers[f"torch, {name}"] = lambda path=path: run_pt2(path, modalities)  # type: ignore[misc]
    runners: dict[str, Runner] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        try:
            runner = make()
            for _ in range(WARM_UP):
                runner(images, present)
            runners[name] = runner
        except Exception as error:  # a machine without a compiler measures the others
            failed[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    times: dict[str, list[float]] = {name: [] for name in runners}
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner(images, present)
            times[name].append(1e3 * (time.perf_counter() - start))
        if time.perf_counter() - began > MOST_S:
            break
    rows = [
        Latency(size, threads, name, median(found), min(found), f"{len(found)} rounds")
        for name, found in times.items()
    ]
    return rows + [
        Latency(size, threads, name, None, None, f"did not run: {why}")
        for name, why in failed.items()
    ]


def latency_page(rows: Sequence[Latency], network: str, modalities: int) -> str:
    """``latency.md``."""
    lines = [
        "# Latency",
        "",
        f"One sample, all {modalities} sensors, from decoded arrays to labels of `{network}`, on "
        f"{_processor()}; torch {torch.__version__}, {_onnxruntime()}Python "
        f"{platform.python_version()}. {WARM_UP} runs to warm up, then the runtimes take turns.",
        "",
        "| size | threads | runtime | median ms | fastest ms | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [
            "-" if value is None else f"{value:.1f}" for value in (row.median_ms, row.fastest_ms)
        ]
        lines.append(
            f"| {row.size} x {row.size} | {row.threads} | {row.runtime} | {' | '.join(cells)} | "
            f"{row.note} |"
        )
    return "\n".join(lines) + "\n"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _onnxruntime() -> str:
    try:
        import onnxruntime
    except ImportError:
        return ""
    return f"ONNX Runtime {onnxruntime.__version__}, "
