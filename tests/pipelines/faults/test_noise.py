"""The noise protocol: its parameters, and that it depends on neither batch, loader nor layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastseg.pipelines import DataConfig
from fastseg.pipelines.faults.noise import add_noise
from tests.support.loader_cases import LOADERS, Open, corrupted, evaluated


@pytest.fixture
def config(deliver_tree: Path) -> DataConfig:
    """Evaluation of the 16 training samples, one batch."""
    return DataConfig(
        root=deliver_tree,
        size=64,
        eval_batch_size=16,
        eval_split="train",
        workers=0,
        loader="torch",
    )


@pytest.mark.parametrize(
    ("level", "share", "sigma"), [("low", 0.049, 0.1), ("mid", 0.095, 0.2), ("high", 0.181, 0.5)]
)
def test_noise_has_the_published_parameters(
    config: DataConfig, open_loader: Open, level: str, share: float, sigma: float
) -> None:
    plain = evaluated(config, open_loader)
    batch = evaluated(corrupted(config, noise=level), open_loader)
    assert torch.equal(batch.labels, plain.labels)
    # events get salt and pepper only
    events = batch.images[2] != plain.images[2]
    assert events.any()
    extremes = torch.tensor([0.0, 1.0])
    assert torch.isin(batch.images[2], extremes).all()
    for m in (0, 1, 3):
        added = batch.images[m] - plain.images[m]
        # most elements differ by the normal draw alone
        middle = added.flatten().quantile(torch.tensor([0.25, 0.75]))
        assert ((middle[1] - middle[0]) / 1.349 / sigma - 1).abs() < 0.35
    g = np.random.default_rng(0)
    image = g.uniform(-1, 1, (3, 200, 200)).astype(np.float32)
    before = image.copy()
    add_noise(image, {"low": 0.05, "mid": 0.1, "high": 0.2}[level], 0, (1,))
    assert abs((image != before).mean() - share) < 0.003
    assert (image == before.min()).sum() > (image == before.max()).sum()  # pepper covers salt


@pytest.mark.parametrize("loader", LOADERS)
def test_noise_does_not_depend_on_batch_or_loader(
    config: DataConfig, open_loader: Open, loader: str
) -> None:
    config = corrupted(config, noise="mid")
    wanted = evaluated(config, open_loader)
    other = replace(config, loader=loader, eval_batch_size=3, workers=2)
    batches = list(open_loader(other, train=False).batches())
    assert torch.equal(torch.cat([b.images for b in batches], dim=1), wanted.images)
    some = corrupted(config, noise="mid", modalities=("depth",))
    plain = evaluated(corrupted(config), open_loader)
    batch = evaluated(some, open_loader)
    assert torch.equal(batch.images[[0, 2, 3]], plain.images[[0, 2, 3]])
    assert torch.equal(batch.images[1], wanted.images[1])


@pytest.mark.parametrize("loader", LOADERS)
def test_noise_keeps_the_layout(config: DataConfig, open_loader: Open, loader: str) -> None:
    config = replace(corrupted(config, noise="low"), loader=loader)
    planes = evaluated(config, open_loader).images
    packed = evaluated(replace(config, layout="channels_last"), open_loader).images
    assert planes.is_contiguous()
    assert packed.stride(2) == 1
    assert torch.equal(planes, packed)


@pytest.mark.parametrize("loader", LOADERS)
def test_what_is_missing_stays_zero_under_noise(
    config: DataConfig, open_loader: Open, loader: str
) -> None:
    gone = sorted(config.root.glob("lidar/*/train/*/*.png"))[4]
    gone.unlink()
    config = replace(corrupted(config, noise="high"), missing="zero", loader=loader)
    batch = evaluated(config, open_loader)
    place = batch.sample_ids.index(
        gone.relative_to(config.root / "lidar").as_posix().removesuffix("_lidar_front.png")
    )
    assert (batch.images[3, place] == 0).all()
    assert (batch.images[3].flatten(1).abs().sum(1) > 0).sum() == 15
