"""Processes that time the rows of a job within its part of the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.harness import processes
from bench.harness.job_order import Job

# seconds for the row that runs when the time of a job ends
GRACE = 10.0


def time_rows(
    job: Job, common: Sequence[str], left: float, meanwhile: Callable[[], object]
) -> list[str]:
    """Time some rows for at most ``left`` seconds; returns what went wrong.

    Args:
        job: of benchmarks.
        common: options of all benchmarks.
        left: seconds.
        meanwhile: called every now and then.
    """
    limit = ["--time-limit", str(max(1.0, 0.9 * left))]
    files = [str(path) for path in job.files]
    process = processes.start(["-m", "pytest", *files, "-k", job.which, *common, *limit])
    if not processes.ended(process, max(20.0, left + GRACE), meanwhile):
        return [f"{job.name} was stopped after {left:.0f} s: rows are missing."]
    # 5: there was nothing to run
    return [f"{job.name} failed: see the rows."] if process.returncode not in (0, 5) else []


def cost_methods(
    job: Job,
    out: Path,
    left: float,
    meanwhile: Callable[[], object],
    more: Sequence[str] = (),
    grace: float = 20.0,
) -> list[str]:
    """Time a step of every method for at most ``left`` seconds; returns what went wrong.

    Args:
        job: of the script.
        out: folder of its table and of what it prints.
        left: seconds.
        meanwhile: called every now and then.
        more: options of the script.
        grace: seconds for the turn that runs when the time ends.
    """
    log = out / "methods.log"
    command = [str(job.files[0]), "--side", "1024", "--rounds", "20", *more]
    command += ["--out", str(out), "--time-limit", str(0.8 * left)]
    with log.open("w") as file:
        process = processes.start(command, file)
        done = processes.ended(process, left + grace, meanwhile)
    if not done:
        return [f"The {job.name} were stopped after {left:.0f} s."]
    if process.returncode:
        said = log.read_text().strip().splitlines() or ["nothing was printed"]
        return [f"The {job.name} are missing: {said[-1]}."]
    return []
