"""Order in which the one command times the rows, and the part of the time that each job gets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.harness import timing
from bench.harness.gpu_tests import operator

STEPS = "train_step"  # whole steps, which have tables of their own
FIRST_STEP = "[stage2-b0-1024px-B2-rrm{}]"  # the setting that matters most
FIRST = "the first training step"
METHODS = "costs of methods"  # a script with a table of its own, on a GPU at the paper's size
METHODS_SCRIPT = Path(__file__).parents[1] / "step" / "method_costs.py"
# parts of the time at most; what is left over goes to those that follow
FIRST_PART, OPERATOR_PART, STEPS_PART, METHODS_PART = 8, 2, 6, 2
COMPILED_STEPS_PART, COMPILED_PART = 5, 3


class Job(NamedTuple):
    """Rows that one process times.

    Attributes:
        name: for the notes.
        files: benchmarks.
        which: pytest's expression for the rows; empty for a script.
        part: of the time.
    """

    name: str
    files: list[Path]
    which: str
    part: int


def plan(benches: Sequence[Path], red: Sequence[str], compiled: str) -> list[Job]:
    """Jobs to time, the most valuable rows first and what claims nothing last.

    Args:
        benches: the files.
        red: operators whose tests are not green.
        compiled: ``last``, ``none`` or ``only``.
    """
    steps = [path for path in benches if operator(path) == STEPS]
    operators = [path for path in benches if path not in steps]
    first = FIRST_STEP.format("")
    jobs = []
    if steps and timing.ON_GPU:
        jobs += [Job(FIRST, steps, first, FIRST_PART)]
    jobs += [Job(operator(path), [path], "not compile", OPERATOR_PART) for path in operators]
    if steps:
        others = f"not compile and not {first}" if timing.ON_GPU else "not compile"
        # a CPU takes minutes for its first setting
        part = STEPS_PART if timing.ON_GPU else 2 * STEPS_PART
        jobs += [Job("training steps", steps, others, part)]
        if timing.ON_GPU:
            jobs += [Job(METHODS, [METHODS_SCRIPT], "", METHODS_PART)]
    last = []
    if steps and timing.ON_GPU:  # a CPU has no such rows
        last += [Job("compiled training steps", steps, "compile", COMPILED_STEPS_PART)]
    if operators:
        last += [Job("torch.compile", operators, "compile", COMPILED_PART)]
    jobs = {"last": jobs + last, "none": jobs, "only": last}[compiled]

    def claims_nothing(job: Job) -> bool:
        return all((STEPS if not job.which else operator(path)) in red for path in job.files)

    return sorted(jobs, key=claims_nothing)
