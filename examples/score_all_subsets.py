"""Score a network on all subsets of the sensors: ``python examples/score_all_subsets.py [DATA]``.

The network has random weights here; ``RunContext.load_network`` takes those of a run.
"""

import sys
from dataclasses import replace
from pathlib import Path

from fastseg.config.presets.registry import get_preset
from fastseg.engine.context import RunContext
from fastseg.evaluation.protocols.modality_subsets import evaluate_subsets
from fastseg.pipelines import build_loader
from fastseg.pipelines.synthetic import SyntheticConfig, generate


def main(root: Path) -> None:
    """Each image is encoded once, whatever the number of subsets."""
    generate(SyntheticConfig(out=root, size=64, train=8, val=4, workers=1), progress=False)
    base = get_preset("debug")
    context = RunContext(replace(base, data=replace(base.data, root=root)))
    network = context.new_network(seed=0)
    loader = build_loader(context.config.data, train=False)
    matrices = evaluate_subsets(context, network, loader.batches())
    loader.close()
    for subset, matrix in matrices.items():
        scores = matrix.scores()
        print(f"{subset:>4}  mIoU {100 * scores.miou_all:5.2f}  of {matrix.counts.sum()} pixels")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/examples"))
