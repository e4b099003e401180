"""A sensor that delivers nothing: finite gradients from first weights, and training that learns."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from fastseg.methods.robustseg import RobustSegWeights
from fastseg.models import BACKBONES, MixTransformer, SegFormer

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module", params=BACKBONES)
def encoder(request):
    """One network per backbone: the large ones take a second to make."""
    torch.manual_seed(0)
    return MixTransformer(BACKBONES[request.param], drop_path=0.0)


def gradient_norm(encoder, images, dtype):
    """Of the mean square of all features; autocast to ``dtype`` if there is one."""
    encoder.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        features = encoder(images)
    assert all(x.isfinite().all() for x in features)
    # the features are normalised: weigh their elements, or the loss is a constant
    sum((x.float() * torch.linspace(-1, 1, x[0].numel()).view(x[0].shape)).mean() for x in features
    ).backward()  # fmt: skip
    return torch.stack([p.grad.norm() for p in encoder.parameters()]).norm().item()


@pytest.mark.fault("F12")
@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS.keys())
def test_a_blank_image_has_gradients_of_the_usual_size(encoder, dtype):
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    usual = gradient_norm(encoder, noise, dtype)
    blank = gradient_norm(encoder, torch.zeros_like(noise), dtype)
    assert 0 < blank < 100 * usual


def test_a_nearly_blank_image_has_gradients_of_the_usual_size():
    """Most patches of event and LiDAR images are empty."""
    torch.manual_seed(0)
    encoder = MixTransformer(BACKBONES["mit_nano"], drop_path=0.0)
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, 30, 30] = 1.0
    usual = gradient_norm(encoder, torch.randn_like(images), None)
    assert gradient_norm(encoder, images, None) < 100 * usual


def test_loaded_weights_see_a_blank_image_as_ever():
    """The mend is in the first weights alone: with biases of zero a blank image is zeros still."""
    torch.manual_seed(0)
    network = SegFormer("mit_nano", 5, 16).eval()
    state = network.state_dict()
    state["encoder.patch_embed1.proj.bias"] = torch.zeros(16)
    network.load_state_dict(state)
    with torch.no_grad():
        assert not any(x.any() for x in network.encode(torch.zeros(1, 1, 3, 32, 32)))


def drop_every_third_file(root):
    """Of two sensors of the training split; returns how many files are gone."""
    gone = 0
    for sensor in ("hha", "event"):
        for path in sorted((root / sensor).glob("*/train/*/*"))[::3]:
            path.unlink()
            gone += 1
    return gone


def files_missing(config, tmp_path):
    root = tmp_path / "gaps"
    shutil.copytree(config.data.root, root)
    assert drop_every_third_file(root) > 4
    return replace(config, data=replace(config.data, root=root, missing="zero"))


def sensors_black(config, _):
    corruption = replace(config.data.corruption, blackout=0.3)
    return replace(config, data=replace(config.data, corruption=corruption))


def modalities_zeroed(config, _):
    student = replace(config.stages["student"], modalities="zero")
    return replace(config, stages=config.stages | {"student": student})


@pytest.mark.fault("F12")
@pytest.mark.parametrize("start", ["random", "encoder"])
@pytest.mark.parametrize("blank", [files_missing, sensors_black, modalities_zeroed])
def test_training_with_blank_sensors_skips_no_step(config, fit, tmp_path, blank, start):
    torch.manual_seed(3)
    encoder = MixTransformer(BACKBONES["mit_nano"])
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    config = replace(config, model=replace(config.model, weights=tmp_path / "encoder.safetensors"))
    config = blank(config, tmp_path)
    losses = RobustSegWeights(ohem=1, logit=50, hpdm=1, rrm=0.01)
    student = replace(config.stages["student"], start=start, steps=3, losses=losses)
    teacher = replace(config.stages["teacher"], steps=3)
    path, finished = fit(replace(config, stages={"teacher": teacher, "student": student}))
    assert finished
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["kind"] == "train"]
    assert [(row["skipped"], row["grad_norm"] < 100) for row in trained] == [(0.0, True)] * 6
