"""Builds and runs every kind of input pipeline again and again, in processes that may crash.

``python -m tests.support.loader_stress`` makes 100 runs of each variant and prints one line per
variant; the exit code is 1 if any process did not end well. The tests make two.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]


@dataclass(frozen=True)
class Variant:
    """One kind of pipeline: where samples come from and what is done to them."""

    dataset: str
    train: bool = True
    packed: bool = False
    loader: str = "dali"
    settings: dict[str, Any] = field(default_factory=dict)


_AUGMENTED = {"jitter": 0.5, "blur": 0.5}
_OF_THE_CROP = {"blur": 0.5, "blur_place": "crop", "blur_window": 0, "blur_sigma": (0.1, 1.0)}
VARIANTS = {
    # PNG of 8 bits decoded by DALI; the label through three channels and a table
    "deliver train": Variant("deliver", settings=_AUGMENTED),
    "deliver train, blurred crops": Variant("deliver", settings=_OF_THE_CROP),
    "deliver eval": Variant("deliver", train=False),
    # one-channel arrays of labels, fed as three
    "deliver packed train": Variant("deliver", packed=True, settings=_AUGMENTED),
    "deliver packed eval": Variant("deliver", train=False, packed=True),
    "mcubes-masked train": Variant("mcubes-masked", settings=_OF_THE_CROP),
    # uint16
    "muses train": Variant("muses", settings=_AUGMENTED),
    "muses eval": Variant("muses", train=False),
    "muses packed train": Variant("muses", packed=True, settings=_AUGMENTED),
    # float32, and files that Python decodes
    "muses-npz train": Variant("muses-npz", settings=_AUGMENTED),
    "mcubes train": Variant("mcubes", settings=_OF_THE_CROP),
    "mcubes packed train": Variant("mcubes", packed=True, settings=_OF_THE_CROP),
    "mcubes packed eval": Variant("mcubes", train=False, packed=True),
    # without DALI: worker processes, and threads in the C forms
    "torch train": Variant("deliver", loader="torch", settings=_AUGMENTED),
    "torch packed train": Variant("mcubes", packed=True, loader="torch", settings=_OF_THE_CROP),
}


def write_data(folder: Path) -> None:
    """The tiny trees that the variants read, decoded ones included."""
    from fastseg.pipelines import get_dataset
    from fastseg.pipelines.cache.write import pack_split
    from fastseg.pipelines.datasets.split_files import list_split
    from tests.support import dataset_trees as trees

    trees.write_deliver(folder / "deliver")
    trees.write_mcubes(folder / "mcubes")
    trees.write_muses_projected(folder / "muses")
    trees.write_muses_projected(folder / "muses", suffix=".npz")
    for dataset in ("deliver", "mcubes", "muses"):
        for split in ("train", "val"):
            files = list_split(get_dataset(dataset), folder / dataset, split)
            pack_split(files, folder / "packed" / dataset / split, workers=1, progress=False)


def run_once(variant: Variant, folder: Path, seed: int) -> None:
    """Build a loader, take an epoch and a bit of it, leave a second stream open, and close it."""
    import torch

    from fastseg.pipelines import DataConfig, build_loader

    name = variant.dataset.split("-")[0]
    config = DataConfig(
        dataset=variant.dataset,
        root=folder / name,
        packed=folder / "packed" / name if variant.packed else None,
        size=32 if name == "mcubes" else 64,
        batch_size=2,
        eval_batch_size=2,
        workers=2,
        loader=variant.loader,  # type: ignore[arg-type]
        **variant.settings,
    )
    loader = build_loader(config, train=variant.train, seed=seed)
    steps = loader.steps_per_epoch + 1 if variant.train else loader.steps_per_epoch
    for batch in loader.batches(seed, seed + steps) if variant.train else loader.batches():
        if not torch.isfinite(batch.images).all() or batch.labels.max() > 255:
            raise ValueError(f"strange values in {batch.sample_ids}")
    next(loader.batches())
    loader.close()


def spawn(names: Sequence[str], folder: Path, runs: int, timeout: float) -> tuple[int, str]:
    """``runs`` runs of each variant in a process of their own: exit code, and how far it came."""
    path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    module = "tests.support.loader_stress"
    command = [sys.executable, "-X", "faulthandler", "-m", module, "--child", str(folder)]
    done = subprocess.run(
        [*command, "--runs", str(runs), "--variants", *names],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="of each variant")
    parser.add_argument("--per-process", type=int, default=5, help="runs until a new process")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        for name in options.variants:
            for number in range(options.runs):
                print(f"{name}: run {number}", flush=True)
                run_once(VARIANTS[name], options.child, number)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="stress-"))
    crashes = 0
    try:
        write_data(folder)
        for name in options.variants:
            good = bad = 0
            while good + bad < options.runs:
                runs = min(options.per_process, options.runs - good - bad)
                code, said = spawn([name], folder, runs, timeout=120 + 30 * runs)
                if code == 0:
                    good += runs
                else:
                    bad += runs
                    print(f"{name}: exit code {code}\n{said}", flush=True)
            crashes += bad
            print(f"{name}: {good} runs, {bad} in processes that crashed", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
