"""Files made to run code, given to every command that takes one: one message, and nothing runs."""

import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch

from fastseg import data, evaluate, export, predict, train
from fastseg.checkpoint.intact import MANIFEST
from fastseg.checkpoint.state import TrainingStates
from fastseg.models import __main__ as models
from fastseg.report import __main__ as report
from tests.support.hostile.stored import STEP, network, sign, write_state
from tests.support.own_tree import write_own

pytestmark = pytest.mark.fault("F32")


class MakesFolder:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def marker(tmp_path):
    """The folder that a file would make if any of it ran."""
    path = tmp_path / "marker"
    # the fixtures are live: outside of fastseg they run
    pickle.loads(pickle.dumps(MakesFolder(path)))
    path.rmdir()
    yield path
    assert not path.exists()


def written(path, kind, marker):
    """A file that runs code where it is unpickled, or called."""
    exploit = MakesFolder(marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind in ("zip", "legacy"):
        with path.open("wb") as file:
            torch.save(exploit, file, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": exploit}))
    elif kind == "npy":
        np.save(path.with_suffix(".npy"), np.array([[exploit]], object), allow_pickle=True)
        os.replace(path.with_suffix(".npy"), path)
    elif kind == "pt2":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/archive_format", "pt2")
            archive.writestr("model/data/weights/model.pt", pickle.dumps(exploit))
    else:
        torch.save(torch.nn.Linear(2, 2), path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("evil/constants.pkl", pickle.dumps(exploit))
    return path


KINDS = ("zip", "legacy", "pickle", "npy", "pt2", "program")


def refused(capsys, main, *words):
    """The one message of a command that ends with exit code 2."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_models_convert(tmp_path, capsys, marker, kind):
    path = written(tmp_path / "evil.pth", kind, marker)
    said = refused(capsys, models.main, "convert", path, tmp_path / "out.safetensors")
    assert "evil.pth" in said
    assert not (tmp_path / "out.safetensors").exists()


def test_train_with_weights_from_elsewhere(tmp_path, capsys, marker, scenes):
    words = ["--preset", "debug", "--data.root", scenes, "--synthetic.train", 0]
    words += ["--synthetic.val", 0, "--out", tmp_path / "runs", "--data.workers", 0]
    words += ["--stages.teacher.start", "encoder"]
    for kind in ("zip", "pt2"):
        path = written(tmp_path / "evil.pth", kind, marker)
        assert "evil.pth" in refused(capsys, train.main, *words, "--model.weights", path)
    path = written(tmp_path / "evil.toml", "pickle", marker)
    assert "evil.toml" in refused(capsys, train.main, "--config", path)
    assert "evil.toml" in refused(capsys, train.main, *words, "--data.dataset", path)


@pytest.fixture
def run(untrained, tmp_path):
    """A run's folder of its own."""
    return shutil.copytree(untrained, tmp_path / "run")


@pytest.mark.parametrize("file", ["student.safetensors", "config.json"])
@pytest.mark.parametrize("command", ["evaluate", "predict", "export", "report"])
def test_commands_that_take_a_run(run, tmp_path, capsys, marker, command, file):
    written(run / file, "zip" if file[0] == "s" else "pickle", marker)
    out = ["--out", tmp_path / "out"]
    words, main = {
        "evaluate": ([], evaluate.main),
        "predict": (["--split", "val", *out], predict.main),
        "export": (["--formats", "pt2", *out], export.main),
        "report": (out, report.main),
    }[command]
    assert file in refused(capsys, main, "--checkpoint", run, *words)
    assert not (tmp_path / "out").exists()


def test_a_page_of_a_run_with_pickled_tables(run, capsys, marker):
    written(run / "results.csv", "pickle", marker)
    words = ["--checkpoint", run, "--no-score"]
    assert "results.csv" in refused(capsys, report.main, *words)


@pytest.mark.parametrize(
    "file", [MANIFEST, "state.json", "network.safetensors", "layout.json", ".metadata"]
)
@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_states(tmp_path, capsys, marker, file, kind):
    """Also where whoever made them gave them a manifest that fits."""
    state = write_state(tmp_path / "states", laid_out=file == "layout.json")
    written(state / file, kind, marker)
    if file != MANIFEST:
        sign(state)
    found = TrainingStates(tmp_path / "states").newest("a", network)
    # a file of another format beside those of a state is not looked at
    assert (found is not None) == (file == ".metadata")
    assert found is not None or f"{STEP} is passed over" in capsys.readouterr().err


ARRAYS = """
[[sensors]]
name = "rgb"
files = "rgb/{split}/{name}.png"
[[sensors]]
name = "heat"
files = "heat/{split}/{name}.npy"
mean = 0
std = 1
[label]
files = "labels/{split}/{name}.png"
CLASSES
[splits]
folders = { train = "train", val = "val" }
"""


def test_a_data_set_with_a_pickled_array(tmp_path, capsys, marker):
    root = write_own(tmp_path / "data", counts={"train": 2, "val": 2}, sizes=((64, 64),))
    for split in ("train", "val"):
        for path in sorted((root / "rgb" / split).iterdir()):
            written(root / "heat" / split / f"{path.stem}.npy", "npy", marker)
    classes = "".join(f'[[classes]]\nname = "c{i}"\nids = {i}\n' for i in range(5))
    own = tmp_path / "own.toml"
    own.write_text(ARRAYS.replace("CLASSES", classes))
    words = ["--data.dataset", own, "--data.root", root]
    assert "object" in refused(capsys, data.main, "pack", *words, "--out", tmp_path / "packed")
    assert data.main(["check", *map(str, words)]) != 0
    assert "object" in "".join(capsys.readouterr())
    words += ["--preset", "debug", "--out", tmp_path / "runs", "--data.workers", 0]
    words += ["--synthetic.train", 0, "--synthetic.val", 0, "--data.batch-size", 2]
    assert ".npy" in refused(capsys, train.main, *words, "--data.modalities", "rgb", "heat")


def test_predict_images_that_are_pickles(run, tmp_path, capsys, marker):
    written(tmp_path / "img.png", "zip", marker)
    (tmp_path / "list.csv").write_text("img\nimg.png\n")
    words = ["--checkpoint", run, "--list", tmp_path / "list.csv", "--out", tmp_path / "out"]
    assert "img.png" in refused(capsys, predict.main, *words)
    written(tmp_path / "list.csv", "pickle", marker)
    assert "list.csv" in refused(capsys, predict.main, *words)


def test_a_packed_cache_that_is_a_pickle(tmp_path, capsys, marker, scenes):
    root = tmp_path / "packed"
    words = ["--data.dataset", "deliver", "--data.root", scenes]
    assert (
        data.main(["pack", *map(str, words), "--splits", "train", "val", "--out", str(root)]) == 0
    )
    for index in root.rglob("*.json"):
        written(index, "pickle", marker)
    words = [
        "--preset",
        "debug",
        "--data.root",
        scenes,
        "--data.packed",
        root,
    ]
    words += ["--synthetic.train", 0, "--synthetic.val", 0, "--out", tmp_path / "runs"]
    assert "00000.json" in refused(capsys, train.main, *words)


def test_a_folder_of_a_hub_with_pickled_weights(tmp_path, capsys, marker, scenes):
    folder = tmp_path / "dinov2"
    written(folder / "pytorch_model.bin", "zip", marker)
    config = '{"model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12}'
    (folder / "config.json").write_text(config)
    words = ["--preset", "debug", "--data.root", scenes, "--model.backbone", "dinov2"]
    words += ["--synthetic.train", 0, "--synthetic.val", 0, "--out", tmp_path / "runs"]
    words += ["--model.foundation", folder]
    said = refused(capsys, train.main, *words)
    assert "pytorch_model.bin is not read, as pickles can run code" in said
    # transformers would take the format of the file that the index names
    index = '{"weight_map": {"x": "pytorch_model.bin"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    assert "'pytorch_model.bin', which is no safetensors" in refused(capsys, train.main, *words)
    (folder / "config.json").write_text(config[:-1] + ', "attn_implementation": "who/kernel"}')
    assert "'who/kernel', code of a hub" in refused(capsys, train.main, *words)
