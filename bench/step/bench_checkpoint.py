"""Cost of a training state: how long a step waits for it, and what each rank writes.

    python bench/step/bench_checkpoint.py
    python bench/step/bench_checkpoint.py --backbone mit_b2 --processes 1 2

On 1, 2 and 4 processes (gloo, of this machine), in the modes ``replicate`` and ``fsdp_root``, a
network with moments is saved again and again. *At once* is ``--save-async off``, *beside* is
``on``; while a state is written beside it the loop sleeps, as the processor mostly does while a GPU
trains: what is measured is the wait of the loop, not a race for the cores of this machine. The wait
of a save is that of the slowest rank. Median and minimum over the saves are given: other programs
that use cores and disk make the rest.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout

import torch  # noqa: E402

from bench.harness import report  # noqa: E402

MODES = ("replicate", "fsdp_root")
_SLICE_S = 0.005
WAYS = {"at once": False, "beside": True}


@dataclass(frozen=True)
class Row:
    """A mode on a number of processes.

    Attributes:
        processes: how many save.
        mode: how they hold the network.
        waits: by way, milliseconds of the slowest rank for each save.
        written: bytes that each rank writes.
        behind: milliseconds from a save beside the training until its state is there, by save.
    """

    processes: int
    mode: str
    waits: dict[str, list[float]]
    written: list[int]
    behind: list[float]


def main() -> None:
    """Measure every number of processes in a launch of its own, and write the tables."""
    options = arguments()
    if "RANK" in os.environ:
        serve(options)
        return
    rows: list[Row] = []
    for processes in options.processes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(processes), __file__, *sys.argv[1:]]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "BENCH_FOLDER": folder}
            subprocess.run(command, env=environment, check=True)
            rows += [Row(**row) for row in json.loads((Path(folder) / "rows.json").read_text())]
    write(options, rows)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="mit_b2")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--saves", type=int, default=7, help="saves of each way; the first warms up"
    )
    parser.add_argument("--folder", type=Path, help="folder on the disk to write to; default: /tmp")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "cpu")
    return parser.parse_args()


def serve(options: argparse.Namespace) -> None:
    """One rank of a launch; rank 0 writes the rows."""
    from fastseg.distributed.launch import join

    torch.set_num_threads(1)
    folder, rows = Path(os.environ["BENCH_FOLDER"]), []
    with join("cpu", timeout_minutes=10) as ranks:
        for mode in MODES if ranks.world > 1 else ("single",):
            rows.append(measure(options, ranks, mode, folder / mode))
        if ranks.is_first:
            (folder / "rows.json").write_text(json.dumps(rows))


def measure(options: argparse.Namespace, ranks: Any, mode: str, folder: Path) -> dict[str, Any]:
    """A row, on all ranks."""
    from fastseg.checkpoint.contents import KINDS
    from fastseg.checkpoint.layout import file_name
    from fastseg.checkpoint.state import TrainingStates

    session = saved_session(options.backbone, ranks, mode)
    waits: dict[str, list[float]] = {way: [] for way in WAYS}
    behind, done = [], 0
    for way, beside in WAYS.items():
        states = TrainingStates(folder / way)
        for save in range(options.saves):
            done += 1
            ranks.share(lambda: None)
            began = time.perf_counter()
            session.save(states, done, {"fingerprint": "none"}, keep=1, beside=beside)
            own = 1e3 * (time.perf_counter() - began)
            (slowest,) = ranks.reduce([own], "max")
            while states.busy:
                time.sleep(_SLICE_S)
            states.wait()
            (until,) = ranks.reduce([1e3 * (time.perf_counter() - began)], "max")
            if save:
                waits[way].append(slowest)
                behind += [until] if beside else []
    newest = next((folder / "beside").glob("step-*"))
    files = [
        [newest / file_name(kind, rank, ranks.world) for kind in KINDS]
        for rank in range(ranks.world)
    ]
    written = [sum(p.stat().st_size for p in own if p.is_file()) for own in files]
    return {
        "processes": ranks.world, "mode": mode, "waits": waits, "written": written,
        "behind": behind,
    }  # fmt: skip


def saved_session(backbone: str, ranks: Any, mode: str) -> Any:
    """A stage of the published recipe whose optimizer has its moments."""
    from dataclasses import replace

    from fastseg.config.presets.registry import get_preset
    from fastseg.engine.context import RunContext
    from fastseg.engine.stage_run import build_session
    from fastseg.engine.stage_setup import StageNetworks, StageSetup

    config = get_preset("deliver_robustseg_b0")
    config = replace(config, model=replace(config.model, backbone=backbone), precision="fp32")
    context = RunContext(config, ranks)
    setup = StageSetup(config, "teacher", 0, config.stages["teacher"], steps_per_epoch=100)
    networks = StageNetworks({"teacher": context.new_network(0)})
    session = build_session(context, setup, networks, mode=mode, kind="adamw")
    for weight in session.module.parameters():
        weight.grad = torch.zeros_like(weight)
    session.optimizer.step()
    return session


def write(options: argparse.Namespace, rows: list[Row]) -> None:
    """checkpoint.md with the table, checkpoint.csv with every save."""
    options.out.mkdir(parents=True, exist_ok=True)
    machine = ", ".join(f"{key} {value}" for key, value in report.machine().items())
    total = sum(rows[0].written) / 1e6
    lines = [
        "# Training states", "", machine, "",
        f"{options.backbone}, weights and moments of AdamW, {total:.0f} MB in all; "
        f"{options.saves - 1} saves of each way to the disk of this machine, which other programs "
        "use, too. Milliseconds that the loop waits for a save, and until a state that is written "
        "beside it is there: median (minimum), of the slowest rank.", "",
        "| processes | mode | at once | beside | until it is there | MB of each rank |",
        "|--:|---|--:|--:|--:|---|",
    ]  # fmt: skip
    for row in rows:
        cells = [_cell(row.waits[way]) for way in WAYS] + [_cell(row.behind)]
        sizes = ", ".join(f"{size / 1e6:.1f}" for size in row.written)
        lines.append(f"| {row.processes} | {row.mode} | {' | '.join(cells)} | {sizes} |")
    text = "\n".join(lines) + "\n"
    (options.out / "checkpoint.md").write_text(text, encoding="utf-8")
    with (options.out / "checkpoint.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["processes", "mode", "way", "save", "wait_ms"])
        for row in rows:
            for way, waits in row.waits.items():
                for number, wait in enumerate(waits, 1):
                    table.writerow([row.processes, row.mode, way, number, f"{wait:.2f}"])
    print(text)


def _cell(times: list[float]) -> str:
    return f"{statistics.median(times):.0f} ({min(times):.0f})"


if __name__ == "__main__":
    main()
