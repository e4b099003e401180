"""Weights written for other projects: exact round trips, their own classes, the command."""

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from fastseg.checkpoint import weights as run_weights
from fastseg.errors import CheckpointError, ConfigError
from fastseg.models import SegFormer, build_segmenter, load_weights, save_weights
from fastseg.models.__main__ import main
from fastseg.models.weight_files.layouts import LAYOUTS
from tests.support.small_networks import assert_same, make_model, randomise

WHOLE = [name for name, layout in LAYOUTS.items() if layout.head is not None]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trips_are_exact(tmp_path, layout, suffix):
    source, target = make_model(seed=1), make_model(seed=2)
    path = tmp_path / f"weights{suffix}"
    saved = save_weights(source, path, layout)
    report = load_weights(target, path, encoder_only=layout not in WHOLE)
    assert (report.missing, report.unexpected) == ((), ())
    if layout in WHOLE:
        assert_same(target, source)
        assert saved.left_out == ()
    else:
        assert_same(target.encoder, source.encoder)
        assert set(saved.left_out) == {k for k in source.state_dict() if k.startswith("decoder.")}
        assert "left out: decoder.linear_c1.proj.weight" in str(saved)
    save_weights(source.encoder, path, layout)
    load_weights(target.encoder, path)
    assert_same(target.encoder, source.encoder)


@pytest.mark.parametrize("layout", ["fastseg", "deliver"])
@pytest.mark.parametrize("kind", ["cmnext_nano", "cmx_nano"])
def test_round_trips_of_two_branches_are_exact(tmp_path, kind, layout):
    names = ["img", "depth", "lidar"][: 2 if kind == "cmx_nano" else 3]
    source, target = (
        randomise(build_segmenter(kind, 5, names, embed_dim=16), seed).eval() for seed in (1, 2)
    )
    save_weights(source, tmp_path / "weights.pth", layout)
    report = load_weights(target, tmp_path / "weights.pth")
    assert report.layout == layout
    assert_same(target, source)
    images = torch.randn(len(names), 1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(target(images).logits, source(images).logits)


def tiny_transformers():
    """SegFormer of the library with the sizes of ``mit_nano``."""
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 128], num_attention_heads=[1, 2, 4, 8],
        decoder_hidden_size=24, num_labels=6,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config).eval()


@pytest.mark.parametrize("layout", ["transformers4", "transformers5"])
@torch.no_grad()
def test_the_class_of_transformers_gives_the_same_logits(tmp_path, layout):
    source, theirs = make_model(seed=1), tiny_transformers()
    if layout == "transformers4":
        theirs.config.save_pretrained(tmp_path)
        save_weights(source, tmp_path / "model.safetensors", layout)
        theirs, said = transformers.SegformerForSemanticSegmentation.from_pretrained(
            tmp_path, output_loading_info=True
        )
        assert not any(said.values()), said
    else:
        save_weights(source, tmp_path / "model.safetensors", layout)
        theirs.load_state_dict(load_file(tmp_path / "model.safetensors"))
    # the library builds every LayerNorm with 1e-5, released weights have 1e-6 in blocks
    for name, module in theirs.eval().named_modules():
        inner = "patch_embeddings" in name or "sequence_reduction" in name
        if isinstance(module, nn.LayerNorm) and not inner:
            module.eps = 1e-6
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = theirs(images).logits
    torch.testing.assert_close(source(images[None]).logits, expected, rtol=1e-5, atol=1e-5)


def test_what_a_layout_has_no_place_for_is_refused(tmp_path):
    network = SegFormer("mit_nano", 6, 24, own_encoders=["img", "depth"])
    path = tmp_path / "model.pth"
    with pytest.raises(CheckpointError, match=r"no place for .*encoders\.img\..*fastseg takes"):
        save_weights(network, path, "mmseg")
    with pytest.raises(ConfigError, match="mmseg1"):
        save_weights(network, path, "mmseg2")
    with pytest.raises(ConfigError, match=r"expected a name with \.safetensors"):
        save_weights(network, tmp_path / "model.onnx")
    network.decoder.linear_pred.bias.data[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"not finite are decoder\.linear_pred\.bias"):
        save_weights(network, path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_weights(make_model(seed=1), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastseg.pipelines.tools.whole_files.commit", full)
    with pytest.raises(OSError, match=r"No space.*model\.safetensors"):
        save_weights(make_model(seed=2), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_compiled_network_is_read_and_written_like_any_other(tmp_path):
    network = make_model(seed=1)
    save_weights(torch.compile(network), tmp_path / "model.pth", "mmseg")
    target = make_model(seed=2)
    load_weights(torch.compile(target), tmp_path / "model.pth")
    assert_same(target, network)


@pytest.mark.parametrize("layout", WHOLE)
def test_the_command_goes_from_any_layout_to_any(tmp_path, capsys, layout):
    source, target = make_model(seed=1), make_model(seed=2)
    save_weights(source, tmp_path / "in.pth", layout)
    for name, ending in (("mmseg", "pth"), ("transformers4", "safetensors")):
        out = tmp_path / f"{name}.{ending}"
        assert main(["convert", str(tmp_path / "in.pth"), str(out), "--layout", name]) == 0
        load_weights(target, out)
        assert_same(target, source)
        said = capsys.readouterr().out
        # names of a single sensor are the same in both
        read = "mmseg" if layout == "deliver" else layout
        assert f"in.pth ({read} layout): 116 loaded, 0 missing, 0 unexpected" in said
        assert f"({name} layout): " in said


def test_the_command_converts_both_branches_and_own_encoders(tmp_path, capsys):
    cmx = randomise(build_segmenter("cmx_nano", 5, ["img", "depth"], embed_dim=16), 1)
    cmnext = randomise(build_segmenter("cmnext_nano", 5, ["a", "b", "c"], embed_dim=16), 1)
    own = randomise(SegFormer("mit_nano", 6, 24, own_encoders=["img", "depth"]), 1)
    for network, layout in ((cmx, "deliver"), (cmnext, "deliver"), (own, "fastseg")):
        save_weights(network, tmp_path / "in.pth", layout)
        words = ["convert", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]
        assert main([*words, "--overwrite"]) == 0
        written = load_file(tmp_path / "out.safetensors")
        state = network.state_dict()
        assert written.keys() == state.keys()
        assert all(torch.equal(written[key], value) for key, value in state.items())
    capsys.readouterr()
    assert main([*words, "--layout", "smp"]) == 2
    assert "is there: name another file, or replace it with --overwrite" in capsys.readouterr().err
    assert main([*words, "--layout", "smp", "--overwrite"]) == 2
    assert "no place for" in capsys.readouterr().err


def test_the_command_takes_a_part_and_an_encoder(tmp_path, capsys):
    teacher, student = make_model(seed=1), make_model(seed=2)
    torch.save(
        {"teacher": teacher.state_dict(), "student": student.state_dict()}, tmp_path / "b.pth"
    )
    words = ["convert", str(tmp_path / "b.pth"), str(tmp_path / "out.pth"), "--layout", "mit"]
    assert main(words) == 2
    assert "holds 2 networks: teacher, student" in capsys.readouterr().err
    assert main([*words, "--part", "student", "--encoder-only"]) == 0
    load_weights(teacher, tmp_path / "out.pth", encoder_only=True)
    assert_same(teacher.encoder, student.encoder)
    (tmp_path / "half.pth").write_bytes((tmp_path / "b.pth").read_bytes()[:5000])
    words = ["convert", str(tmp_path / "half.pth"), str(tmp_path / "none.pth")]
    assert main(words) == 2
    assert "half.pth is damaged" in capsys.readouterr().err
    assert not (tmp_path / "none.pth").exists()


@pytest.mark.fault("F2")
def test_a_flipped_bit_in_weights_of_a_run_is_noticed(tmp_path):
    """Published files carry no checksum; those of a run do."""
    network, path = make_model(seed=1), tmp_path / "student.safetensors"
    identity = run_weights.Identity(
        "student", "deliver", ("a", "b"), ("img", "depth"), "mit_nano", 16
    )
    run_weights.save_weights(path, network, identity, {})
    target = make_model(seed=2)
    load_weights(target, path)
    assert_same(network, target)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"student\.safetensors is damaged: its tensors are"):
        load_weights(target, path)
    assert_same(network, target)
