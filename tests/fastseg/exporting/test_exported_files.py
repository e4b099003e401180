"""The exported files: the network's numbers, and all that is said about them.

Both files are made once, by the fixture ``exported``, through the command.
"""

import csv
import hashlib
import json
import re

import numpy as np
import pytest
import torch

from fastseg import kernels
from fastseg.engine.context import RunContext
from fastseg.evaluation.from_weights import EvaluateConfig, chosen_weights, run_config
from fastseg.exporting.formats import run_module, run_onnx
from fastseg.exporting.sensors import as_loaded, random_images
from fastseg.pipelines.transform.normalise import Normaliser

# the first of them waits for the export
pytestmark = pytest.mark.slow

FORMATS = ["pt2", "onnx"]
MASKS = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]], bool)


@pytest.fixture(scope="module")
def context(untrained):
    options = EvaluateConfig(checkpoint=untrained, device="cpu")
    return RunContext(run_config(options, {"": untrained / "student.safetensors"}))


@pytest.fixture(scope="module")
def about(exported):
    return json.loads((exported / "preprocessing.json").read_text())


@pytest.fixture(scope="module")
def loaded(exported):
    """The program of the .pt2, and what is written in it; loading takes seconds."""
    told = {"preprocessing.json": ""}
    return torch.export.load(exported / "model.pt2", extra_files=told), told


@pytest.fixture(scope="module", params=FORMATS)
def run(request, exported, context, loaded):
    """A function that runs one of the files."""
    if request.param == "pt2":
        return run_module(loaded[0].module(), context.modalities)
    if not (exported / "model.onnx").is_file():
        pytest.skip("the packages of the extra export are not installed")
    return run_onnx(exported / "model.onnx", 1)


@torch.no_grad()
def expected(context, network, images):
    """Labels of each sample with its subset, by the parts of evaluation."""
    height, width = images["img"].shape[1:3]
    codes = [as_loaded(images[m.name], m) for m in context.modalities]
    normalised = Normaliser(context.modalities)(codes)
    for sample in range(len(normalised[0])):
        subset = np.flatnonzero(MASKS[sample]).tolist()
        (logits,) = network.logits_of_subsets(normalised[:, [sample]], [subset], "drop")
        labels = kernels.upsample_argmax(logits, normalised.shape[-2:])
        yield logits[0, :, : -(-height // 4), : -(-width // 4)], labels[0, :height, :width]


@pytest.mark.parametrize(("batch", "height", "width"), [(3, 39, 130), (1, 64, 64)])
def test_a_file_is_the_network_for_any_batch_size_and_subset(
    run, context, untrained, batch, height, width
):
    network = context.load_network(untrained / "student.safetensors", "student")
    images = random_images(context.modalities, batch, height, width, seed=3)
    out = run(images, MASKS[:batch])
    assert out["labels"].dtype == np.uint8
    assert out["labels"].shape == (batch, height, width)
    for sample, (logits, labels) in enumerate(expected(context, network, images)):
        torch.testing.assert_close(
            torch.from_numpy(out["logits"][sample]), logits, rtol=1e-4, atol=1e-4
        )
        assert (torch.from_numpy(out["labels"][sample]) == labels).float().mean() > 0.999


def test_a_file_does_not_look_at_sensors_that_are_missing(run, context):
    images = random_images(context.modalities, 3, 64, 64)
    other = random_images(context.modalities, 3, 64, 64, seed=1)
    mixed = {
        name: np.where(MASKS[:, i, None, None, None], images[name], other[name])
        for i, name in enumerate(images)
    }
    expected, found = run(images, MASKS), run(mixed, MASKS)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    nothing = run(images, MASKS & [[True], [False], [True]])["labels"]
    assert (nothing[1] == 255).all()
    assert np.array_equal(nothing[::2], expected["labels"][::2])


def test_the_graph_is_torch_alone(loaded):
    names = {str(n.target) for n in loaded[0].graph.nodes if n.op == "call_function"}
    assert any(name.startswith("aten.") for name in names)
    assert not any("fastseg" in name or "triton" in name for name in names)


def test_the_folder_holds_what_is_said_and_no_more(exported, about, context):
    names = {path.name for path in exported.iterdir()} - {"said.txt"}
    assert names == {*about["files"], "preprocessing.json", "check.json", "MODEL_CARD.md"}
    assert {"model.pt2"} <= set(about["files"])
    for name, file in about["files"].items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == file["sha256"]
    assert not list(exported.parent.glob(".exported*.partial"))


def test_preprocessing_says_how_the_network_is_called(about, context):
    assert about["classes"] == list(context.spec.classes)
    assert about["palette"] == [list(colour) for colour in context.spec.palette]
    assert about["ignore_index"] == 255
    assert about["network"] == "student"
    assert about["present"]["order"] == ["img", "depth", "event", "lidar"]
    assert about["present"]["missing"] == "drop"
    assert [(s["name"], s["dtype"], s["shape"][3]) for s in about["sensors"]] == [
        (name, "uint8", 3) for name in about["present"]["order"]
    ]
    assert [output["name"] for output in about["outputs"]] == ["labels", "logits"]


def test_a_file_alone_says_how_it_is_called(exported, loaded, about):
    told = loaded[1]
    mine = {name: value for name, value in about.items() if name != "files"}
    assert json.loads(told["preprocessing.json"]) == mine
    if (exported / "model.onnx").is_file():
        import onnxruntime

        session = onnxruntime.InferenceSession(exported / "model.onnx")
        properties = session.get_modelmeta().custom_metadata_map
        assert json.loads(properties["preprocessing.json"]) == mine
        dtypes = {i.name: i.type for i in session.get_inputs()}
        assert dtypes.pop("present") == "tensor(bool)"
        assert dtypes == dict.fromkeys(about["present"]["order"], "tensor(uint8)")
        assert [o.name for o in session.get_outputs()] == ["labels", "logits"]


def test_every_file_was_checked_on_random_and_real_images(exported, about):
    checks = json.loads((exported / "check.json").read_text())
    cases = {(row["file"], row["case"].split()[0]) for row in checks["files"]}
    assert cases == {(file, kind) for file in about["files"] for kind in ("random", "real")}
    for row in checks["files"]:
        assert 0 <= row["error"] <= 1e-4 * row["largest"]
        assert row["equal"] > 0.999
        # every subset alone, and in batches of three
        assert row["samples"] == 30
    said = (exported / "said.txt").read_text()
    assert len(re.findall(r"largest error of logits \S+ of \S+, equal labels", said)) == len(
        checks["files"]
    )


def test_the_card_has_scores_origin_and_limits(exported, untrained):
    card = (exported / "MODEL_CARD.md").read_text()
    with (untrained / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "student"]
    assert len(rows) == 16
    for row in rows:
        assert f"| {row['subset']} | {float(row['miou_all']):.2f} |" in card
    assert "python -m fastseg.export --checkpoint" in card
    for word in ("deliver", "## Limits", "Licence", "commit of fastseg", "random weights", "drop"):
        assert word in card


def test_the_last_network_is_taken_unless_one_is_named(untrained):
    assert chosen_weights(untrained, None)[0] == "student"
    assert chosen_weights(untrained, "teacher")[1] == untrained / "teacher.safetensors"
