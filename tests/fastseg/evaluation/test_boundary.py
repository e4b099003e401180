"""Boundary IoU against a slow definition, mask by mask and pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from fastseg.evaluation.scoring.boundary import boundary_counts, boundary_width, edges


def slow_boundary(mask, reach):
    """Pixels of a mask from which a square of reach pixels around leaves it or the image."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        inside = y >= reach and x >= reach and y + reach < height and x + reach < width
        window = mask[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        found[y, x] = not (inside and window.all())
    return found


def slow_counts(prediction, label, classes, reach):
    counted = label < classes
    rows = []
    for k in range(classes):
        wanted = slow_boundary((label == k) & counted, reach)
        found = slow_boundary((prediction == k) & counted, reach)
        rows.append([(wanted & found).sum(), (wanted | found).sum()])
    return rows


@pytest.mark.parametrize("size", [(40, 56), (150, 60)])
def test_counts_are_those_of_the_definition(size):
    random = np.random.default_rng(0)
    coarse = random.integers(0, 4, (2, 2, size[0] // 10, size[1] // 4))
    maps = coarse.repeat(10, axis=2).repeat(4, axis=3)
    noise = random.random(maps.shape) < 0.01
    maps = np.where(noise, random.integers(0, 4, maps.shape), maps)
    prediction, label = maps
    label = np.where(random.random(label.shape) < 0.02, 255, label)
    reach = boundary_width(*label.shape[1:])
    assert reach in (1, 3)
    found = boundary_counts(torch.from_numpy(prediction), torch.from_numpy(label), 4)
    wanted = [slow_counts(p, y, 4, reach) for p, y in zip(prediction, label, strict=True)]
    assert found.tolist() == np.array(wanted).tolist()
    assert (found[..., 0] > 0).any()


def test_the_width_is_that_of_the_paper():
    assert boundary_width(1024, 1024) == round(0.02 * math.hypot(1024, 1024)) == 29
    assert boundary_width(8, 8) == 1


def test_a_mask_that_fills_the_image_ends_with_it():
    found = edges(torch.zeros(1, 7, 9, dtype=torch.int16), 2)
    assert int((~found).sum()) == 3 * 5
    assert not found[0, 2:5, 2:7].any()


def test_an_equal_map_has_all_and_a_wrong_one_nothing():
    label = torch.randint(0, 3, (1, 32, 32), generator=torch.Generator().manual_seed(0))
    both, either = boundary_counts(label, label, 3).unbind(-1)
    assert torch.equal(both, either)
    assert int(both.min()) > 0
    both, either = boundary_counts((label + 1) % 3, label, 3).unbind(-1)
    assert int(both.sum()) == 0
    assert int(either.min()) > 0
