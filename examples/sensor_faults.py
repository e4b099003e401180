"""Break sensors and look at the result: ``python examples/sensor_faults.py [DATA] [PICTURE]``."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from fastseg.evaluation.run_report import displayable
from fastseg.pipelines import CorruptionConfig, DataConfig, build_loader, get_dataset
from fastseg.pipelines.synthetic import SyntheticConfig, generate

FAULTS = CorruptionConfig(gaussian=1, low_resolution=1, lidar_jitter=1)


def main(root: Path, picture: Path) -> None:
    """The same sample without and with faults, one row each."""
    generate(SyntheticConfig(out=root, size=64, train=8, val=4, workers=1), progress=False)
    intact = DataConfig(root=root, size=64, eval_batch_size=1, workers=0)
    rows = []
    for config in (intact, replace(intact, eval_corruption=FAULTS)):
        loader = build_loader(config, train=False)
        rows.append(next(loader.batches()).images[:, 0])
        loader.close()
    modalities = get_dataset(intact.dataset).modalities
    for modality, before, after in zip(modalities, *rows, strict=True):
        changed = (before != after).any(0).float().mean()
        print(f"{modality.name:>6} ({modality.sensor}): {100 * changed:.0f} % of the pixels differ")
    shown = [[displayable(*pair) for pair in zip(modalities, row, strict=True)] for row in rows]
    Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in shown])).save(picture)
    print(f"above without, below with faults: {picture}")


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(*given, *[Path("data/examples"), Path("faults.png")][len(given) :])
