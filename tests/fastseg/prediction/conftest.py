"""A run's folder without its training: predictions need weights, whatever their worth."""

import json
from dataclasses import replace

import pytest
import torch


@pytest.fixture(scope="session")
def run(scenes, tmp_path_factory):
    """Folder of a run whose networks are random, on the tiny scenes of 64 x 64 pixels."""
    from fastseg.checkpoint.weights import save_weights
    from fastseg.config.presets.registry import get_preset
    from fastseg.config.serialise import to_dict
    from fastseg.engine.context import RunContext

    folder = tmp_path_factory.mktemp("runs") / "debug"
    base = get_preset("debug")
    data = replace(base.data, root=scenes, workers=0)
    config = replace(base, out=folder.parent, data=data, device="cpu")
    context = RunContext(config)
    for seed, name in enumerate(("teacher", "student")):
        network = context.new_network(seed, name)
        with torch.no_grad():
            # the classes of random weights hardly depend on the image
            network.decoder.linear_pred.weight.mul_(30)
            network.decoder.linear_pred.bias.zero_()
        save_weights(folder / f"{name}.safetensors", network, context.identity(name), {"size": 64})
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    return folder


@pytest.fixture
def predict(run, tmp_path, capsys):
    """Run the command into ``tmp_path / "out"``; returns its exit code, output and errors."""
    from fastseg import predict as command

    def call(*more, checkpoint=run):
        words = ["--checkpoint", checkpoint, "--out", tmp_path / "out", *more]
        code = command.main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def labels(tmp_path):
    """The label map of a sample in ``tmp_path / "out"``."""
    import numpy as np
    from PIL import Image

    def read(name, out="out"):
        with Image.open(tmp_path / out / "labels" / f"{name}.png") as image:
            assert image.mode == "L"
            return np.asarray(image)

    return read


@pytest.fixture
def folder(scenes, tmp_path):
    """A folder with a sub-folder per sensor: samples of 500 x 333 pixels, one without LiDAR."""
    from PIL import Image

    for sensor, place, tag in (
        *(("img", "img", "rgb"), ("depth", "hha", "depth")),
        *(("event", "event", "event"), ("lidar", "lidar", "lidar")),
    ):
        (tmp_path / "mine" / sensor / "day").mkdir(parents=True)
        found = sorted((scenes / place).glob(f"*/val/*/*_{tag}_front.png"))[:2]
        for name, path in zip(("day/a", "b"), found, strict=True):
            if (sensor, name) != ("lidar", "b"):
                target = tmp_path / "mine" / sensor / f"{name}.png"
                Image.open(path).resize((500, 333)).save(target)
    return tmp_path / "mine"
