"""Training on several processes: steps measured side by side, and a model of many more of them.

    torchrun --nproc-per-node 8 bench/step/bench_scaling.py --backbone mit_b2 --out FOLDER
    python bench/step/bench_scaling.py --step-ms 21 --images 2      model alone, two gloo processes

Weak scaling: every process trains on the same number of samples in every mode, and first without
its peers. Efficiency is the time alone over the time together, both of the slowest process. What
each mode sends is counted in the same steps (`c10d` operators and the bytes of their tensors), and
from these counts the table of 8 to 1024 GPUs is modelled, with the links of ``--links``; it says
so. Without a GPU the measured part only shows that all of it runs: two gloo processes on one
machine share its cores, and the model needs the time of a step from ``--step-ms``.

Started without torchrun it starts itself on two processes. Needs an installed fastseg.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from bench.harness import report  # noqa: E402
from bench.step.scaling_model import NODE, Links, Traffic, forecast  # noqa: E402

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
MODES = ("replicate", "fsdp_root", "hsdp", "fsdp_blocks")
KINDS = {
    "_allgather_base_": ("gather", 0), "allgather_": ("gather", 0),
    "allgather_into_tensor_coalesced_": ("gather", 0),
    "_reduce_scatter_base_": ("scatter", 1), "reduce_scatter_": ("scatter", 1),
    "allreduce_": ("reduce", 0),
}  # fmt: skip
"""Operators of torch.distributed: their kind, and the argument that holds the whole tensor."""


class CountTraffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the collectives that are started inside the block, by kind."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traffic: dict[str, Traffic] = defaultdict(Traffic)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        space, name = func._schema.name.split("::")
        if space == "c10d" and name in KINDS:
            kind, whole = KINDS[name]
            tensors = [x for x in tree_leaves(args[whole]) if isinstance(x, Tensor)]
            size = sum(x.numel() * x.element_size() for x in tensors)
            self.traffic[kind] += Traffic(1, size)
        return func(*args, **(kwargs or {}))


@dataclass
class Measured:
    """A mode on the processes of this launch; milliseconds of the slowest one."""

    mode: str
    processes: int
    alone_ms: float
    together_ms: float
    traffic: dict[str, Traffic]

    @property
    def efficiency(self) -> float:
        """Time alone over time together."""
        return self.alone_ms / self.together_ms


def main() -> int:
    """Measure, model, print; rank 0 writes."""
    options = arguments()
    if "RANK" not in os.environ:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command += ["--nproc-per-node", "2", *sys.argv]
        return subprocess.run(command, env=environment, check=False).returncode
    from fastseg.distributed.launch import join

    with join("auto", timeout_minutes=10) as ranks:
        measured = measure(options, ranks)
        if ranks.is_first:
            links = Links(*options.links)
            lines = tables(options, measured, links, ranks.device)
            print("\n".join(lines), flush=True)
            if options.out is not None:
                write(options, measured, links, lines)
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="mit_b0")
    parser.add_argument("--size", type=int, default=1024 if torch.cuda.is_available() else 64)
    parser.add_argument("--batch", type=int, default=2, help="samples per process")
    parser.add_argument("--steps", type=int, default=20, help="timed steps per mode")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--step-ms", type=float, help="of one GPU alone; default: as measured")
    parser.add_argument("--images", type=int, help="samples of that step; default: --batch")
    parser.add_argument("--bytes-per-sample", type=float, help="read per sample; default: counted")
    names = [field.name for field in fields(Links)]
    defaults = [getattr(Links(), name) for name in names]
    parser.add_argument(
        "--links", nargs=len(names), type=float, default=defaults,
        metavar=tuple(name.upper() for name in names), help=f"of the model; default: {defaults}",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of scaling.csv and scaling.md")
    return parser.parse_args()


def measure(options: argparse.Namespace, ranks: Any) -> list[Measured]:
    """Every mode on the processes of this launch."""
    from fastseg.distributed.parallelize import candidates

    alone, _ = step_ms(options, ranks, "single")
    rows = []
    for mode in MODES:
        if mode in options.modes and mode in candidates(ranks):
            together, traffic = step_ms(options, ranks, mode)
            rows.append(Measured(mode, ranks.world, alone, together, traffic))
    return rows


def step_ms(options: argparse.Namespace, ranks: Any, mode: str) -> tuple[float, dict[str, Traffic]]:
    """Median milliseconds of a step of stage two on the slowest process, and what one sends."""
    from fastseg import kernels
    from fastseg.distributed.ranks import Ranks
    from fastseg.engine.context import RunContext
    from fastseg.engine.stage_run import build_session
    from fastseg.engine.stage_setup import StageNetworks, StageSetup
    from fastseg.pipelines import Batch

    config = settings(options)
    kernels.settle(ranks.device)
    context = RunContext(config, Ranks(ranks.device) if mode == "single" else ranks)
    network, teacher = (context.new_network(seed).to(ranks.device) for seed in (0, 1))
    setup = StageSetup(config, "student", 1, config.stages["student"], steps_per_epoch=100)
    networks = StageNetworks({"student": network}, {"teacher": teacher.eval()})
    session = build_session(context, setup, networks, mode=mode, kind="adamw")
    generator = torch.Generator().manual_seed(ranks.rank)
    names = tuple(modality.name for modality in context.modalities)
    shape = (len(names), options.batch, 3, options.size, options.size)
    images = torch.randn(shape, generator=generator)
    labels = torch.randint(0, context.num_classes, shape[1:2] + shape[3:], generator=generator)
    batch = Batch(images, labels, names, ("",) * options.batch).to(ranks.device)
    times = []
    # on a GPU all numbers of modalities are met several times, and captured where they can be
    warm_up = 8 * len(names) if ranks.device.type == "cuda" else 2
    for step in range(warm_up + options.steps):
        _wait(ranks.device)
        began = time.perf_counter()
        session.step_fn(step, batch)
        _wait(ranks.device)
        times.append(1e3 * (time.perf_counter() - began))
    with CountTraffic() as counted:
        session.step_fn(0, batch)
    # the same subsets on all processes and in all modes: the medians compare
    (slowest,) = ranks.reduce([statistics.median(times[warm_up:])], "max")
    return slowest, dict(counted.traffic)


def settings(options: argparse.Namespace) -> Any:
    """The published student stage with the network and sizes asked for."""
    from dataclasses import replace

    from fastseg.config.presets.registry import get_preset

    config = get_preset("deliver_robustseg_b0")
    model = replace(config.model, backbone=options.backbone)
    data = replace(config.data, size=options.size, batch_size=options.batch)
    precision = config.precision if torch.cuda.is_available() else "fp32"
    return replace(config, model=model, data=data, precision=precision)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tables(
    options: argparse.Namespace, measured: list[Measured], links: Links, device: torch.device
) -> list[str]:
    """Both tables as Markdown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, gloo"
    lines = [
        f"## Measured: {measured[0].processes if measured else 0} processes ({name})", "",
        f"{options.backbone}, {options.size} x {options.size}, {options.batch} samples per "
        f"process, {settings(options).precision}, stage two with random modalities; milliseconds "
        "of the slowest process.", "",
        "| mode | alone | together | efficiency | all-gather | reduce-scatter | all-reduce |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in measured:
        sent = [_traffic(row.traffic.get(kind)) for kind in ("gather", "scatter", "reduce")]
        lines.append(
            f"| {row.mode} | {row.alone_ms:.1f} | {row.together_ms:.1f} | "
            f"{100 * row.efficiency:.0f} % | {' | '.join(sent)} |"
        )
    return [*lines, "", *modelled(options, measured, links, device)]


def _traffic(traffic: Traffic | None) -> str:
    return "-" if traffic is None else f"{traffic.messages} x, {traffic.size / 1e6:.2f} MB"


def modelled(
    options: argparse.Namespace, measured: list[Measured], links: Links, device: torch.device
) -> list[str]:
    """The table of many GPUs, with everything that it assumes."""
    step = options.step_ms
    source = "given by --step-ms"
    if step is None and device.type == "cuda" and measured:
        step, source = measured[0].alone_ms, "measured above"
    images = options.images or options.batch
    size = options.bytes_per_sample or 13.0 * options.size**2  # 4 x 3 channels and labels, uint8
    lines = [
        "## Modelled, not measured: 8 to 1024 GPUs", "",
        f"Assumed: {NODE} GPUs per node; {links.node_gb_per_s:g} GB/s per GPU inside it and "
        f"{links.net_gb_per_s:g} GB/s between nodes; {links.node_us:g} us to start a collective "
        f"and {links.net_us:g} us more per doubling of the nodes; rings; no stragglers; of "
        "`replicate` all but the last message is hidden, of the others nothing. Bytes are those "
        "counted above"
        + (" (hsdp: those of fsdp_root)." if not _has(measured, "hsdp") else "."),
    ]  # fmt: skip
    if step is None:
        lines += ["", "No step time of a GPU is known: efficiency needs `--step-ms`."]
        head = "| mode | GPUs | MB sent per GPU | communication ms | exposed ms | shortest step ms"
        lines += ["", f"{head} at 95 % |", "|---|---|---|---|---|---|"]
    else:
        lines[-1] += (
            f" A step of {images} samples takes {step:g} ms alone ({source}). A node reads "
            f"{size / 1e6:.1f} MB per sample."
        )
        head = "| mode | GPUs | MB sent per GPU | communication ms | exposed ms | efficiency"
        lines += [
            "",
            f"{head} | images/s | input GB/s per node |",
            "|---|---|---|---|---|---|---|---|",
        ]
    traffic = {row.mode: row.traffic for row in measured}
    if "fsdp_root" in traffic:
        traffic.setdefault("hsdp", traffic["fsdp_root"])
    for mode in (mode for mode in MODES if mode in traffic and mode in options.modes):
        for gpus in SIZES:
            found = forecast(mode, traffic[mode], gpus, links)
            cells = [mode, str(gpus), f"{found.volume / 1e6:.1f}"]
            cells += [f"{1e3 * found.communication:.2f}", f"{1e3 * found.exposed:.2f}"]
            if step is None:
                cells.append(f"{1e3 * found.step_for(0.95):.1f}")
            else:
                efficiency = found.efficiency(step / 1e3)
                rate = images / (step / 1e3) * efficiency
                cells += [f"{100 * efficiency:.1f} %", f"{gpus * rate:.0f}"]
                cells.append(f"{NODE * rate * size / 1e9:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _has(measured: list[Measured], mode: str) -> bool:
    return any(row.mode == mode for row in measured)


def write(
    options: argparse.Namespace, measured: list[Measured], links: Links, lines: list[str]
) -> None:
    """scaling.md with both tables, scaling.csv with what was measured."""
    options.out.mkdir(parents=True, exist_ok=True)
    machine = ", ".join(f"{key} {value}" for key, value in report.machine().items())
    text = "\n".join(["# Scaling", "", machine, "", *lines])
    (options.out / "scaling.md").write_text(f"{text}\n")
    with (options.out / "scaling.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["mode", "processes", "alone_ms", "together_ms", "kind", "messages", "bytes"]
        )
        for row in measured:
            for kind, part in row.traffic.items():
                times = [f"{row.alone_ms:.3f}", f"{row.together_ms:.3f}"]
                table.writerow([row.mode, row.processes, *times, kind, part.messages, part.size])


if __name__ == "__main__":
    sys.exit(main())
