"""Methods side by side: same frames, steps and start, several seeds, on small synthetic scenes.

    python -m bench.studies.compare_methods --jobs 2

Every seed trains one teacher, and from it one student per method. A finished student is a row of
``<out>.csv``, and a row that is there is not run again, so several sittings can fill the file.
``<out>.md`` is the table of mean and standard deviation over the seeds: mIoU in percent over all
classes of each subset, their mean, E(p), and the difference to dropout training with cross-entropy
of the same seed.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import tyro

from bench.studies.method_table import format_table
from fastseg.config.presets.study import STUDIED, study
from fastseg.methods import METHODS
from fastseg.report.results import read_results

RESULTS = Path(__file__).parents[1] / "results"
_WRITING = Lock()


@dataclass(frozen=True)
class CompareConfig:
    """Runs of the comparison, and the files they write."""

    methods: tuple[str, ...] = tuple(STUDIED)
    """Methods of ``fastseg/config/presets/study.py``."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Training seeds; the scenes stay the same."""
    jobs: int = 1
    """Runs side by side, each a process on one thread."""
    runs: Path = Path("runs/compare")
    """Folder of the runs."""
    out: Path = RESULTS / "methods"
    """Rows and table, without their suffixes."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {self.jobs}")
        for method in self.methods:
            study(method)


def main() -> None:
    """Run what is missing, then write the table."""
    config = tyro.cli(CompareConfig, description=__doc__)
    missing = missing_runs(config)
    with ThreadPoolExecutor(config.jobs) as pool:
        list(pool.map(lambda seed: run_teacher(config, seed), sorted({s for _, s in missing})))
        list(pool.map(lambda pair: run_method(config, *pair), missing))
    table = format_table(read_rows(config.out.with_suffix(".csv")))
    config.out.with_suffix(".md").write_text(table, encoding="utf-8")
    print(table)


def missing_runs(config: CompareConfig) -> list[tuple[str, int]]:
    """Method and seed of every run without a row, all methods of a seed before the next seed."""
    rows = read_rows(config.out.with_suffix(".csv"))
    done = {(row["method"], int(row["seed"])) for row in rows}
    wanted = [(method, seed) for seed in config.seeds for method in config.methods]
    return [pair for pair in wanted if pair not in done]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of finished runs; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: dict[str, str]) -> None:
    """Add one row.

    Raises:
        ValueError: the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _WRITING:
        rows = read_rows(path)
        if rows and list(rows[0]) != list(row):
            raise ValueError(
                f"{path} has the columns {', '.join(rows[0])}, a new row {', '.join(row)}: give "
                "another file with --out"
            )
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
            if not rows:
                writer.writeheader()
            writer.writerow(row)


def run_teacher(config: CompareConfig, seed: int) -> None:
    """Train the teacher of a seed; nothing if its weights are there."""
    if not _teacher(config, seed).exists():
        train(config, ["--preset", "study_teacher", "--name", f"teacher-{seed}"], seed)


def run_method(config: CompareConfig, method: str, seed: int) -> None:
    """Train one student and add its row."""
    name = f"{method}-{seed}"
    options = ["--preset", f"study_{method}", "--name", name]
    options += ["--teacher", _teacher(config, seed).as_posix()]
    command = train(config, options, seed)
    results, _ = read_results(config.runs / name / "results.csv")
    row = {"method": method, "seed": str(seed), "missing": study(method).evaluation.missing}
    kind = METHODS[study(method).method]
    scored = kind.compared[1] if kind.compared else kind.networks[-1]
    row |= {r.subset: f"{100 * r.miou_all:.4f}" for r in results if r.model == scored}
    append_row(config.out.with_suffix(".csv"), row | {"command": command})


def train(config: CompareConfig, options: list[str], seed: int) -> str:
    """Run one training in a process of its own; returns its command as one would type it."""
    arguments = ["-m", "fastseg.train", "--out", config.runs.as_posix(), *options]
    arguments += ["--seed", str(seed)]
    name = options[options.index("--name") + 1]
    print("running", name, flush=True)
    log = config.runs / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, *arguments]
        subprocess.run(command, check=True, stdout=file, stderr=file, env=environment)
    return " ".join(["python", *arguments])


def _teacher(config: CompareConfig, seed: int) -> Path:
    return config.runs / f"teacher-{seed}" / "teacher.safetensors"


if __name__ == "__main__":
    main()
