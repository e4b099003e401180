"""Loaders that the input benchmark times, compared with the published one where they read alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.input.report import AS_PUBLISHED

BATCH = 2


@dataclass(frozen=True)
class Provider:
    """Something that makes the samples of some steps when it is called."""

    name: str
    source: str
    reading: str
    output: str
    run: Callable[[int, int], None]
    close: Callable[[], None]


def open_providers(root: Path, size: int, cores: int) -> Iterator[Provider]:
    """The published loader first, then each of ours after a comparison with it."""
    from bench.rivals.published_loader import PublishedLoader
    from fastseg.pipelines import DataConfig, build_loader
    from fastseg.pipelines.loaders.dali.loader import dali_import_error

    config = DataConfig(
        dataset=AS_PUBLISHED,
        root=root,
        size=size,
        batch_size=BATCH,
        jitter=0.2,
        blur=0.2,
        workers=0 if cores == 1 else cores,
        loader="torch",
        packed_auto=False,
    )
    plan = plan_of(config)
    published = PublishedLoader(plan, config.workers)

    def run_published(start: int, stop: int) -> None:
        for _ in published.batches(start, stop):
            pass

    yield Provider("published", "png", AS_PUBLISHED, "floats", run_published, published.close)
    truth = next(iter(PublishedLoader(plan, 0).batches(0, 1)))
    on_gpu = torch.cuda.is_available()
    outputs = {"torch": ["codes", "floats"], "dali": ["device" if on_gpu else "codes"]}
    names = {"torch": "torch", "dali": "dali mixed" if on_gpu else "dali cpu"}
    kinds = ("torch",) if dali_import_error() else ("torch", "dali")
    for kind, source, reading in product(kinds, ("png", "packed"), (AS_PUBLISHED, "deliver")):
        packed = root / "packed" / "deliver" if source == "packed" else None
        own = replace(config, dataset=reading, loader=kind, packed=packed)
        for output in outputs[kind]:
            loader = build_loader(own, train=True)
            if reading == AS_PUBLISHED:
                check(next(loader.batches(0, 1)), truth, plan)
            run = runner(loader, output)
            yield Provider(names[kind], source, reading, output, run, loader.close)


def runner(loader: Any, output: str) -> Callable[[int, int], None]:
    """The function that makes the batches of some steps as ``output``."""
    from fastseg.pipelines.loaders.to_device import on_device

    def run(start: int, stop: int) -> None:
        stream = loader.batches(start, stop)
        if output == "device":
            for _ in on_device(stream, torch.device("cuda")):
                pass
            torch.cuda.synchronize()
            return
        for batch in stream:
            if output == "floats":
                # made when they are first asked for
                assert batch.images.shape[1] == batch.labels.shape[0]

    return run


def plan_of(config: Any) -> Any:
    """The plan that fastseg's loaders follow."""
    from fastseg.pipelines import get_dataset
    from fastseg.pipelines.datasets.split_files import list_split
    from fastseg.pipelines.loaders.order import TrainOrder
    from fastseg.pipelines.loaders.plan import Plan

    files = list_split(get_dataset(config.dataset), config.root, "train")
    return Plan(files, config, TrainOrder(len(files), config.batch_size, 0), 0, True)


def check(batch: Any, truth: tuple[list[torch.Tensor], torch.Tensor], plan: Any) -> None:
    """Stop if a batch is not the published one, up to a level of rounding.

    The published code flips before it blurs and rounds in another order of float32 operations;
    DALI's nearest may take neighbouring rows.
    """
    images, labels = truth
    for modality, ours, theirs in zip(plan.files.modalities, batch.images, images, strict=True):
        scale = 255 * torch.tensor(modality.std).view(3, 1, 1)
        levels = (ours.cpu() - theirs).abs() * scale
        largest, share = levels.max().item(), (levels > 1.1).float().mean().item()
        assert largest < 2.5, f"{modality.name}: a pixel differs by {largest:.1f} levels"
        assert share < 1e-3, f"{modality.name}: {share:.1%} differ by more than one level"
    differing = (batch.labels.cpu() != labels).float().mean().item()
    assert differing < 0.01, f"{differing:.1%} of the labels differ"


def left_out() -> list[str]:
    """Providers that cannot run here, and why."""
    from fastseg.pipelines.loaders.dali.loader import dali_import_error

    if problem := dali_import_error():
        return [f"- dali: not run, it cannot be used ({problem})"]
    if torch.cuda.is_available():
        return ["- dali cpu: not run, DALI uses the GPU that is there"]
    return ["- dali mixed: not run, there is no GPU"]
