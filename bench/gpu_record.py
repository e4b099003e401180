"""One command for a machine with a GPU: its tests, then every benchmark, within nine minutes.

    python bench/gpu_record.py                      writes bench/results/<gpu>/kernels.{csv,md}
                                                    and train_step.{csv,md} beside them
    python bench/gpu_record.py --only seg_loss      one operator
    python bench/gpu_record.py --only train_step    whole training steps alone, at more settings

On a borrowed machine, where the checkout came without its history and one folder is copied back::

    python bench/gpu_record.py --commit HASH --out FOLDER

It fits ten minutes and leaves at most eight files. With more time, two commands one after the other
give every row a larger share: the first tests and times what is not compiled, the second times
``torch.compile`` alone, in tables of its own::

    python bench/gpu_record.py --commit HASH --out FOLDER/plain --compile none
    python bench/gpu_record.py --commit HASH --out FOLDER/compiled --compile only

Needs torch, triton, numpy, pytest and pytest-benchmark, and no installation of fastseg. The first
thing is one launch with the arguments of a training step; where it fails, the command says so in a
line and ends. All tests run at once and before the rows. What is red is named above the tables and
timed last: a row has passed a check of its own before it was timed, but what a red test looks at
claims nothing and reaches no target. The first training step comes first, then the operators, every
``bench_*.py`` that is there, then other steps and a step of every method
(``bench/step/method_costs.py``, whose table stands in train_step.md); what is compiled takes tens
of seconds for a row and comes last. The tables are written again and again, so that whatever ends
the command leaves those rows that were done. Beside them are the profiles of the fused operators
and of the first step, their traces in traces.zip, and what the tests printed in tests.log.

Without a GPU it says so, compiles the kernels for GPUs that are not there and times the CPU
providers, into bench/results/cpu/.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed

from bench.harness import (  # noqa: E402
    gpu_tests,
    processes,
    profiling,
    report,
    targets,
    timed_jobs,
    timing,
)
from bench.harness.gpu_tests import operator  # noqa: E402
from bench.harness.job_order import FIRST, FIRST_STEP, STEPS, Job, plan  # noqa: E402
from bench.harness.rows import read_rows  # noqa: E402
from bench.step import report as step_report  # noqa: E402
from bench.step import targets as step_targets  # noqa: E402
from bench.step.rows import StepRow, read_steps  # noqa: E402

RESULTS = ROOT / "bench" / "results"
TESTS_SHARE = 0.4  # of the time, at most
ELSEWHERE = ("input_pipeline", "scaling")  # no operators: commands and tables of their own
NO_GRAPHS = "--no-graphs"
TWO_REHEARSALS = 100 * 2**30  # bytes; a published step takes 33 GB, and the tests some
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
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="instead of bench/results/<gpu>")
    parser.add_argument(
        "--compile",
        choices=("last", "none", "only"),
        default="last",
        help="rows of torch.compile; with only nothing is tested",
    )
    options = parser.parse_args()
    # the tables are written in the last seconds
    end = time.monotonic() + 60 * options.minutes - 15
    if timing.ON_GPU and (why := gpu_tests.no_launch()):
        print(f"No kernel of fastseg can be launched here, nothing was measured: {why}")
        return 2
    if not timing.ON_GPU:
        print("No GPU: static counts and the CPU providers only.", flush=True)

    benches = [
        path
        for path in sorted((ROOT / "bench").glob("*/bench_*.py"), key=operator)
        if options.only in path.stem and operator(path) not in ELSEWHERE
    ]
    if not benches:
        parser.error(f"no bench/*/bench_*.py holds {options.only!r}")
    machine = report.machine()
    if options.commit:
        machine["commit"] = options.commit
    # one operator's table does not replace that of all; that of steps is complete by itself
    alone = [operator(path) for path in benches] == [STEPS]
    name = f"{machine['device']} {'' if alone else options.only}".lower()
    out = options.out or RESULTS / re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Path(folder), out, machine, of_all=not options.only, kernels=not alone)
        session.write()
        if options.compile != "only" and not timing.ON_GPU and not alone:
            session.notes.append(_static_counts(end))
        if options.compile != "only" and timing.ON_GPU:
            session.test(benches, end)
        session.time_all(plan(benches, session.red, options.compile), options.seconds, end)
        summary = session.write()
    count = len(session.rows) + len(session.steps)
    print("\n".join([*session.notes, *summary, f"{count} rows in {out}"]))
    fine = all(row.status.startswith(FINE) for row in (*session.rows, *session.steps))
    return 1 if session.red or not fine else 0


class Session:
    """Rows and red tests found so far, and the tables of them.

    Attributes:
        notes: lines above the tables.
        red: operators whose tests are not green.
        red_files: tests of whole steps that are not green.
        rows: of operators.
        steps: of whole steps.
    """

    def __init__(
        self, scratch: Path, out: Path, machine: dict[str, str], of_all: bool, kernels: bool
    ) -> None:
        self.notes: list[str] = []
        self.red: list[str] = []
        self.red_files: list[str] = []
        self.rows: list[report.OperatorRow] = []
        self.steps: list[StepRow] = []
        self._scratch, self._out, self._machine = scratch, out, machine
        self._of_all, self._kernels = of_all, kernels
        self._rows, self._steps = scratch / "rows.jsonl", scratch / "steps.jsonl"
        self._rows.touch()
        self._steps.touch()

    def write(self) -> list[str]:
        """Write all tables as far as they are known; returns the lines about targets."""
        self._out.mkdir(parents=True, exist_ok=True)
        self.rows = read_rows(self._rows, report.OperatorRow)
        self.steps = read_steps(self._steps)
        summary: list[str] = []
        if timing.ON_GPU and self._of_all:
            sound = [row for row in self.rows if row.op not in self.red]
            summary = targets.lines(sound, self._machine["device"])
        if self._kernels:
            report.write(self.rows, self._out, self._machine, self.notes, summary)
        if self.steps:
            steps = [row for row in self.steps if not self._is_void(row)]
            copy = targets.copy_of(self.rows)
            lines = step_targets.step_lines(steps, self._machine["device"], copy)
            lines += self._methods()
            step_report.write(self.steps, self._out, self._machine, self.notes, lines)
            summary = [*summary, *lines]
        self._keep_profiles()
        return summary

    def _methods(self) -> list[str]:
        """What the steps of all methods cost, as far as it is known."""
        tables = sorted(self._scratch.glob("method_costs_*.md"))
        if not tables:
            return []
        void = ["Tests of steps are red: these claim nothing.", ""] if self.red_files else []
        return ["## Methods", "", *void, *(path.read_text() for path in tables)]

    def _is_void(self, row: StepRow) -> bool:
        """True if a red test looks at what the step runs; those of the rivals have none."""
        mine = row.provider.startswith("fastseg")
        return mine and any(gpu_tests.concerns(file, row.setting) for file in self.red_files)

    def test(self, benches: Sequence[Path], end: float) -> None:
        """Run the tests of all operators; the compilers' caches are filled beside them."""
        files = {operator(bench): gpu_tests.tests_of(bench) for bench in benches}
        stop = time.monotonic() + TESTS_SHARE * (end - time.monotonic())
        log = self._out / "tests.log"
        log.unlink(missing_ok=True)
        rehearsals = self._rehearse([bench for bench in benches if operator(bench) == STEPS])
        wanted = sorted({file for names in files.values() for file in names})
        found = gpu_tests.run(wanted, stop, self._scratch, log)
        for process, path in rehearsals:
            fine = processes.ended(process, stop - time.monotonic()) and process.returncode == 0
            with log.open("a") as whole:
                whole.write(f"# rehearsal{'' if fine else ' (not green)'}\n\n{path.read_text()}\n")
        for op, names in files.items():
            bad = [file for file in names if not found[file].green]
            if bad:
                self.red.append(op)
                said = "; ".join(f"{Path(file).name}: {found[file].said}" for file in bad)
                rows = "its rows"
                if op == STEPS:
                    self.red_files, rows = bad, "the steps that run what they test"
                self.notes.append(f"The tests of {op} are red: {rows} claim nothing. {said}.")
        self.notes += gpu_tests.skipped_line(found)
        self.write()

    def _rehearse(self, steps: Sequence[Path]) -> list[tuple[processes.Process, Path]]:
        """Begin the first step, only so that its kernels are compiled.

        Where the memory holds two of them beside the tests, the compiled one begins, too.
        """
        begun = []
        roomy = torch.cuda.get_device_properties(0).total_memory > TWO_REHEARSALS
        for path in steps:
            for number, option in enumerate(("", "-compile") if roomy else ("",)):
                log = self._scratch / f"rehearsal-{number}.log"
                command = ["-m", "pytest", str(path), "-k", FIRST_STEP.format(option)]
                command += ["--seconds", "0", "--benchmark-disable"]
                with log.open("w") as file:
                    begun.append((processes.start(command, file), log))
        return begun

    def time_all(self, jobs: Sequence[Job], seconds: float, end: float) -> None:
        """Time every job within its part of what is left."""
        common = ["--rows", str(self._rows), "--step-rows", str(self._steps)]
        common += ["--seconds", str(seconds), "--benchmark-disable"]
        if timing.ON_GPU:
            common += ["--profile", str(self._scratch / "profile")]
        for i, job in enumerate(jobs):

            def left(i: int = i) -> float:
                parts = [other.part for other in jobs[i:]]
                return (end - time.monotonic()) * parts[0] / sum(parts)

            if not job.which:
                self.notes += timed_jobs.cost_methods(job, self._scratch, left(), self.write)
                self.write()
                continue
            problems = timed_jobs.time_rows(job, common, left(), self.write)
            self.notes += problems
            if job.name == FIRST and (why := self._without_fastseg()):
                # what hangs looks like what is slow: the next settings try graphs again then
                self.notes.append(
                    f"{FIRST} came without CUDA graphs, which were not to be had: {why}."
                )
                again = [*common, NO_GRAPHS]
                self.notes += timed_jobs.time_rows(job, again, left(), self.write)
                if not any("stopped" in problem for problem in problems):
                    common.append(NO_GRAPHS)
            self.write()

    def _without_fastseg(self) -> str:
        """The reason why fastseg has no row; nothing where it has one, or had no time or memory."""
        for row in read_steps(self._steps):
            if row.provider.startswith("fastseg") and not row.status.startswith(FINE):
                return row.status.splitlines()[0]
        return ""

    def _keep_profiles(self) -> None:
        folder = self._scratch / "profile"
        traces = sorted(folder.glob("trace-*"))
        for name, head in _PROFILES.items():
            if (folder / name).exists():
                text = f"{head}\n\n{(folder / name).read_text().rstrip()}\n"
                (self._out / name).write_text(text)
        if traces:
            with zipfile.ZipFile(self._out / "traces.zip", "w") as archive:
                for path in traces:
                    archive.write(path, path.name)


def _static_counts(end: float) -> str:
    """Compile for the GPUs that are not there and say what came out."""
    with tempfile.TemporaryFile("w+") as log:
        process = processes.start(["bench/machine_code/aot.py", "--check"], log)
        if not processes.ended(process, 0.5 * (end - time.monotonic())):
            return "There was no time to compile the kernels."
        log.seek(0)
        text = log.read().strip()
    print(text, flush=True)
    return f"Static counts are in bench/results/aot.csv: {(text or 'none').splitlines()[-1]}."


_PROFILES = {
    profiling.OF_KERNELS: "# Kernels of one call\n\n"
    "Both passes of each fused operator at its most important size.",
    profiling.OF_STEPS: "# Kernels of one training step\n\nWith all modalities, RRM on.",
}


if __name__ == "__main__":
    sys.exit(main())
