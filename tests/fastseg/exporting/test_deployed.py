"""The module that is exported computes what evaluation computes, from arrays as decoded."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fastseg import kernels
from fastseg.errors import ConfigError
from fastseg.exporting.deployed import Deployed, without_rounding_up
from fastseg.exporting.formats import run_module
from fastseg.exporting.sensors import as_loaded, as_stored, random_images, stored_channels
from fastseg.models import SegFormer, Segmenter, SelectedPair, build_segmenter
from fastseg.pipelines import get_dataset
from fastseg.pipelines.transform.normalise import Normaliser

CLASSES, IGNORED = 5, 255
MASKS = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 1]], bool)


def sensors(name, *names):
    return get_dataset(name).select(names)


# codes of 8 bits, of 16, and floats whose two channels are three to the network
MIXED = sensors("mcubes", "image", "aolp", "nir")


def network(**options):
    torch.manual_seed(0)
    return SegFormer("mit_nano", CLASSES, 16, **options).eval()


def pair():
    torch.manual_seed(1)
    return SelectedPair(network(), SegFormer("mit_nano", CLASSES, 16), 1.0, "full").eval()


def crossed(backbone):
    torch.manual_seed(0)
    return build_segmenter(backbone, CLASSES, [m.name for m in MIXED]).eval()


MAKERS = {
    "mean": network,
    "mff": lambda: network(fusion="mff"),
    "an encoder each": lambda: network(own_encoders=[m.name for m in MIXED]),
    "selected pair": pair,
    "cmnext": lambda: crossed("cmnext_nano"),
}


@torch.no_grad()
def evaluated(model, images, missing):
    """Logits and labels of each sample with its subset, by the parts of evaluation."""
    height, width = images["image"].shape[1:3]
    normalised = Normaliser(MIXED)([as_loaded(images[m.name], m) for m in MIXED])
    found = []
    for sample, mask in enumerate(MASKS):
        subset = np.flatnonzero(mask).tolist()
        (logits,) = model.logits_of_subsets(normalised[:, [sample]], [subset], missing)
        labels = kernels.upsample_argmax(logits, normalised.shape[-2:])
        found.append((logits, labels[:, :height, :width]))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize("missing", ["drop", "zero"])
@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS.keys())
def test_each_sample_is_segmented_by_its_own_sensors(maker, missing):
    images = random_images(MIXED, 3, 64, 96)
    logits, labels = evaluated(maker(), images, missing)
    out = run_module(Deployed(maker(), MIXED, missing, IGNORED), MIXED)(images, MASKS)
    error = (torch.from_numpy(out["logits"]) - logits).abs()
    # where candidates of a selection are as good as equal, the rounding decides
    assert (error > 1e-4 * logits.abs().max()).float().mean() <= (maker is pair) * 5e-3
    assert (torch.from_numpy(out["labels"]) == labels).float().mean() > 0.999
    assert out["labels"].dtype == np.uint8


def test_any_size_is_padded_and_cut_again():
    images = random_images(MIXED, 3, 71, 33)
    logits, labels = evaluated(network(), images, "drop")
    deployed = Deployed(network(), MIXED, "drop", IGNORED, probabilities=True)
    out = run_module(deployed, MIXED)(images, MASKS)
    assert list(out) == ["labels", "logits", "probabilities"]
    assert out["labels"].shape == (3, 71, 33)
    torch.testing.assert_close(
        torch.from_numpy(out["logits"]), logits[:, :, :18, :9], rtol=1e-4, atol=1e-4
    )
    assert (torch.from_numpy(out["labels"]) == labels).float().mean() > 0.999
    full = functional.interpolate(logits, size=(96, 64), mode="bilinear").softmax(1)
    np.testing.assert_allclose(out["probabilities"], full[:, :, :71, :33], atol=1e-4)


def test_what_a_missing_sensor_holds_makes_no_difference():
    images = random_images(MIXED, 3, 64, 64)
    others = random_images(MIXED, 3, 64, 64, seed=1)
    others["aolp"] = np.full_like(others["aolp"], np.nan)
    mixed = {
        name: np.where(MASKS[:, i, None, None, None], images[name], others[name])
        for i, name in enumerate(images)
    }
    for missing in ("drop", "zero"):
        run = run_module(Deployed(network(), MIXED, missing, IGNORED), MIXED)
        expected, found = run(images, MASKS), run(mixed, MASKS)
        assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("fusion", ["mean", "mff"])
def test_a_sample_without_any_sensor_has_no_labels_and_harms_no_other(fusion):
    images = random_images(MIXED, 3, 64, 64)
    run = run_module(Deployed(network(fusion=fusion), MIXED, "drop", IGNORED), MIXED)
    out = run(images, MASKS & [[True], [False], [True]])
    assert (out["labels"][1] == IGNORED).all()
    assert np.isfinite(out["logits"]).all()
    assert np.array_equal(out["labels"][::2], run(images, MASKS)["labels"][::2])


def test_arrays_are_as_decoded_and_come_back():
    assert [stored_channels(m) for m in MIXED] == [3, 2, 3]
    (lidar,) = sensors("muses", "lidar")
    assert (lidar.channels, stored_channels(lidar)) == ((2, 1, 0), 3)
    for modality in (*MIXED, lidar, *sensors("mcubes", "dolp")):
        shape = (1, 3, 32, 64)
        codes = np.random.default_rng(0).integers(0, 200, shape).astype(modality.dtype)
        if len(set(modality.channels)) < 3:
            codes = codes[:, list(modality.channels)]
        stored = as_stored(codes, modality)
        assert stored.shape == (1, 32, 64, stored_channels(modality))
        assert np.array_equal(as_loaded(stored, modality).numpy(), codes)


def test_convolutions_without_padding_behind_give_the_same():
    torch.manual_seed(0)
    images = torch.randn(2, 1, 3, 64, 96)
    with torch.no_grad():
        expected = network()(images).logits
        found = without_rounding_up(network())(images).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_network_that_cannot_fuse_per_sample_is_refused_with_a_remedy():
    class Plain(Segmenter):
        pass

    with pytest.raises(ConfigError, match="--missing zero"):
        Deployed(Plain(), MIXED, "drop", IGNORED)
    assert Deployed(Plain(), MIXED, "zero", IGNORED).network.frozen
