"""Steps on several processes as CSV and Markdown: the tables of what was measured and modelled."""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass

import torch

from bench.harness import report
from bench.step.scaling_model import NODE, Links, Traffic, forecast

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
MODES = ("replicate", "fsdp_root", "hsdp", "fsdp_blocks")


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


def tables(
    options: argparse.Namespace,
    measured: list[Measured],
    links: Links,
    device: torch.device,
    precision: str,
) -> list[str]:
    """Both tables as Markdown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, gloo"
    lines = [
        f"## Measured: {measured[0].processes if measured else 0} processes ({name})", "",
        f"{options.backbone}, {options.size} x {options.size}, {options.batch} samples per "
        f"process, {precision}, stage two with random modalities; milliseconds "
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
