"""A first launch, then the tests that benchmarks name, all at once: what they found in a line."""

from __future__ import annotations

import ast
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness import processes

# each of many processes would take all cores for the definitions otherwise
_FEW_THREADS = {"OMP_NUM_THREADS": "2"}
_LONGEST = ("test_gpu_step.py", "test_functional_entropy.py")  # on a GPU
FIRST_LAUNCH = 90.0  # seconds at most
_OPTIONS = ("--maxfail=5", "--tb=short", "-rfEs", "-p", "no:cacheprovider")


def operator(bench: Path) -> str:
    """The operator of a benchmark's file."""
    return bench.stem.removeprefix("bench_")


def tests_of(bench: Path) -> list[str]:
    """The test files that a benchmark's ``TESTS`` names, or the one of its operator.

    A name is that of one file in tests or in a folder below. A path with a star, such as
    ``kernels/network/test_*.py``, is all files in tests that fit, so that new ones are among them.

    Raises:
        ValueError: no file, or more than one, has a name.
    """
    names = [f"test_{operator(bench)}.py"]
    for statement in ast.parse(bench.read_text()).body:
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]
        elif isinstance(statement, ast.AnnAssign):
            target = statement.target
        else:
            continue
        if ast.unparse(target) == "TESTS" and statement.value is not None:
            names = ast.literal_eval(statement.value)
            break
    stars = {file for name in names if "*" in name for file in _files(name)}
    return [_only_file(name) for name in names if "*" not in name] + sorted(stars)


def _files(pattern: str) -> list[str]:
    found = (processes.ROOT / "tests").glob(pattern)
    return [path.relative_to(processes.ROOT).as_posix() for path in found]


def _only_file(name: str) -> str:
    found = [path.relative_to(processes.ROOT) for path in processes.ROOT.glob(f"tests/**/{name}")]
    if len(found) != 1:
        raise ValueError(f"expected one file {name} in tests, found {len(found)}")
    return found[0].as_posix()


def concerns(file: str, setting: str) -> bool:
    """True if a training step of a setting, by its name, runs what a test file tests."""
    words = setting.split()
    if "functional_entropy" in file:
        return "rrm" in words
    if "distillation" in file or "prototype" in file:
        return "stage1" not in words
    return True


def no_launch() -> str:
    """Launch a kernel with the arguments of a training step in a process of its own.

    Returns:
        The reason why it cannot be launched; empty if it can.
    """
    program = "import torch; from fastseg.kernels.probe import launch_one as f; f(torch.device(0))"
    with tempfile.TemporaryFile("w+") as log:
        process = processes.start(["-c", program], log)
        if not processes.ended(process, FIRST_LAUNCH):
            return f"the first launch did not end within {FIRST_LAUNCH:.0f} s"
        log.seek(0)
        printed = log.read().strip().splitlines()
    if process.returncode == 0:
        return ""
    return printed[-1] if printed else f"the process ended with code {process.returncode}"


@dataclass(frozen=True)
class Outcome:
    """Result of a test file.

    Attributes:
        green: true if every test that ran passed, and at least one ran.
        said: the counts, and the first test that failed.
        skipped: number of tests that did not run, by reason.
    """

    green: bool
    said: str
    skipped: Mapping[str, int]


def outcome(log: str, ended: bool, code: int | None) -> Outcome:
    """Read what pytest printed.

    Args:
        log: output of one file's tests.
        ended: true if it came to its end by itself.
        code: pytest's exit code.
    """
    lines = log.strip().splitlines()
    skips = [re.match(r"SKIPPED \[(\d+)\] \S+ (.*)", line) for line in lines]
    skipped: dict[str, int] = {}
    for skip in skips:
        if skip:
            reason = skip[2]
            skipped[reason] = skipped.get(reason, 0) + int(skip[1])
    counts = [line for line in lines if re.search(r"\d+ (passed|failed|error|skipped)", line)]
    said = counts[-1].strip("= ") if counts else lines[-1] if lines else "nothing printed"
    bad = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    if bad:
        said += f"; first: {bad[0]}"
    if not ended:
        return Outcome(False, "did not end", skipped)
    if code == 0 and not re.search(r"\d+ passed", said):
        return Outcome(False, f"no test ran: {said}", skipped)
    return Outcome(code == 0, said, skipped)


def run(files: Sequence[str], stop: float, scratch: Path, out: Path) -> dict[str, Outcome]:
    """Run test files side by side until ``stop`` on the clock; all that they print goes to ``out``.

    Those that take longest start first, for the interpreters' starts alone take seconds: the known
    ones, then the others by the size of the file.

    Args:
        files: paths from the root of the checkout.
        stop: end of the time, as ``time.monotonic()`` gives it.
        scratch: folder for the logs.
        out: one file for all of them.
    """
    running = {}
    for file in sorted(files, key=_how_short):
        log = (scratch / f"{Path(file).stem}.log").open("w+")
        command = ["-m", "pytest", *_OPTIONS, file]
        running[file] = (processes.start(command, log, _FEW_THREADS), log)
    found = {}
    for file, (process, log) in running.items():
        ended = processes.ended(process, stop - time.monotonic())
        with log:
            log.seek(0)
            text = log.read()
        found[file] = outcome(text, ended, process.returncode)
        with out.open("a") as whole:
            whole.write(f"# {file}: {found[file].said}\n\n{text}\n\n")
        print(f"{file}: {found[file].said}", flush=True)
    return found


def _how_short(file: str) -> tuple[bool, int]:
    known = any(name in file for name in _LONGEST)
    path = processes.ROOT / file
    return not known, -path.stat().st_size if path.exists() else 0


def skipped_line(found: Mapping[str, Outcome]) -> list[str]:
    """One line that counts the tests that did not run; an empty list if all ran."""
    parts = [
        f"{Path(file).name} {count} ({reason})"
        for file, outcome in found.items()
        for reason, count in outcome.skipped.items()
    ]
    return [f"Tests that did not run: {', '.join(parts)}."] if parts else []
