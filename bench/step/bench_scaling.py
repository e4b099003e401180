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
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from bench.step.scaling_model import Links, Traffic  # noqa: E402
from bench.step.scaling_report import MODES, Measured, tables, write  # noqa: E402

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
            precision = settings(options).precision
            lines = tables(options, measured, links, ranks.device, precision)
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


if __name__ == "__main__":
    sys.exit(main())
