"""`Predictor` from Python: arrays of any sensors in, a label map of their size out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.config.presets.registry import get_preset
from fastseg.config.sections import ModelConfig
from fastseg.config.serialise import read_config
from fastseg.engine.context import RunContext
from fastseg.errors import CheckpointError, ConfigError
from fastseg.pipelines import DataError, build_loader
from fastseg.pipelines.decode.by_spec import read_pixels
from fastseg.prediction import Predictor
from fastseg.prediction.samples import of_split

SENSORS = ("img", "depth", "event", "lidar")


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor.open(run, "teacher", device="cpu")


@pytest.fixture(scope="module")
def arrays(scenes):
    """What PIL gives of the files of a sample."""
    path = sorted((scenes / "img").glob("*/val/*/*_rgb_front.png"))[0]
    frame = path.relative_to(scenes / "img").as_posix().removesuffix("_rgb_front.png")
    places = (("img", "rgb"), ("hha", "depth"), ("event", "event"), ("lidar", "lidar"))
    return {
        name: np.asarray(Image.open(scenes / folder / f"{frame}_{tag}_front.png"))
        for name, (folder, tag) in zip(SENSORS, places, strict=True)
    }


def test_arrays_give_a_label_map_and_probabilities(predictor, arrays):
    found = predictor(arrays, probabilities=True)
    assert (found.labels.shape, found.labels.dtype) == ((64, 64), np.uint8)
    assert found.sensors == SENSORS
    assert found.probabilities.dtype == np.float16
    assert (found.probabilities.argmax(0) == found.labels).mean() > 0.99
    assert predictor(arrays).probabilities is None


def test_a_missing_sensor_is_left_out_however_it_is_said(predictor, arrays):
    some = {name: arrays[name] for name in ("lidar", "img")}
    found = predictor(some)
    assert found.sensors == ("img", "lidar")
    assert (found.labels == predictor({**some, "depth": None, "event": None}).labels).all()
    assert (found.labels != predictor(arrays).labels).any()


@pytest.mark.parametrize("size", [64, 96])
def test_the_network_gets_what_evaluation_feeds(run, scenes, size):
    predictor = Predictor.open(run, size=size, device="cpu")
    data = replace(read_config(run / "config.json").data, eval_size=size, eval_batch_size=1)
    context = predictor.context
    samples = of_split(context.spec, scenes, "val", context.modalities)
    loader = build_loader(data, train=False)
    try:
        for sample, batch in zip(samples, loader.batches(), strict=True):
            pixels = {
                m.name: read_pixels(sample.files[m.name], context.spec, m)
                for m in context.modalities
            }
            prepared = predictor.prepare(pixels)
            codes = [torch.from_numpy(code)[None] for code in prepared.codes]
            assert batch.sample_ids == (sample.name,)
            assert torch.equal(predictor._normaliser(prepared.positions)(codes), batch.images)
    finally:
        loader.close()


@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_any_size_comes_back(run, arrays, fit):
    predictor = Predictor.open(run, fit=fit, device="cpu")
    for height, width in ((333, 500), (1, 40), (65, 33)):
        images = {
            name: np.asarray(Image.fromarray(array).resize((width, height)))
            for name, array in arrays.items()
        }
        assert predictor(images).labels.shape == (height, width)


def test_padding_is_no_measurement_and_is_cut_off(run, arrays):
    predictor = Predictor.open(run, fit="pad", device="cpu")
    cut = {name: array[:40, :50] for name, array in arrays.items()}
    pixels = {name: np.atleast_3d(array) for name, array in cut.items()}
    assert all(array.shape[2] == 3 for array in pixels.values())
    prepared = predictor.prepare(pixels)
    for (name, array), code in zip(pixels.items(), prepared.codes, strict=True):
        assert code.shape == (3, 64, 64), name
        assert (code[:, :40, :50] == array.transpose(2, 0, 1)).all()
        assert not code[:, 40:].any()
        assert not code[:, :, 50:].any()


def test_events_may_have_another_size(predictor, arrays):
    small = np.asarray(Image.fromarray(arrays["event"]).resize((32, 32)))
    assert predictor({**arrays, "event": small}).labels.shape == (64, 64)


def test_grey_and_alpha_are_read_as_from_files(predictor, arrays):
    grey = arrays["lidar"][..., 0]
    three = predictor({**arrays, "lidar": np.dstack([grey] * 3)}).labels
    assert (predictor({**arrays, "lidar": grey}).labels == three).all()
    alpha = np.full_like(grey, 7)
    assert (predictor({**arrays, "lidar": np.dstack([grey, alpha])}).labels == three).all()
    assert (predictor({**arrays, "lidar": np.dstack([grey] * 3 + [alpha])}).labels == three).all()


@pytest.mark.fault("F31")
def test_bad_arrays_are_refused_by_name(predictor, arrays):
    image = arrays["img"]
    for wrong, told in (
        ({}, "no sensor is there"),
        ({"img": None}, "no sensor is there"),
        ({"lidr": image}, "did you mean 'lidar'?"),
        ({"img": image.astype(np.float32)}, "the image of img is of type float32; expected uint8"),
        ({"img": image.astype(np.uint16)}, "expected uint8"),
        ({"img": image[None]}, "has shape [1, 64, 64, 3]"),
        ({"img": image[:0]}, "has shape [0, 64, 3]"),
        ({"img": np.zeros((64, 64, 5), np.uint8)}, "[H, W, 4]"),
        ({**arrays, "depth": image[:40]}, "the image of depth is 64 x 40 pixels"),
    ):
        with pytest.raises(DataError) as error:
            predictor(wrong)
        assert told in str(error.value)


def test_bad_settings_are_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match="did you mean 'student'"):
        Predictor.open(run, "studet")
    with pytest.raises(CheckpointError, match="no weights at"):
        Predictor.open(tmp_path)
    with pytest.raises(ConfigError, match="unknown sensor 'rgb'"):
        Predictor.open(run, resize_to="rgb")
    with pytest.raises(ValueError, match="size must be a multiple of 32"):
        Predictor.open(run, size=100)


def test_columns_that_a_data_set_leaves_out_have_no_class(tmp_path):
    base = get_preset("debug")
    config = replace(
        base,
        device="cpu",
        data=replace(base.data, dataset="mcubes", size=64),
        model=ModelConfig(backbone="mit_nano", embed_dim=16),
    )
    context = RunContext(config)
    predictor = Predictor(context, context.new_network(0).eval())
    random = np.random.default_rng(0)
    sample = {
        "image": random.integers(0, 255, (64, 256, 3), np.uint8),
        "aolp": random.random((64, 256, 2)).astype(np.float32),
        "dolp": random.random((64, 256)).astype(np.float32),
        "nir": random.integers(0, 65535, (64, 256)).astype(np.int32),
    }
    found = predictor(sample, probabilities=True)
    assert found.labels.shape == (64, 256)
    assert (found.labels[:, :192] == 255).all()
    assert (found.labels[:, 192:] < 20).all()
    assert not found.probabilities[:, :, :192].any()
    for name, array, told in (
        ("aolp", sample["dolp"], "aolp has 1 channels; expected at least 2"),
        ("dolp", np.full((64, 256), np.nan), "not finite"),
        ("dolp", np.full((64, 256), "a"), "expected numbers"),
        ("nir", sample["nir"] - 40000, "expected uint8 or uint16"),
        ("image", sample["image"][:, :192], "leaves out the first 192 columns"),
    ):
        with pytest.raises(DataError) as error:
            predictor({name: array})
        assert told in str(error.value)
