"""Scales, mirror images and windows, on functions whose answers are known."""

import pytest
import torch
from torch.nn.functional import interpolate

from fastseg import kernels
from fastseg.evaluation.scoring.views import ViewsConfig, in_windows, predictions_of, scaled

SIZE = (64, 96)


def images(batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, batch, 3, *SIZE, generator=generator)


def logits_of(pictures):
    """Two cases: at stride 4, the mean over all sensors and over one; from pixels alone."""
    for rows in ([0, 1, 2], [1]):
        mean = pictures[rows].mean(0)
        classes = torch.cat([mean, -mean, mean.roll(1, dims=1) * 0.5], dim=1)
        yield interpolate(classes, scale_factor=0.25, mode="area")


def test_the_whole_image_is_what_is_scored_without_options():
    pictures = images()
    plain = [kernels.upsample_argmax(logits, SIZE) for logits in logits_of(pictures)]
    found = list(predictions_of(logits_of, pictures, SIZE, ViewsConfig()))
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    # one window that holds everything changes nothing but the rounding
    found = list(predictions_of(logits_of, pictures, SIZE, ViewsConfig(window=96)))
    assert all((a == b).float().mean() > 0.999 for a, b in zip(plain, found, strict=True))


def test_probabilities_are_summed_over_scales_and_mirrors():
    pictures, views = images(), ViewsConfig(scales=(0.5, 1.0, 1.25), flip=True)
    totals = [0, 0]
    for side in ((32, 64), (64, 96), (96, 128)):  # rounded up to multiples of 32
        for mirror in (False, True):
            view = interpolate(
                pictures.flatten(0, 1), size=side, mode="bilinear", align_corners=True
            ).view(3, 2, 3, *side)
            view = view.flip(-1) if mirror else view
            for case, logits in enumerate(logits_of(view)):
                logits = logits.flip(-1) if mirror else logits
                full = interpolate(logits, size=SIZE, mode="bilinear", align_corners=False)
                totals[case] = totals[case] + full.softmax(1)
    found = list(predictions_of(logits_of, pictures, SIZE, views))
    for total, classes in zip(totals, found, strict=True):
        assert classes.dtype == torch.uint8
        assert (total.argmax(1) == classes).float().mean() > 0.999


def test_the_mirror_image_of_an_image_has_the_mirror_image_of_its_classes():
    pictures, views = images(), ViewsConfig(flip=True)
    one = next(predictions_of(logits_of, pictures, SIZE, views))
    other = next(predictions_of(logits_of, pictures.flip(-1), SIZE, views))
    assert (one.flip(-1) == other).float().mean() > 0.999


@pytest.mark.parametrize("step", [32, 24, 20])
def test_windows_cover_the_image_and_are_averaged(step):
    seen = []

    def watched(pictures):
        seen.append(tuple(pictures.shape[-2:]))
        yield pictures.mean(0)

    pictures = images()
    (found,) = in_windows(watched, pictures, 32, step)
    # the mean over windows of what each says of its pixels is what one look says
    assert torch.allclose(found, pictures.mean(0), atol=1e-6)
    assert set(seen) == {(32, 32)}
    rows = {32: 2, 24: 3, 20: 3}[step]
    columns = {32: 3, 24: 4, 20: 5}[step]
    assert len(seen) == rows * columns


def test_a_window_larger_than_one_side_is_as_long_as_the_image():
    (found, _) = in_windows(logits_of, images(), 96, 72)
    assert found.shape == (2, 9, *SIZE)


def test_samples_play_no_part_for_each_other():
    pictures = images(batch=3)
    views = ViewsConfig(scales=(0.5, 1.5), flip=True, window=64, stride=32)
    together = next(predictions_of(logits_of, pictures, SIZE, views))
    alone = [next(predictions_of(logits_of, p, SIZE, views)) for p in pictures.split(1, dim=1)]
    assert (together == torch.cat(alone)).float().mean() > 0.999


def test_sides_are_rounded_up():
    assert scaled(images(), 0.75).shape[-2:] == (64, 96)  # 48 and 72
    assert scaled(images(), 1.0) is not None
    assert scaled(images(), 0.5).shape[-2:] == (32, 64)
