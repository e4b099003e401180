"""Folders that cannot serve end in one message, before a run has a folder."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastseg.errors import ConfigError
from fastseg.models import build_segmenter
from fastseg.models.foundation.folder import folder_digest
from fastseg.train import main as train


@pytest.fixture
def folder(backbones, tmp_path):
    """A copy that may be damaged."""
    shutil.copytree(backbones["dinov2"][1], tmp_path / "dinov2")
    return tmp_path / "dinov2"


def build(folder, name="dinov2"):
    return build_segmenter(name, 5, ["img", "depth"], foundation=folder, pyramid_width=8)


def change(folder, **entries):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


def test_a_folder_must_be_given_and_be_one(folder):
    with pytest.raises(ConfigError, match=r"give --model\.foundation DIR"):
        build(None)
    with pytest.raises(ConfigError, match="does not exist"):
        build(folder / "gone")
    with pytest.raises(ConfigError, match="is a file"):
        build(folder / "config.json")
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no backbone; .*found .*model\.safetensors"):
        build(folder)


def test_other_models_are_named(folder):
    with pytest.raises(ConfigError, match=r"is no dinov2_small: its config\.json has hidden"):
        build(folder, "dinov2_small")
    with pytest.raises(ConfigError, match=r"--model\.backbone dinov2$"):
        build(folder, "dinov3")
    change(folder, model_type="vit")
    with pytest.raises(ConfigError, match="holds a model of type 'vit'"):
        build(folder)


def test_code_of_a_folder_is_never_run(folder):
    change(folder, auto_map={"AutoModel": "modeling.Model"})
    (folder / "modeling.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(ConfigError, match="needs code of its own"):
        build(folder)


def test_pickles_are_not_read(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="pickles can run code"):
        build(folder)


def test_damaged_files_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    lacking = {k: v for k, v in tensors.items() if "layer.2.norm1" not in k}
    save_file(lacking, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="lack 2 tensors of the dinov2"):
        build(folder)
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ConfigError, match="transformers cannot read the dinov2"):
        build(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        build(folder)


def test_without_transformers_the_message_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[foundation\]'"):
        build(folder)


def test_the_digest_is_of_weights_and_shape(folder, tmp_path):
    before = folder_digest(folder)
    change(folder, transformers_version="0", _name_or_path="elsewhere")
    assert folder_digest(folder) == before
    change(folder, layer_norm_eps=1e-3)
    assert folder_digest(folder) != before


def test_train_refuses_before_it_makes_a_folder(tmp_path, capsys):
    words = ["--preset", "debug", "--out", str(tmp_path / "runs"), "--model.backbone"]
    assert train([*words, "dinov2_small"]) == 2
    assert "give --model.foundation DIR" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train([*words, "mit_nano", "--model.foundation", str(tmp_path)])
    assert "has no --model.foundation: leave it" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_weights_of_an_encoder_are_refused(folder):
    with pytest.raises(ConfigError, match=r"leave out --model\.weights"):
        build(folder).load_encoder(folder)
    with pytest.raises(ConfigError, match="adapter_rank must be at least 0"):
        build_segmenter("dinov2", 5, ["img"], foundation=folder, adapter_rank=-1)
