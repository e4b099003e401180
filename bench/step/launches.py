"""Launches and bytes of a step of stage two by its parts, counted without a GPU and without values.

    TRITON_INTERPRET=1 python bench/step/launches.py            MiT-B0, 1024 x 1024, B=2, M=4, bf16
    TRITON_INTERPRET=1 python bench/step/launches.py --by-name  and the dearest operators of a part

The kernels are those of a GPU, what surrounds them is eager PyTorch: ``torch.compile`` launches
less. What is counted, and that it is a lower bound, stands in ``bench/harness/step_costs.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed
if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are imported

import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from bench.harness.step_costs import GB, Costs, follow  # noqa: E402
from fastseg import kernels  # noqa: E402
from fastseg.config.run import TrainConfig  # noqa: E402
from fastseg.config.sections import ModelConfig  # noqa: E402
from fastseg.engine.optim.kept_buffers import KeptBuffers  # noqa: E402
from fastseg.engine.optim.optimizer import build_optimizer  # noqa: E402
from fastseg.engine.stage_setup import StageNetworks, StageSetup  # noqa: E402
from fastseg.engine.step import TrainStep  # noqa: E402
from fastseg.methods.robustseg import LossOptions, RobustSegWeights  # noqa: E402
from fastseg.methods.stage import Stage  # noqa: E402
from fastseg.models import SegFormer  # noqa: E402
from fastseg.pipelines import Batch  # noqa: E402

MODALITIES, CLASSES = 4, 25


def make_step(modalities: str = "full", **model: object) -> TrainStep:
    """The step function of stage two for MiT-B0 in bfloat16, on the CPU.

    Args:
        modalities: policy of the stage; with ``full`` the student sees all four.
        model: fields of ``ModelConfig``.
    """
    stage = Stage(
        trains="student",
        learns_from="teacher",
        start="random",
        modalities=modalities,  # type: ignore[arg-type]
        losses=RobustSegWeights(ohem=1, logit=50, hpdm=100, rrm=0.01),
        steps=100,
    )
    config = TrainConfig(
        precision="bf16",
        losses=LossOptions(rrm_samples=10),
        model=ModelConfig(**model),  # type: ignore[arg-type]
    )
    # as on a GPU
    network, teacher = (
        SegFormer("mit_b0", CLASSES, 768).to(memory_format=torch.channels_last) for _ in range(2)
    )
    setup = StageSetup(config, "student", 1, stage, steps_per_epoch=100)
    networks = StageNetworks({"student": network.train()}, {"teacher": teacher.eval()})
    return TrainStep(setup, networks, build_optimizer(network, config.optim))


def blank(batch: int, side: int, device: str = "cpu") -> Batch:
    """A batch of memory without values."""
    images = torch.empty(MODALITIES, batch, 3, side, side, device=device)
    labels = torch.empty(batch, side, side, dtype=torch.int64, device=device)
    return Batch(images, labels, ("",) * MODALITIES, ("",) * batch)


def costs_of(
    train: TrainStep, batch: int = 2, side: int = 1024, step: int = 0
) -> tuple[Costs, Costs]:
    """Costs of both passes without values; then of the optimizer, whose tensors are small."""
    draws = train.draw(step, MODALITIES, batch)
    both = Costs("input")
    networks = {"student": train.networks.main, "teacher": train.networks.frozen["teacher"]}
    for name, network in networks.items():
        follow(both, name, network.encoder, network.decoder)  # type: ignore[arg-type]
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))  # type: ignore[no-untyped-call]
        stack.enter_context(kernels.force_kernels())
        inputs = blank(batch, side)
        stack.enter_context(both)
        with train._arithmetic():
            loss = train.losses(inputs.images, inputs.labels, draws)["loss"]
            both.part = "backward of the losses"
            loss.backward()  # type: ignore[no-untyped-call]
    # the first update makes the moments
    for update in (Costs("optimizer"), Costs("optimizer")):
        for p in train.module.parameters():
            p.grad = torch.zeros_like(p)
        with update:
            train._learn({}, KeptBuffers(train.buffers))
    return both, update


def table(both: Costs, update: Costs) -> str:
    """Markdown: launches and bytes by part, and the sum."""
    parts = {**both.parts, **update.parts}
    lines = ["| part | launches | GB |", "|---|--:|--:|"]
    lines += [f"| {part} | {count} | {size / GB:.2f} |" for part, (count, size) in parts.items()]
    total = sum(size for _, size in parts.values()) / GB
    lines.append(f"| whole step | {both.total + update.total} | {total:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--by-name", action="store_true", help="and by operator and kernel")
    options = parser.parse_args()
    both, update = costs_of(make_step())
    print(table(both, update))
    if options.by_name:
        for name, count in (both.launches + update.launches).most_common():
            print(f"{count:5d} {(both.bytes[name] + update.bytes[name]) / GB:8.3f} GB  {name}")


if __name__ == "__main__":
    main()
