"""Files of several networks, of other classes and of other sensors."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fastseg.errors import CheckpointError
from fastseg.models import (
    SegFormer,
    SelectedPair,
    build_segmenter,
    load_weights,
    read_state_dict,
    save_weights,
)
from tests.support.small_networks import assert_same, make_model, randomise

SENSORS = ["img", "depth", "lidar"]


def prefixed(prefix, model):
    return {prefix + key: value for key, value in model.state_dict().items()}


def cross_modal(kind, sensors, seed, **options):
    network = build_segmenter(kind, 5, sensors, embed_dim=16, **options)
    return randomise(network, seed).eval()


@pytest.mark.parametrize(
    ("place", "prefix"),
    [
        ("model_state_dict", "module."),
        ("state_dict", "model."),
        ("net", "net."),
        ("ema", "module._orig_mod."),
        ("model_ema", "_orig_mod."),
        ("student", ""),
        ("a.b.c", "module.model.network."),
    ],
)
def test_any_nesting_of_containers_and_wrappers(tmp_path, place, prefix):
    source, target = make_model(seed=1), make_model(seed=2)
    content = prefixed(prefix, source)
    for name in reversed(place.split(".")):
        content = {name: content, "epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(1)}}}}
    torch.save(content, tmp_path / "last.pth.tar")
    report = load_weights(target, tmp_path / "last.pth.tar")
    assert_same(target, source)
    assert report.loaded == len(source.state_dict())
    assert "0 missing, 0 unexpected, 0 reshaped" in str(report)


@pytest.mark.parametrize("way", ["containers", "prefixes"])
def test_one_of_several_networks_is_chosen_by_name(tmp_path, way):
    teacher, student, target = (make_model(seed=seed) for seed in (1, 2, 3))
    if way == "containers":
        content = {"teacher": teacher.state_dict(), "student": {"model": student.state_dict()}}
        names = "teacher, student.model"
    else:
        content = prefixed("teacher.", teacher) | prefixed("student.module.", student)
        names = "teacher, student.module"
    torch.save(content, tmp_path / "both.pth")
    for part in (None, "robust"):
        with pytest.raises(CheckpointError, match=f"holds 2 networks: {names}") as caught:
            load_weights(target, tmp_path / "both.pth", part=part)
        assert "part=" in str(caught.value)
    report = load_weights(target, tmp_path / "both.pth", part="student")
    assert_same(target, student)
    assert report.part == names.split(", ")[1]
    load_weights(target, tmp_path / "both.pth", part="teacher")
    assert_same(target, teacher)
    assert (
        read_state_dict(tmp_path / "both.pth", part="teacher").keys() == teacher.state_dict().keys()
    )


def test_a_copy_beside_the_network_itself(tmp_path):
    network, average, target = (make_model(seed=seed) for seed in (1, 2, 3))
    torch.save(network.state_dict() | prefixed("ema.", average), tmp_path / "both.pth")
    for part, wanted in (("", network), ("ema", average)):
        load_weights(target, tmp_path / "both.pth", part=part)
        assert_same(target, wanted)


def test_one_network_under_two_names_is_one(tmp_path):
    source, target = make_model(seed=1), make_model(seed=2)
    state = source.state_dict()
    torch.save({"model": state, "state_dict": state}, tmp_path / "model.pth")
    load_weights(target, tmp_path / "model.pth")
    assert_same(target, source)


@pytest.mark.fault("F23")
def test_another_number_of_classes_has_to_be_asked_for(tmp_path):
    source, target, before = (make_model(classes=c, seed=s) for c, s in ((19, 1), (6, 2), (6, 2)))
    torch.save(source.state_dict(), tmp_path / "19.pth")
    with pytest.raises(
        CheckpointError, match="the model has 6 classes: partial=True loads all but"
    ):
        load_weights(target, tmp_path / "19.pth")
    assert_same(target, before)
    report = load_weights(target, tmp_path / "19.pth", partial=True)
    assert report.loaded == len(source.state_dict()) - 2
    assert all(name in str(report) for name in ("linear_pred.weight", "linear_pred.bias"))
    assert "2 of another shape, left as they were" in str(report)
    theirs, first = source.state_dict(), before.state_dict()
    for key, value in target.state_dict().items():
        assert torch.equal(value, (first if "linear_pred" in key else theirs)[key]), key


@pytest.mark.fault("F23")
def test_partial_loading_of_nothing_is_an_error(tmp_path):
    network = SegFormer("mit_nano", 3, 8)
    state = {key: torch.ones(3, 7, 2) for key in network.state_dict()}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="nothing was loaded"):
        load_weights(network, tmp_path / "odd.pth", partial=True)


def test_values_that_are_not_finite_are_refused_even_then(tmp_path):
    network = make_model()
    state = network.state_dict() | {"encoder.norm1.weight": torch.full((16,), torch.inf)}
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match=r"1 not finite: encoder\.norm1\.weight"):
        load_weights(network, tmp_path / "broken.pth", partial=True)


def test_counts_that_other_files_lack_and_short_floats_are_said(tmp_path):
    source, target = make_model(seed=1), make_model(seed=2)
    state = {k: v.half() for k, v in source.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "half.pth")
    report = load_weights(target, tmp_path / "half.pth")
    assert "converted from float16" in str(report)
    assert "num_batches_tracked" in str(report)
    weight = target.decoder.linear_pred.weight
    assert torch.equal(weight, source.decoder.linear_pred.weight.half().float())


def test_a_shared_encoder_becomes_that_of_each_sensor(tmp_path):
    source = make_model(seed=1)
    target = SegFormer("mit_nano", 6, 24, own_encoders=SENSORS).eval()
    save_weights(source, tmp_path / "shared.pth", "robustseg")
    report = load_weights(target, tmp_path / "shared.pth")
    assert report.loaded == len(target.state_dict())
    assert "copy of the shared one" in str(report)
    images = torch.randn(3, 1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(target(images).logits, source(images).logits)


def test_a_new_sensor_starts_from_the_encoder_of_another(tmp_path):
    source = randomise(SegFormer("mit_nano", 6, 24, own_encoders=SENSORS), 1)
    target = SegFormer("mit_nano", 6, 24, own_encoders=["depth", "radar"])
    save_weights(source, tmp_path / "own.pth")
    with pytest.raises(CheckpointError, match=r"missing: encoders\.radar\..*\n.*unexpected: enc"):
        load_weights(target, tmp_path / "own.pth")
    report = load_weights(target, tmp_path / "own.pth", partial=True)
    assert "the encoder of radar is a copy of that of img" in str(report)
    mine, theirs = target.encoders.state_dict(), source.encoders.state_dict()
    name = "block1.0.attn.q.weight"
    assert torch.equal(mine[f"depth.{name}"], theirs[f"depth.{name}"])
    assert torch.equal(mine[f"radar.{name}"], theirs[f"img.{name}"])
    shared = make_model()
    with pytest.raises(CheckpointError, match="one for each of img, depth, lidar"):
        load_weights(shared, tmp_path / "own.pth")


def test_a_file_of_a_run_tells_which_norms_are_whose(tmp_path):
    source = cross_modal("cmnext_nano", ["img", "depth", "lidar"], 1)
    meta = {"fastseg": json.dumps({"modalities": ["img", "depth", "lidar"]})}
    save_file(source.state_dict(), tmp_path / "run.safetensors", meta)
    target = cross_modal("cmnext_nano", ["img", "lidar", "depth"], 2)
    load_weights(target, tmp_path / "run.safetensors")
    images = torch.randn(3, 1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(source(images).logits, target(images[[0, 2, 1]]).logits)
    other = cross_modal("cmnext_nano", ["img", "event", "lidar"], 2)
    with pytest.raises(
        CheckpointError, match=r"missing: auxiliary\.embeds\.0\.norms\.0\.weight of this"
    ):
        load_weights(other, tmp_path / "run.safetensors")


@pytest.mark.parametrize("sensors", [["img", "depth", "lidar", "event"], ["img", "depth"]])
def test_cmnext_of_other_sensors(tmp_path, sensors):
    source = cross_modal("cmnext_nano", SENSORS, 1, scramble=True)
    save_weights(source, tmp_path / "three.pth", "deliver")
    target = cross_modal("cmnext_nano", sensors, 2)
    kept = target.state_dict()["auxiliary.norms.0.weight"].clone()
    with pytest.raises(CheckpointError, match="a second branch of 2 sensors"):
        load_weights(target, tmp_path / "three.pth")
    assert torch.equal(target.state_dict()["auxiliary.norms.0.weight"], kept)
    report = load_weights(target, tmp_path / "three.pth", partial=True)
    mine, theirs = target.state_dict(), source.state_dict()
    assert torch.equal(mine["auxiliary.norms.0.weight"], theirs["auxiliary.norms.0.weight"])
    if len(sensors) == 4:
        name = "auxiliary.embeds.1.norms.{}.weight"
        assert torch.equal(mine[name.format(2)], theirs[name.format(0)])
        assert "norms of sensors that the file lacks are copies" in str(report)
        assert any("score_nets.2" in name for name in report.missing)
        assert "scramble=True" in str(report)
    else:
        assert any("ln_1" in name for name in report.unexpected)
        assert report.missing == ()


def test_encoders_of_cmx_and_of_cmnext(tmp_path):
    encoder = make_model(seed=1).encoder
    torch.save(encoder.state_dict() | {"head.bias": torch.ones(2)}, tmp_path / "mit.pth")
    for kind, sensors in (("cmx_nano", SENSORS[:2]), ("cmnext_nano", SENSORS)):
        network = cross_modal(kind, sensors, 2)
        report = network.load_encoder(tmp_path / "mit.pth")
        assert_same(network.encoder, encoder)
        if kind == "cmx_nano":
            assert_same(network.auxiliary, encoder)
        assert report.dropped == ("head.bias",)


def test_a_pair_of_networks_is_loaded_from_a_file_of_its_own(tmp_path):
    pairs = [SelectedPair(make_model(seed=s), make_model(seed=s + 1), 0.2, "full") for s in (1, 3)]
    save_weights(pairs[0], tmp_path / "pair.safetensors")
    report = load_weights(pairs[1], tmp_path / "pair.safetensors")
    assert_same(pairs[1], pairs[0])
    assert report.layout == "fastseg"
    # each of the two can be taken out of it
    single = make_model(seed=9)
    load_weights(single, tmp_path / "pair.safetensors", part="robust", partial=True)
    assert_same(single, pairs[0].robust)


def test_a_frozen_network_takes_and_gives_no_weights(tmp_path):
    network = make_model()
    save_weights(network, tmp_path / "model.pth")
    network.freeze()
    with pytest.raises(CheckpointError, match="frozen"):
        load_weights(network, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="frozen"):
        save_weights(network, tmp_path / "other.pth")
