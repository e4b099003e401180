"""Weight files: every known layout, and every way in which a file can be wrong."""

import os
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from fastseg.errors import CheckpointError
from fastseg.models import (
    MixTransformer,
    get_backbone,
    load_weights,
    read_state_dict,
)
from tests.support.small_networks import CLASSES, EMBED_DIM, assert_same, make_model, randomise

# keys of SegFormer to those of other files: pattern, replacement
RENAMES = {
    "robustseg": [],
    "mmseg": [(r"^encoder\.", "backbone."), (r"^decoder\.", "decode_head.")],
    "smp": [
        (r"^decoder\.linear_c4\.proj", "decoder.mlp_stage.0.linear"),
        (r"^decoder\.linear_c3\.proj", "decoder.mlp_stage.1.linear"),
        (r"^decoder\.linear_c2\.proj", "decoder.mlp_stage.2.linear"),
        (r"^decoder\.linear_c1\.proj", "decoder.mlp_stage.3.linear"),
        (r"^decoder\.linear_fuse\.conv", "decoder.fuse_stage.0"),
        (r"^decoder\.linear_fuse\.bn", "decoder.fuse_stage.1"),
        (r"^decoder\.linear_pred", "segmentation_head.0"),
    ],
}
UNUSED = {
    "robustseg": {"classifier.weight": torch.ones(CLASSES, 128, 1, 1)},
    "mmseg": {"decode_head.conv_seg.weight": torch.ones(CLASSES, EMBED_DIM, 1, 1)},
    "smp": {},
}


def renamed(state, layout):
    for pattern, replacement in RENAMES[layout]:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    return state


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("layout", RENAMES)
def test_whole_models_of_other_projects(tmp_path, layout, suffix):
    source, target = make_model(seed=1), make_model(seed=2)
    state = renamed(source.state_dict(), layout) | UNUSED[layout]
    path = tmp_path / f"model{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    report = load_weights(target, path)
    assert_same(target, source)
    assert report.layout == layout
    assert report.loaded == len(source.state_dict())
    assert report.dropped == tuple(UNUSED[layout])
    assert all(key in str(report) for key in report.dropped)


def test_original_encoder_files_lose_their_imagenet_head(tmp_path):
    source, target = make_model(seed=1), make_model(seed=2)
    head = {"head.weight": torch.ones(1000, 128), "head.bias": torch.ones(1000)}
    torch.save(source.encoder.state_dict() | head, tmp_path / "mit_nano.pth")
    decoder = {k: v.clone() for k, v in target.decoder.state_dict().items()}
    report = load_weights(target.encoder, tmp_path / "mit_nano.pth")
    assert_same(target.encoder, source.encoder)
    assert all(torch.equal(v, decoder[k]) for k, v in target.decoder.state_dict().items())
    assert report.layout == "mit"
    assert set(report.dropped) == set(head)


def test_the_encoder_is_taken_out_of_a_whole_model(tmp_path):
    source, target = make_model(seed=1), make_model(classes=19, seed=2)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    report = load_weights(target.encoder, tmp_path / "model.safetensors")
    assert_same(target.encoder, source.encoder)
    assert set(report.dropped) == {k for k in source.state_dict() if k.startswith("decoder.")}


@pytest.mark.parametrize(
    ("container", "prefix"),
    [("state_dict", "module."), ("model_state_dict", "_orig_mod."), ("model", "module._orig_mod.")],
)
def test_containers_and_wrappers_are_taken_off(tmp_path, container, prefix):
    source, target = make_model(seed=1), make_model(seed=2)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({container: state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "last.ckpt")
    load_weights(target, tmp_path / "last.ckpt")
    assert_same(target, source)


def hub_model(kind):
    """A transformers model of MiT-B0 with the eps that the released weights were trained with."""
    config = transformers.SegformerConfig(num_labels=CLASSES, decoder_hidden_size=EMBED_DIM)
    model = randomise(kind(config), seed=3).eval()
    # the library builds every LayerNorm with 1e-5
    for name, module in model.named_modules():
        inner = "patch_embeddings" in name or "sequence_reduction" in name
        if isinstance(module, nn.LayerNorm) and not inner:
            module.eps = 1e-6
    return model


def save_hub(model, folder: Path, form):
    """``file``: as the library writes it (names of version 4); ``memory``: as it holds it."""
    if form == "file":
        model.save_pretrained(folder)
        return folder / "model.safetensors"
    save_file(model.state_dict(), folder / "memory.safetensors")
    return folder / "memory.safetensors"


@pytest.mark.parametrize("form", ["file", "memory"])
def test_transformers_encoder_agrees(tmp_path, form):
    theirs = hub_model(transformers.SegformerModel)
    encoder = MixTransformer(get_backbone("mit_b0")).eval()
    path = save_hub(theirs, tmp_path, form)
    report = load_weights(encoder, path)
    assert report.layout == {"file": "transformers4", "memory": "transformers5"}[form]
    assert report.dropped == ()
    # keys and values are split there: 16 more tensors, two for each of eight blocks
    assert len(load_file(path)) == 192
    assert report.loaded == 176
    # 288 pixels have 81 keys, enough for the fused attention kernel; fp64 would show a wrong eps
    for size, dtype, slack in ((288, torch.float32, 1e-5), (64, torch.float64, 1e-10)):
        images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))
        images, theirs, encoder = images.to(dtype), theirs.to(dtype), encoder.to(dtype)
        with torch.no_grad():
            expected = theirs(images, output_hidden_states=True).hidden_states
            for x, y in zip(encoder(images), expected, strict=True):
                torch.testing.assert_close(x, y, rtol=slack, atol=slack)


@pytest.mark.parametrize("form", ["file", "memory"])
def test_transformers_segmenter_agrees(tmp_path, form):
    theirs = hub_model(transformers.SegformerForSemanticSegmentation)
    model = make_model("mit_b0")
    report = load_weights(model, save_hub(theirs, tmp_path, form))
    assert report.loaded == len(model.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(images).logits
        torch.testing.assert_close(model(images[None]).logits, expected, rtol=1e-5, atol=1e-5)


def test_transformers_classifier_files_give_their_encoder(tmp_path):
    theirs = hub_model(transformers.SegformerForImageClassification)
    model = make_model("mit_b0")
    report = load_weights(model.encoder, save_hub(theirs, tmp_path, "file"))
    assert set(report.dropped) == {"classifier.weight", "classifier.bias"}
    expected = theirs.state_dict()["segformer.stages.2.blocks.1.attention.v_proj.weight"]
    assert torch.equal(model.encoder.state_dict()["block3.1.attn.kv.weight"][160:], expected)


def edited(**changes):
    def edit(state):
        for key, value in changes.items():
            state[key.replace("__", ".")] = value
        return state

    return edit


def without(key):
    return lambda state: {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize("name", ["model.pth.tar", "model", "model.safetensors"])
def test_the_content_of_a_file_decides_not_its_name(tmp_path, name):
    source, target = make_model(seed=1), make_model(seed=2)
    torch.save(source.state_dict(), tmp_path / name)
    load_weights(target, tmp_path / name)
    assert_same(target, source)
    save_file(source.state_dict(), tmp_path / f"{name}.pth")
    target = make_model(seed=2)
    load_weights(target, tmp_path / f"{name}.pth")
    assert_same(target, source)


def test_what_is_no_weights_file_is_refused_without_waiting(tmp_path):
    pointer = tmp_path / "pointer.pth"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"neither .* begins with b'version https:/"):
        read_state_dict(pointer)
    with pytest.raises(CheckpointError, match="is a folder; give the weights file"):
        read_state_dict(tmp_path)
    os.mkfifo(tmp_path / "fifo.pth")
    with pytest.raises(CheckpointError, match=r"fifo\.pth is no regular file"):
        read_state_dict(tmp_path / "fifo.pth")


def test_an_unreadable_file_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    torch.save(make_model().state_dict(), path)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied; check its acc"):
        read_state_dict(path)


@pytest.mark.parametrize("layout", RENAMES)
def test_a_file_that_lacks_one_tensor_is_recognised_all_the_same(tmp_path, layout):
    state = renamed(make_model().state_dict(), layout) | UNUSED[layout]
    (lost,) = [key for key in state if key.endswith("patch_embed1.proj.weight")]
    del state[lost]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=f"{layout} layout.*\n  1 missing: {lost}"):
        load_weights(make_model(), tmp_path / "model.pth")


@pytest.mark.fault("F23")
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("decoder.linear_pred.bias"), "1 missing: decoder.linear_pred.bias"),
        (edited(decoder__extra=torch.ones(1)), "1 unexpected: decoder.extra"),
        (
            edited(encoder__norm2__bias=torch.ones(7)),
            r"1 of another shape: encoder.norm2.bias \[7\] for \[32\]",
        ),
        (
            edited(encoder__norm2__bias=torch.ones(32, dtype=torch.int8)),
            r"encoder.norm2.bias \[32\] torch.int8 for \[32\]",
        ),
        (
            edited(encoder__norm2__bias=torch.full((32,), torch.nan)),
            "1 not finite: encoder.norm2.bias",
        ),
    ],
    ids=["missing", "unexpected", "reshaped", "integers", "nan"],
)
def test_misfits_are_listed_and_nothing_is_loaded(tmp_path, edit, message):
    source, target, before = make_model(seed=1), make_model(seed=2), make_model(seed=2)
    path = tmp_path / "model.safetensors"
    save_file(edit(source.state_dict()), path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(target, path)
    assert str(path) in str(caught.value)
    assert "nothing was loaded" in str(caught.value)
    assert_same(target, before)


def test_a_file_of_another_model_says_what_it_holds(tmp_path):
    save_file(make_model(classes=19).state_dict(), tmp_path / "muses.safetensors")
    model = make_model(classes=25)
    with pytest.raises(CheckpointError, match="mit_nano, embed_dim 24 and 19 classes") as caught:
        load_weights(model, tmp_path / "muses.safetensors")
    assert "decoder.linear_pred.weight [19, 24, 1, 1] for [25, 24, 1, 1]" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"missing: encoder\.block1\.1\.norm1\.weight.*more"):
        load_weights(make_model("mit_b0").encoder, tmp_path / "muses.safetensors")


def test_an_encoder_file_is_no_segmenter(tmp_path):
    save_file(make_model().encoder.state_dict(), tmp_path / "mit.safetensors")
    with pytest.raises(CheckpointError, match="mit_nano without a head"):
        load_weights(make_model(), tmp_path / "mit.safetensors")


def test_a_foreign_network_is_refused_by_its_names(tmp_path):
    save_file({"layer1.0.conv1.weight": torch.ones(3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(CheckpointError, match=r"among 1 tensors: layer1\.0\.conv1\.weight; known"):
        load_weights(make_model(), tmp_path / "resnet.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 10, 0.5], ids=["empty", "start", "half"])
def test_damaged_files_are_named(tmp_path, suffix, keep):
    path = tmp_path / f"model{suffix}"
    state = make_model().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pth", None, "no weights file"),
        ("empty.pth", {}, "no named tensors"),
        ("list.pth", [torch.ones(2)], "no named tensors"),
    ],
    ids=["absent", "empty", "list"],
)
def test_files_without_a_state_dict_are_refused(tmp_path, name, content, message):
    if content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / name)
