"""What cannot be exported is one message, and leaves nothing behind."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastseg import export
from fastseg.exporting import bundle, options
from fastseg.exporting.check import FP16, FP32, compare
from fastseg.exporting.deployed import Deployed
from fastseg.exporting.formats import run_module
from fastseg.exporting.latency import latency_page, measure
from fastseg.exporting.references import Case
from fastseg.exporting.sensors import random_images
from fastseg.models import SegFormer
from fastseg.pipelines import get_dataset


@pytest.fixture
def call(untrained, tmp_path, capsys):
    """Run the command; exit code, standard error, and what it left in a folder."""

    def run(*words, checkpoint=untrained, out=tmp_path / "out"):
        code = export.main(["--checkpoint", str(checkpoint), "--out", str(out), *words])
        left = sorted(path.name for path in tmp_path.iterdir())
        return code, capsys.readouterr().err, left

    return run


def test_a_network_that_is_not_there_is_named_with_those_that_are(call):
    code, said, left = call("--network", "studnet", "--formats", "pt2")
    assert (code, left) == (2, [])
    assert "'studnet'" in said
    assert "did you mean 'student'" in said


def test_a_folder_without_weights_says_what_is_expected(call, tmp_path):
    (tmp_path / "empty").mkdir()
    code, said, _ = call("--formats", "pt2", checkpoint=tmp_path / "empty")
    assert code == 2
    assert "student.safetensors" in said


def test_without_the_packages_onnx_names_the_extra(call, monkeypatch):
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    code, said, left = call()
    assert (code, left) == (2, [])
    assert "'.[export]'" in said
    assert "--formats pt2" in said


def test_a_folder_with_something_in_it_is_left_alone(call, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    code, said, left = call("--formats", "pt2")
    assert (code, left) == (2, ["out"])
    assert "not empty" in said
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_a_place_where_no_folder_can_be_is_refused_at_once(call, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "--out" in call("--formats", "pt2", out=tmp_path / "file")[1]
    assert "--out" in call("--formats", "pt2", out=tmp_path / "file" / "inside")[1]
    monkeypatch.setattr(options.os, "access", lambda path, mode: False)
    code, said, left = call("--formats", "pt2")
    assert (code, left) == (2, ["file"])
    assert "choose another place" in said


def test_a_format_twice_is_refused(call, capsys):
    with pytest.raises(SystemExit, match="2"):
        call("--formats", "pt2", "pt2")
    assert "--formats takes each of its values once" in capsys.readouterr().err


def wrong(change):
    """A file that gives something else than the network; the graph is not made."""

    def run_pt2(path, modalities):
        def run(images, present):
            height, width = images["img"].shape[1:3]
            logits = np.zeros((len(present), 25, -(-height // 4), -(-width // 4)), np.float32)
            return {"labels": np.zeros((len(present), height, width), np.uint8)} | change(logits)

        return run

    return run_pt2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: {"logits": logits}, "not what the network says"),
        (lambda logits: {"logits": logits * np.nan}, "error of logits nan"),
        (lambda logits: {"logits": logits[..., 1:]}, "outputs of shapes"),
    ],
)
def test_a_file_that_is_not_the_network_leaves_nothing(call, monkeypatch, change, message):
    monkeypatch.setattr(bundle, "traced", lambda deployed: None)
    monkeypatch.setattr(bundle, "save_pt2", lambda program, path, text: path.write_text("file"))
    monkeypatch.setattr(bundle, "run_pt2", wrong(change))
    code, said, left = call("--formats", "pt2")
    assert (code, left) == (2, [])
    assert message in said
    assert "model.pt2" in said


def test_a_disk_that_fills_up_leaves_nothing(call, monkeypatch):
    def full(program, path, text):
        path.write_text("half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(bundle, "traced", lambda deployed: None)
    monkeypatch.setattr(bundle, "save_pt2", full)
    code, said, left = call("--formats", "pt2")
    assert (code, left) == (2, [])
    assert "make room" in said


SENSORS = get_dataset("deliver").select(["img", "lidar"])


@pytest.fixture(scope="module")
def deployed():
    torch.manual_seed(0)
    return Deployed(SegFormer("mit_nano", 5, 16), SENSORS, "drop", 255).eval()


def test_without_data_random_images_alone_are_compared_and_it_is_said(
    call, deployed, monkeypatch, tmp_path
):
    """The network stands for its file here, so that nothing is traced."""
    made = {}

    def keep(network):
        made["run"] = run_module(network, network.modalities)

    monkeypatch.setattr(bundle, "traced", keep)
    monkeypatch.setattr(bundle, "save_pt2", lambda program, path, text: path.write_text("file"))
    monkeypatch.setattr(bundle, "run_pt2", lambda path, modalities: made["run"])
    root = tmp_path / "nowhere"
    code, said, left = call("--formats", "pt2", "--root", str(root), "--missing", "zero")
    assert (code, left) == (0, ["out"])
    assert "no real images" in said
    assert "nowhere" in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    about = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert about["present"]["missing"] == "zero"
    checks = json.loads((tmp_path / "out" / "check.json").read_text())
    assert {row["case"].split()[0] for row in checks["files"]} == {"random"}


def test_half_precision_is_near_the_network(deployed):
    torch.manual_seed(0)
    half = Deployed(SegFormer("mit_nano", 5, 16), SENSORS, "drop", 255, torch.float16).eval()
    images = random_images(SENSORS, 3, 64, 64)
    masks = np.ones((1, 2), bool)
    full = run_module(deployed, SENSORS)(images, np.ones((3, 2), bool))
    case = Case("random", images, masks, full["logits"][None], full["labels"][None])
    (found,) = compare("half", run_module(half, SENSORS), [case], FP16)
    assert found.error > FP32.error * found.largest
    with pytest.raises(ValueError, match="not what the network says"):
        compare("half", run_module(half, SENSORS), [case], replace(FP16, error=1e-6))


def test_latency_times_what_runs_and_names_what_does_not(deployed, tmp_path, monkeypatch):
    def no_compiler(*arguments):
        raise RuntimeError("no C compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    threads = torch.get_num_threads()
    rows = measure(deployed, {}, [32, 64], [1])
    assert torch.get_num_threads() == threads
    assert [(row.size, row.runtime) for row in rows] == [
        (size, f"torch, {way}") for size in (32, 64) for way in ("eager", "compiled")
    ]
    for row in rows:
        assert (row.median_ms is None) == (row.runtime == "torch, compiled")
    page = latency_page(rows, "student", 2)
    assert "| 64 x 64 | 1 | torch, eager |" in page
    assert "| - | - | did not run: no C compiler found |" in page
