"""Scores of a finished student by the statistics that its BatchNorm uses.

    python bench/studies/batch_norm_statistics.py --run runs/compare/dropout_per_batch-0

- running: as saved, an average over the subsets of the training;
- mixed: taken anew from training batches in which each sample has a subset of its own;
- batch: those of the scored batch, which has one subset, as a training batch had.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import nn

from fastseg.config.serialise import read_config
from fastseg.engine.context import RunContext
from fastseg.evaluation.scores import score_networks, subset_results
from fastseg.methods.seeds import draw_modalities_of_samples
from fastseg.models import Segmenter
from fastseg.pipelines import build_loader
from fastseg.report.results import mean_result


@dataclass(frozen=True)
class Options:
    """The run, and how much of its data is read."""

    run: Path
    """Folder of a finished run with a student."""
    batches: int = 60
    """Training batches for the mixed statistics."""


class BatchStatistics(nn.BatchNorm2d):
    """BatchNorm that normalises by the batch at hand, in evaluation too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, C, h, w]`` to the same shape."""
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, training=True)


def main() -> None:
    """Print mean of the subsets and score of all sensors, in percent, per kind of statistics."""
    options = tyro.cli(Options, description=__doc__)
    context = RunContext(read_config(options.run / "config.json"))
    for name, change in (("running", None), ("mixed", mix), ("batch", by_batch)):
        network = context.load_network(options.run / "student.safetensors", "student")
        if change is not None:
            change(context, network, options.batches)
        results = subset_results(context, score_networks(context, {"student": network}))
        full = max(results, key=lambda result: len(result.subset))
        mean = mean_result(results)
        print(f"{name}: mean {100 * mean.miou_all:.2f}, full {100 * full.miou_all:.2f}")


def norms(network: Segmenter) -> list[nn.BatchNorm2d]:
    """The BatchNorm layers of a network."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def mix(context: RunContext, network: Segmenter, batches: int) -> None:
    """Average the statistics of batches whose samples have subsets of their own."""
    for norm in norms(network):
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    loader = build_loader(context.config.data, train=True, seed=0)
    try:
        with torch.no_grad():
            for number, batch in enumerate(loader.batches(0, batches)):
                count = len(context.modalities)
                kept = draw_modalities_of_samples(count, len(batch.labels), number)
                network(batch.images, fused=kept.T[None].contiguous())
    finally:
        loader.close()
    network.eval()


def by_batch(context: RunContext, network: Segmenter, batches: int) -> None:
    """Use the statistics of every batch that is scored."""
    for norm in norms(network):
        norm.__class__ = BatchStatistics


if __name__ == "__main__":
    main()
