"""Time of scoring all subsets of the modalities: one encoding per image against a pass per subset.

    python bench/studies/subset_passes.py                       the demo's network and images
    python bench/studies/subset_passes.py --backbone mit_b0 --side 256 --samples 8

Four ways of the same confusion matrices, on rendered scenes and random weights:

- ``as released``: a pass over the split for every subset, which reads and encodes the images anew,
  with plain operators: interpolation, arg max, a mask that selects pixels, counts in float32;
- ``15 passes``: the same with the operators of this project;
- ``read once``: images are read once, and each subset has a forward pass of its own;
- ``encode once``: `Segmenter.logits_of_subsets`, as every evaluation here.

They are timed in turn, so that a change of the machine's pace reaches all alike, on a CPU by the
time of the process, which other programs change little, and the fastest turn of each counts; their
matrices are compared. A second table has the parts of ``encode once``, which say what bounds it.
Most cells between four logits of one class are not interpolated on a CPU: how many there are is a
matter of the predictions, so the last row has the time of predictions that are noise. The tables
are written to ``bench/results/<device>/subsets.md``, below the tables of other sizes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

from fastseg import kernels  # noqa: E402
from fastseg.config.presets.registry import get_preset  # noqa: E402
from fastseg.config.run import TrainConfig  # noqa: E402
from fastseg.engine.context import RunContext  # noqa: E402
from fastseg.evaluation.metrics import ConfusionMatrix  # noqa: E402
from fastseg.evaluation.protocols.modality_subsets import evaluate_subsets  # noqa: E402
from fastseg.evaluation.subsets import Subset, run_subsets  # noqa: E402
from fastseg.models import Segmenter, SegmenterInParts  # noqa: E402
from fastseg.pipelines import Batch, build_loader  # noqa: E402
from fastseg.pipelines.synthetic import SyntheticConfig, generate  # noqa: E402

Way = Callable[[RunContext, Segmenter], dict[str, Tensor]]
"""Scores the split: counts ``[K, K]`` by the name of the subset."""
Add = Callable[[RunContext, Segmenter, Batch, Subset, ConfusionMatrix], None]
"""Counts the predictions of a forward pass on one batch."""
TREATMENTS = ("drop", "zero")
BASE = "as released"
CLASSES, MATRIX = "upsample and arg max, 15", "confusion matrix, 15"


def main() -> None:
    """Time the ways and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="mit_nano")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=9, help="timed turns")
    parser.add_argument("--out", type=Path, help="instead of bench/results/<device>")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes = SyntheticConfig(
            out=Path(folder) / "data", size=options.side, train=1, val=options.samples, workers=1
        )
        generate(scenes, progress=False)
        config = demo_config(scenes.out, options.backbone, options.side)
        text = "\n".join(rows(config, treatment, options.rounds) for treatment in TREATMENTS)
        inside = "\n".join(parts(config, options.rounds))
    device = "gpu" if torch.cuda.is_available() else "cpu"
    path = (options.out or ROOT / "bench" / "results" / device) / "subsets.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    title = (
        f"### {options.backbone}, {options.side} x {options.side}, {options.samples} samples, "
        f"{device}, {torch.get_num_threads()} threads of {os.cpu_count()}, "
        f"torch {torch.__version__}"
    )
    write(path, title, f"{HEAD}\n{text}\n\n{PARTS_HEAD}\n{inside}\n")
    print(path.read_text(encoding="utf-8"))


HEAD = (
    "| missing modalities | way | s per split | times as fast as 15 passes | as released "
    "| pixels that differ |\n|---|---|---|---|---|---|"
)
PARTS_HEAD = "| part of encode once, drop | ms per split | share |\n|---|---|---|"


def write(path: Path, title: str, table: str) -> None:
    """Put a table under its title into the file, in place of an older one of that title."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    parts = [part for part in old.split("### ") if part.strip()]
    kept = [f"### {part.strip()}\n" for part in parts if f"### {part}".splitlines()[0] != title]
    path.write_text("\n".join([*kept, f"{title}\n\n{table}"]), encoding="utf-8")


def demo_config(root: Path, backbone: str, side: int) -> TrainConfig:
    """The demo on these scenes; nothing decoded is kept, as on a data set that does not fit."""
    demo = get_preset("demo")
    width = demo.model.embed_dim if backbone == demo.model.backbone else 768
    return replace(
        demo,
        data=replace(demo.data, root=root, size=side, cache=False),
        model=replace(demo.model, backbone=backbone, embed_dim=width),
    )


def rows(config: TrainConfig, treatment: str, rounds: int) -> str:
    """Rows of the table for one treatment of missing modalities."""
    config = replace(config, evaluation=replace(config.evaluation, missing=treatment))
    context = RunContext(config)
    network = context.new_network(0).to(context.device).eval()
    ways: dict[str, Way] = {
        BASE: partial(pass_per_subset, add=add_as_released),
        "15 passes": pass_per_subset,
        "read once": read_once,
        "encode once": encode_once,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    counts: dict[str, dict[str, Tensor]] = {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = clock()
            counts[name] = way(context, network)
            # the first turn warms up
            if turn:
                times[name].append(clock() - start)
    least = {name: min(found) for name, found in times.items()}
    return "\n".join(
        f"| {treatment} | {name} | {time:.2f} | {least['15 passes'] / time:.1f} "
        f"| {least[BASE] / time:.1f} | {moved(counts[BASE], counts[name])} |"
        for name, time in least.items()
    )


def parts(config: TrainConfig, rounds: int) -> list[str]:
    """Rows of the table of parts: what one way does, each part by itself."""
    context = RunContext(config)
    network = context.new_network(0).to(context.device).eval()
    assert isinstance(network, SegmenterInParts)
    subsets = [list(subset.positions) for subset in run_subsets(context)]
    k = context.num_classes

    def read() -> list[Batch]:
        loader = build_loader(config.data, train=False)
        batches = [batch.to(context.device) for batch in loader.batches()]
        loader.close()
        return batches

    batches = read()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad(), context.autocast():
        features = [network.encode(batch.images) for batch in batches]
        logits = [[*network.logits_of_choices(x, subsets)] for x in features]
        drawn = [[torch.randn(x.shape, generator=noise).to(x) for x in one] for one in logits]
        pairs = [(x, batch.labels) for one, batch in zip(logits, batches, strict=True) for x in one]
        random = [(x, batch.labels) for one, batch in zip(drawn, batches, strict=True) for x in one]
        work: dict[str, Callable[[], object]] = {
            "read and decode": read,
            "encode each image once": lambda: [network.encode(b.images) for b in batches],
            "fusion and head, 15": lambda: [
                [*network.logits_of_choices(x, subsets)] for x in features
            ],
            CLASSES: lambda: [kernels.upsample_argmax(x, y.shape[-2:]) for x, y in pairs],
            MATRIX: lambda: [kernels.upsample_confusion(x, y, k) for x, y in pairs],
            f"{CLASSES}, of noise": lambda: [
                kernels.upsample_argmax(x, y.shape[-2:]) for x, y in random
            ],
        }
        least = dict.fromkeys(work, float("inf"))
        for _ in range(rounds + 1):
            for name, task in work.items():
                start = clock()
                task()
                least[name] = min(least[name], clock() - start)
    least[MATRIX] -= least[CLASSES]
    total = sum(list(least.values())[:-1])
    return [f"| {n} | {1000 * t:.1f} | {100 * t / total:.0f} % |" for n, t in least.items()]


def clock() -> float:
    """Seconds of this process on a CPU, whatever else it computes; of a GPU, with a wait for it."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def moved(base: dict[str, Tensor], other: dict[str, Tensor]) -> str:
    """Pixels whose prediction differs, of all subsets, as far as the matrices tell."""
    total = sum(int(matrix.sum()) for matrix in base.values())
    different = sum(int((base[name] - other[name]).abs().sum()) // 2 for name in base)
    return f"{different} of {total}" if different else f"none of {total}"


def encode_once(context: RunContext, network: Segmenter) -> dict[str, Tensor]:
    """As every evaluation does."""
    loader = build_loader(context.config.data, train=False)
    matrices = evaluate_subsets(context, network, loader.batches())
    loader.close()
    return {name: matrix.counts.cpu() for name, matrix in matrices.items()}


def pass_per_subset(
    context: RunContext, network: Segmenter, add: Add | None = None
) -> dict[str, Tensor]:
    """A pass over the files for every subset."""
    add = add or add_predictions
    found = {}
    for subset in run_subsets(context):
        loader = build_loader(context.config.data, train=False)
        matrix = ConfusionMatrix(context.num_classes, context.device)
        for batch in loader.batches():
            add(context, network, batch.to(context.device), subset, matrix)
        loader.close()
        found[subset.name] = matrix.counts.cpu()
    return found


def read_once(context: RunContext, network: Segmenter) -> dict[str, Tensor]:
    """A forward pass for every subset of each batch."""
    subsets = run_subsets(context)
    matrices = {s.name: ConfusionMatrix(context.num_classes, context.device) for s in subsets}
    loader = build_loader(context.config.data, train=False)
    for batch in loader.batches():
        batch = batch.to(context.device)
        for subset in subsets:
            add_predictions(context, network, batch, subset, matrices[subset.name])
    loader.close()
    return {name: matrix.counts.cpu() for name, matrix in matrices.items()}


def add_predictions(
    context: RunContext, network: Segmenter, batch: Batch, subset: Subset, matrix: ConfusionMatrix
) -> None:
    """Count the predictions of one forward pass."""
    with torch.no_grad(), context.autocast():
        matrix.update_from(network(seen(context, batch, subset)).logits, batch.labels)


def add_as_released(
    context: RunContext, network: Segmenter, batch: Batch, subset: Subset, matrix: ConfusionMatrix
) -> None:
    """The same as the released metric code does."""
    k, labels = context.num_classes, batch.labels
    with torch.no_grad(), context.autocast():
        logits = network(seen(context, batch, subset)).logits
        full = functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
        classes, counted = full.argmax(1), labels != 255
        cells = labels[counted] * k + classes[counted]
    matrix.counts = matrix.counts.float() + torch.bincount(cells, minlength=k * k).view(k, k)


def seen(context: RunContext, batch: Batch, subset: Subset) -> Tensor:
    """The images that the network is fed."""
    rows = list(subset.positions)
    if context.config.evaluation.missing == "drop":
        return batch.images[rows]
    images = torch.zeros_like(batch.images)
    images[rows] = batch.images[rows]
    return images


if __name__ == "__main__":
    main()
