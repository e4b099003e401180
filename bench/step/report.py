"""Rows of whole training steps as CSV and as Markdown.

python bench/step/report.py steps.jsonl --out bench/results/cpu
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed

from bench.harness import report  # noqa: E402
from bench.harness.rows import speed_up, write_csv  # noqa: E402
from bench.step import targets  # noqa: E402
from bench.step.rows import StepRow, read_steps  # noqa: E402

LEGEND = """\
A row is one provider at one setting. Providers take turns within a process, a window of steps each,
and **ms** is the median per step of the wall clock, **p20-p80** its spread, **CPU ms** the median
time of all threads of the process, which says more on a shared machine. **peak MiB** are networks,
moments, batch and what a step adds at its worst moment. **launches** are kernels, copies and fills,
on a CPU the operators that are not views; **syncs** are waits for the device; **busy** is the share
of the time in which a GPU works. The columns after the losses compare with the published step and
with the fastest of the expert's steps, the last one the CPU time with that of the published step.

M is the number of modalities that the network that learns sees; *random* is the expectation over 1
to 4, which are equally likely. The loss values are those of the last of a few steps without
dropout, from the same weights on the same inputs; a provider is timed only after they agree, for
the regulariser up to the scatter of other noise.
"""
HEADER = (
    "M", "provider", "dtype", "images/s", "ms", "p20-p80", "CPU ms", "peak MiB", "launches",
    "syncs", "busy", "ohem", "logit", "hpdm", "rrm", "loss", "vs official", "vs best_torch",
    "CPU vs official",
)  # fmt: skip


def write(
    rows: Sequence[StepRow],
    out: Path,
    about: dict[str, str],
    notes: Sequence[str] = (),
    summary: Sequence[str] = (),
) -> None:
    """Write ``train_step.csv`` and ``train_step.md`` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "train_step.csv", StepRow, rows, about)
    lines = ["# Training steps", "", *(f"{note}\n" for note in notes)]
    lines += [*(f"- {name}: {value}" for name, value in about.items()), "", *summary]
    lines += [*report.description("train_step"), LEGEND]
    for title in dict.fromkeys((row.group[0], row.threads) for row in rows):
        setting, threads = title
        lines += [f"## {setting}" + (f", threads: {threads}" if threads else ""), ""]
        lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
        those = [row for row in rows if (row.group[0], row.threads) == title]
        lines += [_line(row, rows) for row in those]
        ways = dict.fromkeys(f"{row.provider}: {row.ways}." for row in those if row.ways)
        lines += ["", *(f"{way}\n" for way in ways)]
    (out / "train_step.md").write_text("\n".join(lines).rstrip() + "\n")


def _line(row: StepRow, rows: Sequence[StepRow]) -> str:
    if row.status != "ok":
        # a pipe would end the cell
        cells = [row.status.splitlines()[0].replace("|", "/"), *[""] * (len(HEADER) - 4)]
    else:
        cells = [
            *_cells(row),
            *(_times(speed_up(row, rows, o)) for o in ("official", "best_torch")),
        ]
    return "| " + " | ".join([row.modalities, row.provider, row.dtype, *cells]) + " |"


def _cells(row: StepRow) -> list[str]:
    def text(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    losses = (row.ohem, row.logit, row.hpdm, row.rrm, row.loss)
    return [
        text(row.images_per_s, ".4g"),
        text(row.ms, ".4g"),
        f"{text(row.p20, '.4g')}-{text(row.p80, '.4g')}",
        text(row.cpu_ms, ".4g"),
        text(row.peak_mib, ".0f"),
        text(row.launches, ".0f"),
        text(row.host_syncs, ".0f"),
        text(row.busy, ".0%"),
        *(text(value, ".5g") for value in losses),
    ]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}x"


def terminal_line(row: StepRow) -> str:
    """A row in one line of text."""
    name = f"{row.setting} M={row.modalities or '?'} {row.provider}"
    if row.status != "ok":
        return f"{name}: {row.status.splitlines()[0]}"
    cells = zip(HEADER[3:], _cells(row), strict=False)
    return f"{name}: " + ", ".join(f"{title} {text}" for title, text in cells if text)


def main() -> None:
    """Turn a file of rows into the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--note", action="append", default=[], help="a line above the tables")
    options = parser.parse_args()
    rows = read_steps(options.rows)
    machine = report.machine()
    lines = targets.step_lines(rows, machine["device"])
    write(rows, options.out, machine, options.note, lines)


if __name__ == "__main__":
    main()
