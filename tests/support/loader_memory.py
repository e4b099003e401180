"""Memory of the loaders' processes over many epochs.

``python -m tests.support.loader_memory --epochs 200`` prints, per variant, what a process and its
children hold after 5 epochs and how much more after all of them; the tests look at 50.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from fastseg.pipelines import DataConfig, Loader, build_loader

_SETTLED = 5
"""Epochs after which every buffer has its size."""
VARIANTS = {
    "torch, processes": {"loader": "torch", "workers": 2},
    "torch, threads": {"loader": "torch", "workers": 2, "cache": True},
    "torch, packed": {"loader": "torch", "workers": 2, "packed_auto": True},
    "dali": {"loader": "dali", "workers": 2},
    "dali, packed": {"loader": "dali", "workers": 2, "packed_auto": True},
}


def held_mib() -> float:
    """Memory that this process and its children hold, what they share counted once.

    Mapped files do not count: the system takes their pages back as it likes.
    """
    pids = {os.getpid()}
    for task in Path("/proc/self/task").iterdir():
        pids |= {int(pid) for pid in (task / "children").read_text().split()}
    kilobytes = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                kilobytes += int(line.split()[1])
    return kilobytes / 1024


def growth(run_epoch: Callable[[], None], epochs: int) -> tuple[float, float]:
    """MiB after a few epochs, and how many more after all."""
    for _ in range(_SETTLED):
        run_epoch()
    gc.collect()
    before = held_mib()
    for _ in range(epochs - _SETTLED):
        run_epoch()
    gc.collect()
    return before, held_mib() - before


def training(loader: Loader) -> Callable[[], None]:
    """One epoch of an endless stream per call."""
    stream = loader.batches()

    def run() -> None:
        for batch in islice(stream, loader.steps_per_epoch):
            assert batch.images.isfinite().all()

    return run


def evaluation(loader: Loader) -> Callable[[], None]:
    """One pass, and so one stream, per call."""

    def run() -> None:
        for batch in loader.batches():
            assert batch.images.isfinite().all()

    return run


def measure(root: Path, name: str, epochs: int, *, leak: bool = False) -> tuple[float, float]:
    """`growth` of ``training, <variant>`` or ``evaluation, <variant>`` on the tree at ``root``."""
    what, _, variant = name.partition(", ")
    # DALI's buffers have the size of the largest input so far; with one scale that is soon met
    settings = {"packed_auto": False, "jitter": 0.5, "blur": 0.5, "scale": (1, 1)}
    sizes = {"size": 64, "batch_size": 2, "eval_batch_size": 2}
    config = DataConfig(root=root, train_split="val", **sizes, **settings | VARIANTS[variant])
    loader = build_loader(config, train=what == "training")
    assert ("packed" in loader.reason) == config.packed_auto
    run = training(loader) if what == "training" else evaluation(loader)
    kept = []

    def run_and_keep() -> None:
        run()
        kept.append(torch.ones(4, 2, 3, 64, 64))  # as large as the images of a batch

    try:
        return growth(run_and_keep if leak else run, epochs)
    finally:
        loader.close()


def main() -> None:
    from fastseg import data
    from tests.support import dataset_trees as trees

    names = [f"{what}, {variant}" for what in ("training", "evaluation") for variant in VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--variants", nargs="*", default=names, choices=names)
    parser.add_argument("--leak", action="store_true", help="keep one batch per epoch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        root = trees.write_deliver(Path(folder))
        data.main(["pack", "--root", str(root), "--splits", "val"])
        for name in options.variants:
            before, more = measure(root, name, options.epochs, leak=options.leak)
            print(
                f"{name}: {before:.1f} MiB, {more:+.1f} after {options.epochs} epochs", flush=True
            )


if __name__ == "__main__":
    main()
