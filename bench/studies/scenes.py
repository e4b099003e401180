"""Do the synthetic scenes ask for every sensor? Scores of a finished run by weather and sensor.

    python bench/studies/scenes.py --checkpoint runs/demo

Prints mIoU in percent (classes that occur) of each single modality and of the full set per weather
condition. With several modalities it also prints what the full set loses without each of them: the
scenes are as designed if every modality costs at least 2 points and no single one reaches 90 % of
the full set. With one (``fastseg.train --name rgb --data.modalities img``, scored with ``--network
teacher``) it says what night does to it: RGB should lose at least 8 points against cloud, depth
and LiDAR less than 4.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from fastseg import kernels
from fastseg.config.serialise import read_config
from fastseg.engine.context import RunContext
from fastseg.evaluation.metrics import ConfusionMatrix
from fastseg.evaluation.protocols.modality_subsets import logits_of_subsets
from fastseg.evaluation.subsets import run_subsets
from fastseg.pipelines import build_loader

ALL = "all"


@dataclass(frozen=True)
class ScenesConfig:
    """Run and network to score."""

    checkpoint: Path = Path("runs/demo")
    """Folder of a finished run on the synthetic data set."""
    network: str = "student"
    """Network to score."""


def main() -> None:
    """Score and print the tables and verdicts."""
    options = tyro.cli(ScenesConfig, description=__doc__)
    context = RunContext(read_config(options.checkpoint / "config.json"))
    scores = by_condition(context, options.checkpoint / f"{options.network}.safetensors")
    singles = [s.name for s in run_subsets(context) if len(s.positions) == 1]
    full = run_subsets(context)[-1].name
    conditions = [*context.spec.conditions, ALL]
    print(f"{'':8}" + "".join(f"{name:>8}" for name in conditions))
    for subset in dict.fromkeys((*singles, full)):
        print(f"{subset:8}" + "".join(f"{scores[name, subset]:8.1f}" for name in conditions))
    print(f"night against cloud: {scores['night', full] - scores['cloud', full]:+.1f}")
    if len(singles) == 1:
        return
    losses = {
        letter: scores[ALL, full] - scores[ALL, full.replace(letter, "")] for letter in singles
    }
    print("without " + "  ".join(f"{letter}: -{loss:.1f}" for letter, loss in losses.items()))

    best = max(scores[ALL, letter] for letter in singles)
    verdicts = {
        "every modality is worth at least 2 points": min(losses.values()) >= 2,
        "no modality reaches 90 % of all": best < 0.9 * scores[ALL, full],
    }
    for sentence, holds in verdicts.items():
        print(f"{'yes' if holds else 'NO ':4} {sentence}")


def by_condition(context: RunContext, weights: Path) -> dict[tuple[str, str], float]:
    """Give mIoU in percent over the classes that occur, by (condition or ``all``, subset)."""
    network = context.load_network(weights)
    matrices: dict[tuple[str, str], ConfusionMatrix] = defaultdict(
        lambda: ConfusionMatrix(context.num_classes, context.device)
    )
    loader = build_loader(context.config.data, train=False)
    for batch in loader.batches():
        batch = batch.to(context.device)
        with torch.no_grad(), context.autocast():
            found = logits_of_subsets(context, network, batch.images, run_subsets(context))
            for subset, logits in found:
                predictions = kernels.upsample_argmax(logits, batch.images.shape[-2:])
                for row, sample in enumerate(batch.sample_ids):
                    for group in (sample.split("/")[0], ALL):
                        matrices[group, subset.name].update(predictions[row], batch.labels[row])
    loader.close()
    return {key: 100 * matrix.scores().miou_present for key, matrix in matrices.items()}


if __name__ == "__main__":
    main()
