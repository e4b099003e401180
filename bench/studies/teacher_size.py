"""Does a larger teacher help? Students of one size from teachers of two, on small synthetic scenes.

    python -m bench.studies.teacher_size --jobs 2

Teachers of mit_nano and of mit_b0 learn from 600 frames, as in ``compare_methods``, each once; the
students are mit_nano, learn from 24 frames and start from random weights, since the weights of
another architecture cannot be copied. Within a seed they share frames, order and dropped sensors,
with a subset per sample. Rows and table as those of ``compare_methods``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from bench.studies.compare_methods import (
    RESULTS,
    CompareConfig,
    append_row,
    read_rows,
    train,
)
from bench.studies.method_table import format_table
from fastseg.report.results import SubsetResult, read_results

TEACHERS = {"nano": "mit_nano", "b0": "mit_b0"}
ROWS = {
    "dropout": ("study_dropout", ()),
    **{
        f"logit_kd_{size}": ("study_logit_kd", ("--model.teacher-backbone", backbone))
        for size, backbone in TEACHERS.items()
    },
}
SUBSETS = ("mean of subsets", "full")


@dataclass(frozen=True)
class TeacherSizeConfig:
    """Runs of the study, and the files they write."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the students; the teachers have seed 0."""
    steps: int = 1280
    """Steps of a student; twice those of ``compare_methods``, as these start from nothing."""
    jobs: int = 1
    """Runs side by side, each a process on one thread."""
    runs: Path = Path("runs/teacher_size")
    """Folder of the runs."""
    out: Path = RESULTS / "teacher_size"
    """Rows and table, without their suffixes."""

    @property
    def shared(self) -> CompareConfig:
        """Settings of the functions shared with ``compare_methods``."""
        return CompareConfig(jobs=self.jobs, runs=self.runs, out=self.out)


def main() -> None:
    """Run what is missing, then write the table."""
    config = tyro.cli(TeacherSizeConfig, description=__doc__)
    rows = config.out.with_suffix(".csv")
    done = {(row["method"], int(row["seed"])) for row in read_rows(rows)}
    wanted = [(name, seed) for seed in config.seeds for name in ROWS]
    with ThreadPoolExecutor(config.jobs) as pool:
        list(pool.map(lambda size: run_teacher(config, size), TEACHERS))
        missing = [pair for pair in wanted if pair not in done]
        list(pool.map(lambda pair: run_student(config, *pair), missing))
    table = "".join([teacher_lines(config), "\n", format_table(read_rows(rows))])
    config.out.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)


def run_teacher(config: TeacherSizeConfig, size: str) -> None:
    """Train a teacher; nothing if its scores are there."""
    if not (config.runs / f"teacher-{size}" / "results.csv").exists():
        options = ["--preset", "study_teacher", "--name", f"teacher-{size}"]
        options += ["--model.backbone", TEACHERS[size]]
        train(config.shared, options, seed=0)


def run_student(config: TeacherSizeConfig, name: str, seed: int) -> None:
    """Train one student and add its row."""
    preset, options = ROWS[name]
    size = name.removeprefix("logit_kd_") if options else "nano"
    teacher = config.runs / f"teacher-{size}" / "teacher.safetensors"
    command = train(
        config.shared,
        [
            *("--preset", preset, "--name", f"{name}-{seed}", "--teacher", teacher.as_posix()),
            *("--stages.student.start", "random", "--stages.student.steps", str(config.steps)),
            *options,
        ],
        seed,
    )
    found = {r.subset: r for r in results_of(config.runs / f"{name}-{seed}", "student")}
    row = {"method": name, "seed": str(seed), "missing": "drop"}
    row |= {subset: f"{100 * result.miou_all:.4f}" for subset, result in found.items()}
    append_row(config.out.with_suffix(".csv"), row | {"command": command})


def results_of(run: Path, network: str) -> list[SubsetResult]:
    """Scores of one network of a finished run, the full set last."""
    results, _ = read_results(run / "results.csv")
    return [result for result in results if result.model == network]


def teacher_lines(config: TeacherSizeConfig) -> str:
    """Markdown: what the teachers score themselves."""
    lines = ["| teacher | " + " | ".join(SUBSETS) + " |", "|---|--:|--:|"]
    for size, backbone in TEACHERS.items():
        scores = [
            100 * result.miou_all
            for result in results_of(config.runs / f"teacher-{size}", "teacher")
        ]
        lines.append(f"| {backbone} | {sum(scores) / len(scores):.2f} | {scores[-1]:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
