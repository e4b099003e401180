"""Rows of measurements as CSV and as Markdown.

python bench/harness/report.py rows.jsonl --out bench/results/cpu
"""

from __future__ import annotations

import argparse
import ast
import datetime
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed

import torch  # noqa: E402

from bench.harness import timing  # noqa: E402
from bench.harness.rows import Row, read_rows, speed_up, write_csv  # noqa: E402

OFFICIAL, FUSED, APEX = "official", "fused", "apex"
TORCH = "torch"  # the fastest of the other providers


@dataclass
class OperatorRow(Row):
    """One provider at one size; what was not measured is None."""

    op: str
    case: str
    mode: str
    dtype: str
    provider: str
    status: str = "not run"
    ms: float | None = None
    p20: float | None = None
    p80: float | None = None
    noise: float | None = None
    wall_ms: float | None = None
    gb_per_s: float | None = None
    copy_gb_per_s: float | None = None
    copy_share: float | None = None
    peak_mib: float | None = None
    launches: int | None = None
    host_syncs: int | None = None
    error: float | None = None

    def fill(self, fn: Callable[[], object], bytes_moved: int, seconds: float) -> None:
        """Measure everything but the error."""
        times = timing.time_of(fn, seconds)
        self.ms, self.p20, self.p80 = times.median, times.p20, times.p80
        self.noise = times.noise
        self.wall_ms = timing.wall_ms(fn)
        self.gb_per_s = bytes_moved / times.median / 1e6
        self.copy_gb_per_s = timing.copy_gb_per_s()
        self.copy_share = self.gb_per_s / self.copy_gb_per_s
        # compiled code hides its operators from the CPU's counter
        if timing.ON_GPU or not self.provider.startswith("compile"):
            self.launches, self.host_syncs = timing.count(fn)
        self.peak_mib = timing.peak_extra_mib(fn)

    @property
    def group(self) -> tuple[str, str, str, str]:
        """Operator, case, mode and dtype, equal for all providers of a comparison."""
        return (self.op, self.case, self.mode, self.dtype)

    @property
    def key(self) -> tuple[str, ...]:
        """Fields that identify the row in a file: its group and the provider."""
        return (*self.group, self.provider)

    def rivals(self, rows: Sequence[OperatorRow], over: str) -> list[OperatorRow]:
        """The published loops (``official``), or what is plain PyTorch (``torch``)."""
        others = [other for other in rows if other.group == self.group and other is not self]
        if over == OFFICIAL:
            return [other for other in others if other.provider == OFFICIAL]
        return [other for other in others if other.provider not in (OFFICIAL, FUSED, APEX)]


LEGEND = """\
A row is one provider at one size. **ms** is the median of a call, **p20-p80** the spread; **wall**
has the time of Python with it. **GB/s** are the fewest bytes that have to be read and written, over
the time, and **of copy** is their share of what a copy moves in the same process. **extra MiB** is
memory at the worst moment beyond the inputs. **launches** are kernels, copies and fills, **syncs**
waits for the device. **error** is the largest difference from float64, relative to the largest true
element. The last columns say how many times faster a row is than the published loops and than the
fastest provider in plain PyTorch, compiled or not; *same* is within the noise of two measurements.
A provider is timed only after its results have passed a check.
"""


def write_markdown(
    path: Path,
    rows: Sequence[OperatorRow],
    about: dict[str, str],
    notes: Sequence[str],
    summary: Sequence[str] = (),
) -> None:
    """The summary, then a table per operator, one line per provider and size."""
    lines = ["# Kernels", "", *(f"{note}\n" for note in notes)]
    lines += [*(f"- {name}: {value}" for name, value in about.items()), "", *summary, LEGEND]
    for op in dict.fromkeys(row.op for row in rows):
        lines += [f"## {op}", "", *description(op)]
        lines += [*_table([row for row in rows if row.op == op]), ""]
    path.write_text("\n".join(lines).rstrip() + "\n")


def description(op: str) -> list[str]:
    """Docstring of the operator's benchmark file as Markdown; an empty list if there is none."""
    sources = [*(ROOT / "bench").glob(f"*/bench_{op}.py")]
    text = ast.get_docstring(ast.parse(sources[0].read_text())) if sources else None
    if text is None:
        return []
    return [re.sub(r":\w+:`([^`]+)`", r"`\1`", text).replace("``", "`"), ""]


def terminal_line(row: OperatorRow) -> str:
    """A row in one line of text."""
    name = f"{row.op} {row.case} {row.mode} {row.dtype} {row.provider}"
    if row.status != "ok":
        return f"{name}: {row.status.splitlines()[0]}"
    return f"{name}: " + ", ".join(
        f"{title} {text}" for title, text in zip(HEADER[4:], _cells(row), strict=False) if text
    )


HEADER = ("case", "mode", "dtype", "provider", "ms", "p20-p80", "wall", "GB/s", "of copy",
          "extra MiB", "launches", "syncs", "error", "vs official", "vs best torch")  # fmt: skip


def _table(rows: Sequence[OperatorRow]) -> list[str]:
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for row in rows:
        if row.status == "ok":
            cells = [
                *_cells(row),
                *(_ratio_text(speed_up(row, rows, o)) for o in (OFFICIAL, TORCH)),
            ]
        else:
            # the first line says what; a pipe would end the cell
            cells = [row.status.splitlines()[0].replace("|", "/")] + [""] * 10
        lines.append(
            "| " + " | ".join([row.case, row.mode, row.dtype, row.provider, *cells]) + " |"
        )
    return lines


def _cells(row: OperatorRow) -> list[str]:
    def text(value: float | int | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        text(row.ms, ".4g"),
        f"{text(row.p20, '.4g')}-{text(row.p80, '.4g')}",
        text(row.wall_ms, ".4g"),
        text(row.gb_per_s, ".4g"),
        text(row.copy_share, ".1%"),
        text(row.peak_mib, ".1f"),
        text(row.launches, "d"),
        text(row.host_syncs, "d"),
        text(row.error, ".1e"),
    ]


def _ratio_text(ratio: float | None) -> str:
    return "" if ratio is None else "same" if ratio == 1 else f"{ratio:.3g}x"


def machine() -> dict[str, str]:
    """Conditions of the measurement: device, driver, clocks, versions, commit, date."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "none"
    found = {
        "device": torch.cuda.get_device_name() if timing.ON_GPU else "CPU",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "clocks": _output(
            "nvidia-smi",
            "--query-gpu=clocks.sm,clocks.mem,clocks.max.sm,power.limit",
            "--format=csv,noheader",
        ),
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
    return {name: value for name, value in found.items() if value}


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else ""


def write(
    rows: Sequence[OperatorRow],
    out: Path,
    about: dict[str, str],
    notes: Sequence[str] = (),
    summary: Sequence[str] = (),
) -> None:
    """Write ``kernels.csv`` and ``kernels.md`` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    if not timing.ON_GPU:
        notes = ["No GPU: CPU providers, host time; operators stand for launches.", *notes]
    write_csv(out / "kernels.csv", OperatorRow, rows, about)
    write_markdown(out / "kernels.md", rows, about, notes, summary)


def main() -> None:
    """Turn a file of rows into the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write(read_rows(options.rows, OperatorRow), options.out, machine())


if __name__ == "__main__":
    main()
