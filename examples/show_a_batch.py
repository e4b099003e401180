"""Load a data set and print what a batch holds: ``python examples/show_a_batch.py [FOLDER]``.

Street scenes are rendered into the folder if it has none.
"""

import sys
from pathlib import Path

from fastseg.pipelines import DataConfig, build_loader, get_dataset
from fastseg.pipelines.synthetic import SyntheticConfig, generate


def main(root: Path) -> None:
    """Render, load, print."""
    generate(SyntheticConfig(out=root, size=64, train=8, val=4, workers=1), progress=False)
    config = DataConfig(dataset="deliver", root=root, size=64, batch_size=2, workers=0)
    loader = build_loader(config, train=True, seed=0)
    print(f"{loader.num_samples} samples, {loader.steps_per_epoch} batches, {loader.name} loader")
    batch = next(loader.batches())
    loader.close()
    for name, image in zip(batch.modalities, batch.images, strict=True):
        print(f"{name:>6} {list(image.shape)}, mean {image.mean():+.2f}, std {image.std():.2f}")
    classes = get_dataset(config.dataset).classes
    seen = [classes[k] for k in batch.labels.unique().tolist() if k < len(classes)]
    print(f"labels {list(batch.labels.shape)}: {', '.join(seen)}")
    print(f"samples: {', '.join(batch.sample_ids)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/examples"))
