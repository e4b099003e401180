"""Effect of each distillation term: a small RobustSeg with its loss terms added one by one.

    python bench/studies/ablation.py

Every seed trains one teacher (the first stage of ``demo_robustseg``) and, from it, one student per
row, with one subset of modalities for each batch, as published. All rows share data, schedule and
starting weights; only the loss terms differ. Scores are mIoU in percent
over all classes on the demo's validation split: ``full`` with every modality, ``mean`` over the 15
subsets. The table goes to ``bench/results/ablation.csv`` and ``bench/results/ablation.md``.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from fastseg.config.presets.registry import get_preset
from fastseg.report.results import mean_result, read_results

RESULTS = Path(__file__).parents[1] / "results"
PRESET = "demo_robustseg"
TERMS = ("ohem", "logit", "hpdm", "rrm")
LABELS = {"ohem": "CE (OHEM)", "logit": "+ logit KD", "hpdm": "+ HPDM", "rrm": "+ RRM"}


@dataclass(frozen=True)
class AblationConfig:
    """Runs of the ablation, and the files they write."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds; the scenes stay the same."""
    jobs: int = 2
    """Runs side by side, each on one thread."""
    out: Path = Path("runs/ablation")
    """Folder of the runs; finished ones are not repeated."""
    table: Path = RESULTS / "ablation"
    """The table, without its suffix."""


def main() -> None:
    """Run what is missing, then write the table."""
    config = tyro.cli(AblationConfig, description=__doc__)
    with ThreadPoolExecutor(config.jobs) as pool:
        list(pool.map(lambda seed: run_teacher(config, seed), config.seeds))
        # the whole recipe first: it is the row that people wait for
        rows = [(seed, count) for count in range(len(TERMS), 0, -1) for seed in config.seeds]
        list(pool.map(lambda row: run_student(config, *row), rows))
    write_table(config)


def run_teacher(config: AblationConfig, seed: int) -> None:
    """Stage one: the student stage is cut to one step, it only ends the run."""
    train(config, f"teacher-{seed}", seed, ["--stages.student.steps", "1"])


def run_student(config: AblationConfig, seed: int, count: int) -> None:
    """Stage two with the first ``count`` terms."""
    weights = vars(get_preset(PRESET).stages["student"].losses)
    options = ["--teacher", str(config.out / f"teacher-{seed}" / "teacher.safetensors")]
    for position, term in enumerate(TERMS):
        weight = weights[term] if position < count else 0.0
        options += [f"--stages.student.losses.{term}", str(weight)]
    train(config, f"{TERMS[count - 1]}-{seed}", seed, options)


def train(config: AblationConfig, name: str, seed: int, options: list[str]) -> None:
    """One run in a process of its own; nothing if it is finished."""
    command = [sys.executable, "-m", "fastseg.train", "--preset", PRESET]
    command += ["--out", str(config.out), "--name", name]
    command += ["--stages.student.modalities-per", "batch"]
    command += ["--seed", str(seed), "--evaluation.pictures", "0", *options]
    if (config.out / name / "results.csv").exists():
        return
    print("running", name, flush=True)
    log = config.out / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(command, check=True, stdout=file, stderr=file, env=environment)


def write_table(config: AblationConfig) -> None:
    """Means and standard deviations over the seeds, one row per sum of terms."""
    rows = [collect(config, "teacher", "teacher", "teacher (complete input only)")]
    rows += [collect(config, term, "student", LABELS[term]) for term in TERMS]
    config.table.parent.mkdir(parents=True, exist_ok=True)
    with config.table.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    head = "| loss terms | full | mean of subsets | per seed (full / mean) |\n|---|---|---|---|\n"
    body = "".join(
        f"| {r['terms']} | {r['full']} ± {r['full_std']} | {r['mean']} ± {r['mean_std']} "
        f"| {r['seeds']} |\n"
        for r in rows
    )
    config.table.with_suffix(".md").write_text(head + body, encoding="utf-8")
    print(head + body)


def collect(config: AblationConfig, run: str, model: str, label: str) -> dict[str, str]:
    """One row of the table."""
    scores = []
    for seed in config.seeds:
        results, _ = read_results(config.out / f"{run}-{seed}" / "results.csv")
        found = [result for result in results if result.model == model]
        full = max(found, key=lambda result: len(result.subset))
        scores.append((100 * full.miou_all, 100 * mean_result(found).miou_all))
    fulls, means = zip(*scores, strict=True)
    return {
        "terms": label,
        "full": f"{statistics.mean(fulls):.2f}",
        "full_std": f"{statistics.stdev(fulls):.2f}" if len(fulls) > 1 else "-",
        "mean": f"{statistics.mean(means):.2f}",
        "mean_std": f"{statistics.stdev(means):.2f}" if len(means) > 1 else "-",
        "seeds": "; ".join(f"{full:.2f} / {mean:.2f}" for full, mean in scores),
    }


if __name__ == "__main__":
    main()
