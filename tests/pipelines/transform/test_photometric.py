"""The published augmentation: each step against torch, both loaders against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastseg.pipelines import DataConfig, Loader, get_dataset
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.loaders.samples import SampleReader
from fastseg.pipelines.native import build as native
from fastseg.pipelines.transform import photometric as augment
from fastseg.pipelines.transform.geometry import draw, train_geometry
from fastseg.pipelines.transform.photometric import (
    Looks,
    blur,
    compiled,
    draw_looks,
    gaussian,
    jitter,
)
from tests.support.loader_cases import LOADERS, needs_dali

needs_compiler = pytest.mark.skipif(compiled() is None, reason=f"no C: {native.library()[1]}")
FACTORS = [(1.0, 1.0, 1.0), (0.5, 1.5, 0.5), (1.5, 0.5, 1.5), (1.23, 0.77, 1.31), (0.0, 0.3, 0.0)]
PUBLISHED = {"jitter": 0.2, "blur": 0.2}


def photo(dtype: str = "uint8", height: int = 37, width: int = 41) -> np.ndarray:
    top = np.iinfo(dtype).max
    g = np.random.default_rng(0)
    ramp = np.linspace(0, top, width) * np.linspace(0.2, 1, height)[:, None]
    noise = g.normal(0, top / 12, (3, height, width))
    return (ramp * np.array([1, 0.7, 0.4])[:, None, None] + noise).clip(0, top).astype(dtype)


# --- against the operators that the published code calls, written down in torch -------------------


def torchvision_jitter(image: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
    """adjust_brightness, adjust_contrast and adjust_saturation of torchvision, on uint8."""

    def blend(first: torch.Tensor, second: torch.Tensor | float, ratio: float) -> torch.Tensor:
        return (ratio * first + (1.0 - ratio) * second).clamp(0, 255).to(torch.uint8)

    def grey(x: torch.Tensor) -> torch.Tensor:
        r, g, b = x.unbind(0)
        return (0.2989 * r + 0.587 * g + 0.114 * b).to(torch.uint8)[None]

    x = torch.from_numpy(image.copy())
    x = blend(x, torch.zeros_like(x), factors[0])
    x = blend(x, grey(x).float().mean(), factors[1])
    return blend(x, grey(x), factors[2]).numpy()


@pytest.mark.parametrize("factors", FACTORS)
def test_jitter_is_torchvisions(factors: tuple[float, float, float]) -> None:
    image = photo()
    np.testing.assert_array_equal(jitter(image, factors), torchvision_jitter(image, factors))


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.0])
def test_blur_is_a_convolution(sigma: float) -> None:
    image = photo()
    for window in (3, 5, 7):
        line = torch.exp(-0.5 * ((torch.arange(window).double() - window // 2) / sigma) ** 2)
        kernel = torch.outer(line, line) / line.sum() ** 2
        pad = [window // 2] * 4
        x = F.pad(torch.from_numpy(image)[:, None].double(), pad, mode="reflect")
        exact = F.conv2d(x, kernel[None, None])[:, 0].numpy()
        assert np.abs(blur(image, sigma, window) - exact).max() < 0.5 + 1e-4


def test_windows_of_opencv() -> None:
    assert [len(gaussian(sigma, 0)) for sigma in (0.1, 0.3, 0.5, 0.8, 1.0)] == [3, 3, 5, 7, 7]
    assert gaussian(0.8, 3) == pytest.approx([0.2390, 0.5220, 0.2390], abs=1e-4)


def test_no_change_is_no_change() -> None:
    image = photo()
    np.testing.assert_array_equal(jitter(image, (1, 1, 1)), image)
    np.testing.assert_array_equal(blur(np.full_like(image, 77), 0.8, 3), 77)
    grey = jitter(image, (1, 1, 0))
    assert (grey == grey[:1]).all()
    assert (jitter(image, (0, 1, 1)) == 0).all()


@needs_compiler
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(37, 41), (2, 5), (1, 1), (5, 1)])
def test_c_equals_numpy(dtype: str, shape: tuple[int, int]) -> None:
    image = photo(dtype, *shape)
    packed = np.ascontiguousarray(image.transpose(1, 2, 0)).transpose(2, 0, 1)
    for source in (image, packed, packed[:, :, :3], image[::-1][::-1]):
        for factors in FACTORS:
            expected = jitter(source.copy(), factors)
            np.testing.assert_array_equal(jitter(source, factors, compiled()), expected)
        for sigma, window in ((0.8, 3), (0.4, 0), (1.0, 0)):
            expected = blur(source.copy(), sigma, window)
            np.testing.assert_array_equal(blur(source, sigma, window, compiled()), expected)


@needs_compiler
def test_wrong_machine_code_is_not_used() -> None:
    functions = compiled()
    assert augment._agrees(functions)
    assert not augment._agrees({**functions, "saturate_uint16": lambda *_: None})
    assert not augment._agrees({**functions, "blur_uint8": lambda *_: None})


# --- draws ---------------------------------------------------------------------------------------


def test_draws_have_the_published_law() -> None:
    config = DataConfig(**PUBLISHED)
    looks = [draw_looks(0, 0, index, config) for index in range(4000)]
    jittered = np.array([look.jitter for look in looks if look.jitter])
    assert abs(len(jittered) / 4000 - 0.2) < 0.02
    assert abs(sum(look.blur is not None for look in looks) / 4000 - 0.2) < 0.02
    both = sum(look.blur is not None and look.jitter is not None for look in looks)
    assert abs(both / 4000 - 0.04) < 0.01
    assert 0.5 <= jittered.min() < 0.51
    assert 1.49 < jittered.max() <= 1.5
    assert np.abs(jittered.mean(0) - 1).max() < 0.04
    assert np.abs(np.corrcoef(jittered.T) - np.eye(3)).max() < 0.12
    assert {look.blur for look in looks} == {None, float(np.float32(0.8))}


def test_draws_follow_their_key_and_survive_float32() -> None:
    config = DataConfig(jitter=1, blur=1, blur_sigma=(0.0, 1.0))
    looks = draw_looks(1, 2, 3, config)
    assert looks == draw_looks(1, 2, 3, config) == Looks.from_vector(looks.vector())
    assert Looks() == Looks.from_vector(Looks().vector())
    assert looks not in [draw_looks(*key, config) for key in ((9, 2, 3), (1, 9, 3), (1, 2, 9))]


# --- through the loaders -------------------------------------------------------------------------


@pytest.fixture
def config(deliver_tree: Path) -> DataConfig:
    return DataConfig(
        root=deliver_tree, size=64, batch_size=4, workers=0, loader="torch", jitter=0.5, blur=0.5
    )


def test_the_order_is_the_published_one(
    config: DataConfig, open_loader: Callable[..., Loader]
) -> None:
    # jitter, flip, blur, rescale, crop: done step by step on whole images
    files = list_split(get_dataset("deliver"), config.root, "train")
    reader = SampleReader(files)
    seen = set()
    for batch in open_loader(config, train=True, seed=5).batches(0, 4):
        for position, sample_id in enumerate(batch.sample_ids):
            index = files.sample_ids.index(sample_id)
            looks = draw_looks(5, 0, index, config)
            draws = draw(5, 0, index, config.scale, config.flip)
            image = reader.read(index).images[0]
            if looks.jitter:
                image = torchvision_jitter(image, looks.jitter)
            image = image[:, :, ::-1].copy() if draws.flip else image
            if looks.blur:
                image = blur(image, looks.blur, 3)
            rows, cols = (
                getattr(train_geometry(replace(draws, flip=False), 64, 64, 64), axis)
                for axis in ("rows", "cols")
            )
            scaled = F.interpolate(
                torch.tensor(image)[None].float(), (rows.scaled, cols.scaled), mode="bilinear"
            )[0].round()
            window = scaled[:, rows.offset :, cols.offset :][:, : rows.length, : cols.length]
            crop = batch.codes[0][position][:, : rows.length, : cols.length].float()
            assert (crop - window).abs().max() <= 1
            seen.add((looks.jitter is not None, looks.blur is not None))
    assert len(seen) == 4


@pytest.mark.parametrize("name", LOADERS)
def test_only_cameras_change(
    config: DataConfig, open_loader: Callable[..., Loader], name: str
) -> None:
    config = replace(config, loader=name, jitter=1, blur=1)
    changed = next(open_loader(config, train=True).batches())
    plain = next(open_loader(replace(config, jitter=0, blur=0), train=True).batches())
    assert (changed.images[0] != plain.images[0]).float().mean() > 0.3
    assert torch.equal(changed.images[1:], plain.images[1:])
    assert torch.equal(changed.labels, plain.labels)
    evaluated, untouched = (
        next(open_loader(c, train=False).batches())
        for c in (config, replace(config, jitter=0, blur=0))
    )
    assert torch.equal(evaluated.images, untouched.images)


@needs_dali
@pytest.mark.parametrize("workers", [0, 2])
def test_both_loaders_apply_the_same_draws(
    config: DataConfig, open_loader: Callable[..., Loader], workers: int
) -> None:
    ours, theirs = (
        open_loader(replace(config, loader=name, workers=workers), train=True, seed=4).batches(0, 8)
        for name in ("torch", "dali")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.sample_ids == b.sample_ids
        assert torch.equal(a.labels, b.labels)
        # jitter and blur come before the bilinear resize, and are equal
        levels = (a.codes[0].int() - b.codes[0].int()).abs()
        assert levels.max() <= 1
        assert (levels > 0).float().mean() < 0.01


@needs_dali
def test_without_rescaling_both_loaders_agree_exactly(
    config: DataConfig, open_loader: Callable[..., Loader]
) -> None:
    config = replace(config, scale=(1, 1))
    ours, theirs = (
        list(open_loader(replace(config, loader=name), train=True).batches(0, 4))
        for name in ("torch", "dali")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.images, b.images)


@needs_dali
@pytest.mark.parametrize("sigma", [(0.8, 0.8), (0.0, 1.0)])
def test_blur_of_the_crop_as_in_mcubes(
    mcubes_tree: Path, open_loader: Callable[..., Loader], sigma: tuple[float, float]
) -> None:
    config = DataConfig(
        dataset="mcubes", root=mcubes_tree, size=32, batch_size=4, workers=0, loader="torch"
    )
    blurred = replace(config, blur=0.5, blur_sigma=sigma, blur_window=0, blur_place="crop")
    plain, ours, theirs = (
        next(open_loader(c, train=True, seed=1).batches())
        for c in (config, blurred, replace(blurred, loader="dali"))
    )
    looks = [draw_looks(1, 0, index, blurred) for index in range(4)]
    assert 0 < sum(look.blur is not None for look in looks) < 4
    files = list_split(get_dataset("mcubes"), mcubes_tree, "train")
    for m, modality in enumerate(files.modalities):
        for position, sample_id in enumerate(plain.sample_ids):
            sigma_here = looks[files.sample_ids.index(sample_id)].blur
            crop, got = plain.codes[m][position].numpy(), ours.codes[m][position].numpy()
            if modality.sensor == "camera" and sigma_here is not None:
                np.testing.assert_array_equal(got, blur(crop, sigma_here, 0))
            else:
                np.testing.assert_array_equal(got, crop)
        step = modality.scale if modality.decoder == "image" else 1e-4
        std = torch.tensor(modality.std).reshape(3, 1, 1)
        assert ((ours.images[m] - theirs.images[m]).abs() * std).max() < 2.1 * step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jitter": 1.5}, "jitter must be a probability from 0 to 1, got 1.5"),
        ({"blur": -0.1}, "blur must be a probability"),
        ({"jitter_range": (1.5, 0.5)}, "jitter_range must be 0 <= low <= high, got 1.5 0.5"),
        ({"blur_window": 4}, "blur_window must be 0 or odd from 3 on, got 4"),
    ],
)
def test_senseless_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**change)
