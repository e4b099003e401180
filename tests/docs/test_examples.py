"""Every example runs as a script, is short, and prints what it promises."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTED = {
    "show_a_batch": [r"8 samples, 4 batches, torch loader", r"lidar \[2, 3, 64, 64\]", "Road"],
    "own_training_loop": [r"step 0: ohem \d", r"step 3: ohem \d.* prototypes \d"],
    "train_from_python": ["config.json", "metrics.jsonl", "student.safetensors"],
    "read_metrics": [
        *("teacher, 2 steps: loss ", "student, 2 steps: loss ", "hpdm ", "step 2, RDEL: mIoU "),
    ],
    "score_all_subsets": ["   R  mIoU", "RDEL  mIoU .* pixels"],
    "onnx_segment": [r"\d %  \w", "without event, lidar: labels.png"],
    "sensor_faults": [r"img \(camera\): \d+ %", r"depth \(other\): 0 %", "below with faults"],
}
"""What the output of each must match, in the order in which they run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all of them run: later ones find the scenes and the run of earlier ones."""
    return tmp_path_factory.mktemp("examples")


def exported_and_images(request):
    """A folder with an ONNX file, two of four sensors of a scene, and where the picture goes."""
    pytest.importorskip("onnxruntime", reason="the example runs an ONNX file")
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="the ONNX file is written with it")
    made, scenes = request.getfixturevalue("exported"), request.getfixturevalue("scenes")
    rgb, hha = (sorted((scenes / kind).rglob("*.png"))[0] for kind in ("img", "hha"))
    return [str(made), f"img={rgb}", f"depth={hha}", "labels.png"]


SLOW = {"onnx_segment"}
"""Those that wait for an export."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in PRINTED]
)
def test_an_example_runs(name, folder, monkeypatch, capsys, request):
    monkeypatch.chdir(folder)
    path = EXAMPLES / f"{name}.py"
    arguments = ["runs/example"] if name == "read_metrics" else []
    if name == "onnx_segment":
        arguments = exported_and_images(request)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    if name == "read_metrics" and not (folder / "runs" / "example").is_dir():
        pytest.skip("reads the run that train_from_python makes")
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    for pattern in PRINTED[name]:
        assert re.search(pattern, printed), printed


def test_every_example_is_run_and_short():
    paths = sorted(EXAMPLES.glob("*.py"))
    assert {path.stem for path in paths} == set(PRINTED)
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert max(lines.values()) < 40, lines
