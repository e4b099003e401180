"""One command for a machine with a GPU: its tests, then every benchmark, within nine minutes.

    python bench/gpu_record.py                      writes bench/results/<gpu>/kernels.{csv,md}
                                                    and train_step.{csv,md} beside them
    python bench/gpu_record.py --only seg_loss      one operator
    python bench/gpu_record.py --only train_step    whole training steps alone, at more settings

Needs torch, triton, numpy, pytest and pytest-benchmark, and no installation of fastseg. The tests
of all operators run at once and first; an operator whose tests are red is not timed. Then each
operator has its share of the time, without ``torch.compile``, which takes tens of seconds for a
row; compiled rows come last. A profile of each fused operator is in profile.md beside the tables,
that of a step in train_step_profile.md.

Without a GPU it says so, compiles the kernels for GPUs that are not there and times the CPU
providers, into bench/results/cpu/.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed

from bench import profiling, report, step_report, targets, timing  # noqa: E402

RESULTS = ROOT / "bench" / "results"
TESTS_SHARE = 0.4  # of the time, at most
COMPILE_SHARE = 0.3  # of what is left then
ELSEWHERE = ("input_pipeline", "scaling")  # no operators: commands and tables of their own
STEPS = "train_step"  # whole steps, which have tables of their own
PARTS = {STEPS: 5}  # of the time, where an operator has one
GRACE = 10  # seconds for the row that runs when the time of an operator ends
FINE = ("ok", "not run", "left out", "out of memory")


def main() -> int:
    """Run it all; 1 if a test or a check was red."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--seconds", type=float, default=0.3, help="timed seconds per row")
    parser.add_argument("--only", default="", metavar="WORD", help="operators that hold the word")
    parser.add_argument("--commit", default="", help="where the checkout came without its history")
    options = parser.parse_args()
    # the tables are written in the last seconds
    end = time.monotonic() + 60 * options.minutes - 15
    if not timing.ON_GPU:
        print("No GPU: static counts and the CPU providers only.", flush=True)

    benches = [
        path
        for path in sorted((ROOT / "bench").glob("bench_*.py"))
        if options.only in path.stem and _operator(path) not in ELSEWHERE
    ]
    if not benches:
        parser.error(f"no bench/bench_*.py holds {options.only!r}")
    machine = report.machine()
    if options.commit:
        machine["commit"] = options.commit
    # one operator's table does not replace that of all; that of steps is complete by itself
    alone = [_operator(path) for path in benches] == [STEPS]
    name = f"{machine['device']} {'' if alone else options.only}".lower()
    out = RESULTS / re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        collected, of_steps = scratch / "rows.jsonl", scratch / "steps.jsonl"
        collected.touch()
        of_steps.touch()
        notes = [] if timing.ON_GPU or alone else [_static_counts(end)]
        red = _red_operators(benches, end, scratch)
        notes += [f"The tests of {op} are red or did not end: it is not timed." for op in red]
        benches = [path for path in benches if _operator(path) not in red]
        common = [
            "--rows",
            str(collected),
            "--step-rows",
            str(of_steps),
            "--seconds",
            str(options.seconds),
        ]
        if timing.ON_GPU:
            common += ["--profile", str(scratch / "profile")]
        notes += _time_all(benches, [*common, "--benchmark-disable"], end)
        rows, steps = report.read_rows(collected), step_report.read_rows(of_steps)
        summary = targets.lines(rows) if timing.ON_GPU and not options.only else []
        if not alone:
            report.write(rows, out, machine, notes, summary)
        if steps:
            lines = targets.step_lines(steps)
            step_report.write(steps, out, machine, notes, lines)
            summary += lines
        _keep_profiles(scratch / "profile", out)
    print("\n".join([*notes, *summary, f"{len(rows) + len(steps)} rows in {out}"]))
    fine = all(row.status.startswith(FINE) for row in (*rows, *steps))
    return 1 if red or not fine else 0


def _operator(path: Path) -> str:
    return path.stem.removeprefix("bench_")


def _start(command: Sequence[str], log: IO[str] | None = None) -> subprocess.Popen[str]:
    """A Python process in the checkout, with a group of its own; prints into the file, if any."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        text=True,
        start_new_session=True,
        stdout=log,
        stderr=log,
    )


def _ended(process: subprocess.Popen[str], seconds: float) -> bool:
    """Wait for a process; stop it and what it started after so many seconds."""
    try:
        process.wait(timeout=max(0.1, seconds))
    except subprocess.TimeoutExpired:
        return False
    finally:
        # also what outlived it, such as the compiler's workers
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return True


def _static_counts(end: float) -> str:
    """Compile for the GPUs that are not there and say what came out."""
    with tempfile.TemporaryFile("w+") as log:
        process = _start(["bench/aot.py", "--check"], log)
        if not _ended(process, 0.5 * (end - time.monotonic())):
            return "There was no time to compile the kernels."
        log.seek(0)
        text = log.read().strip()
    print(text, flush=True)
    return f"Static counts are in bench/results/aot.csv: {(text or 'none').splitlines()[-1]}."


def _tests(bench: Path) -> list[str]:
    """The test files that a benchmark's ``TESTS`` names, or the one of its operator."""
    for statement in ast.parse(bench.read_text()).body:
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]
        elif isinstance(statement, ast.AnnAssign):
            target = statement.target
        else:
            continue
        if ast.unparse(target) == "TESTS" and statement.value is not None:
            return [f"tests/kernels/{name}" for name in ast.literal_eval(statement.value)]
    return [f"tests/kernels/test_{_operator(bench)}.py"]


def _red_operators(benches: list[Path], end: float, scratch: Path) -> list[str]:
    """Run the operators' tests side by side; without a GPU they are not this command's concern."""
    if not timing.ON_GPU:
        return []
    files = {_operator(bench): _tests(bench) for bench in benches}
    running = {}
    for file in sorted({file for names in files.values() for file in names}):
        log = (scratch / f"{Path(file).stem}.log").open("w+")
        command = ["-m", "pytest", "-x", "-p", "no:cacheprovider", file]
        running[file] = (_start(command, log), log)
    stop = time.monotonic() + TESTS_SHARE * (end - time.monotonic())
    green = set()
    for file, (process, log) in running.items():
        ended = _ended(process, stop - time.monotonic())
        with log:
            log.seek(0)
            lines = log.read().splitlines()
        if ended and process.returncode == 0:
            green.add(file)
        print("\n".join([f"{file}:", *lines[-1 if file in green else -40 :]]), flush=True)
    return [op for op, names in files.items() if not green.issuperset(names)]


def _time_all(benches: list[Path], common: list[str], end: float) -> list[str]:
    """Time every operator, then everything compiled; returns what went wrong."""
    if not benches:
        return []
    notes = []
    middle = end - COMPILE_SHARE * (end - time.monotonic())
    for i, path in enumerate(benches):
        parts = [PARTS.get(_operator(other), 1) for other in benches[i:]]
        left = (middle - time.monotonic()) * parts[0] / sum(parts)
        notes += _time([str(path)], "not compile", common, left, path.stem)
    files = [str(path) for path in benches]
    return notes + _time(files, "compile", common, end - time.monotonic(), "torch.compile")


def _time(files: list[str], which: str, common: list[str], left: float, name: str) -> list[str]:
    """Time some rows for at most ``left`` seconds; returns what went wrong."""
    limit = ["--time-limit", str(max(1.0, 0.9 * left))]
    process = _start(["-m", "pytest", *files, "-k", which, *common, *limit])
    if not _ended(process, max(20.0, left + GRACE)):
        return [f"{name} was stopped after {left:.0f} s: rows are missing."]
    # 5: there was nothing to run
    return [f"{name} failed: see the rows."] if process.returncode not in (0, 5) else []


_PROFILES = {
    profiling.OF_KERNELS: "# Kernels of one call\n\n"
    "Both passes of each fused operator at its most important size.",
    profiling.OF_STEPS: "# Kernels of one training step\n\nWith all modalities, RRM on.",
}


def _keep_profiles(folder: Path, out: Path) -> None:
    if not folder.exists():
        return
    for path in folder.iterdir():
        if path.name in _PROFILES:
            text = f"{_PROFILES[path.name]}\n\n{path.read_text().rstrip()}\n"
            (out / path.name).write_text(text)
        else:
            shutil.copy(path, out / path.name)


if __name__ == "__main__":
    sys.exit(main())
