"""The input of CLIP against the processor of transformers, which works with PIL."""

import numpy as np
import pytest
import torch
import transformers

from fastseg.errors import ConfigError
from fastseg.vision_language.preprocessing import STD, Preprocessing, read_preprocessing

SQUARE = {"height": 32, "width": 32}
RULES = {
    "clip": {"size": {"shortest_edge": 32}, "crop_size": SQUARE},
    "crop-of-larger": {"size": {"shortest_edge": 40}, "crop_size": SQUARE},
    "stretched": {"size": SQUARE, "crop_size": SQUARE, "do_center_crop": False},
    "bilinear": {"size": {"shortest_edge": 32}, "crop_size": SQUARE, "resample": 2},
    "own-statistics": {
        "size": {"shortest_edge": 32},
        "crop_size": SQUARE,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    },
}


def noise(*shape):
    # far from black and white: nothing is clipped between the two passes, whose order is the
    # business of PIL's version
    return np.random.default_rng(sum(shape)).integers(80, 176, shape, np.uint8)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("size", [(50, 71), (90, 37), (32, 32), (20, 24)])
def test_inputs_are_those_of_transformers(rules, size):
    pictures = noise(2, *size, 3)
    theirs = transformers.CLIPImageProcessorPil(**rules)
    wanted = theirs(images=list(pictures), return_tensors="pt")["pixel_values"]
    ours = read_preprocessing(theirs.to_dict(), 32, "it")
    got = ours(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    assert got.dtype == torch.float32
    levels = (got - wanted).abs() * torch.tensor(ours.std).view(3, 1, 1) * 255
    assert levels.max() < 2.01
    assert levels.mean() < 0.4


def test_bicubic_values_stay_within_256_levels():
    edge = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    edge[..., 10:] = 255
    levels = Preprocessing(32, (32, 32), mean=(0, 0, 0), std=(1, 1, 1))(edge) * 255
    assert (levels.min(), levels.max()) == (0, 255)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)


def test_floats_from_0_to_1_are_levels_over_255():
    pictures = torch.from_numpy(noise(1, 40, 60, 3)).permute(0, 3, 1, 2)
    prepare = Preprocessing(32, (32, 32))
    assert torch.equal(prepare(pictures / 255), prepare(pictures))


def test_a_file_without_rules_is_clip_s():
    assert read_preprocessing({}, 224, "it") == Preprocessing(224, (224, 224))
    assert read_preprocessing({}, 224, "it").std == STD


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resample": 0}, "resample 2 or 3"),
        ({"do_normalize": False}, "do_normalize"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"image_std": [1, 0, 1]}, "image_std"),
        ({"size": {"longest_edge": 32}}, "height"),
        ({"crop_size": 48}, r"crops to \(48, 48\).*takes 32 x 32"),
        ({"size": {"shortest_edge": 16}}, "resizes to 16"),
        ({"do_center_crop": False}, "crops to 32"),
    ],
)
def test_other_rules_are_refused(settings, said):
    with pytest.raises(ConfigError, match=rf"(?s)rules\.json.*{said}"):
        read_preprocessing(settings, 32, "rules.json")


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        (torch.zeros(3, 8, 8), r"expected pictures \[N, 3, H, W\], got \(3, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), r"got \(1, 4, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8), r"got \(1, 3, 0, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "uint8, or in float.*int64"),
    ],
)
def test_other_pictures_are_refused(pictures, said):
    with pytest.raises(ValueError, match=said):
        Preprocessing(32, (32, 32))(pictures)
