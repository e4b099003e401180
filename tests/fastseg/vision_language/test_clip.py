"""A tiny CLIP of the transformers library, read from its folder."""

import json
import shutil
import socket
import sys

import pytest
import torch
import transformers

from fastseg.errors import ConfigError
from fastseg.vision_language.load import load_model
from tests.support.tiny_clip import DIM, SIDE, write_clip

CPU = torch.device("cpu")
TEXTS = ["a photo of a road", "sky", "a photo of a street scene, night, with road and sky"]


@pytest.fixture(scope="module")
def model(written_clip):
    return load_model(written_clip, CPU)


@pytest.fixture
def folder(written_clip, tmp_path):
    """A copy to be spoilt."""
    return shutil.copytree(written_clip, tmp_path / "tiny")


def pictures(count=3, height=50, width=70):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_embeddings_are_those_of_transformers(model, written_clip):
    theirs = transformers.CLIPModel.from_pretrained(written_clip).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(written_clip)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(written_clip)
    # in the size of the input nothing is resized, and every value is the same
    seen = pictures(3, SIDE, SIDE)
    pixels = processor(images=list(seen.permute(0, 2, 3, 1).numpy()), return_tensors="pt")
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(**tokens, **pixels)
    torch.testing.assert_close(model.embed_images(seen), wanted.image_embeds, rtol=0, atol=2e-6)
    torch.testing.assert_close(model.embed_texts(TEXTS), wanted.text_embeds, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["embed_images", "embed_texts"])
def test_rows_have_unit_norm_and_do_not_depend_on_each_other(model, kind):
    embed, inputs = getattr(model, kind), pictures() if kind == "embed_images" else TEXTS
    whole = embed(inputs)
    assert whole.shape == (3, DIM)
    assert (whole.dtype, whole.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(3))
    assert torch.equal(embed(inputs), whole)
    alone = torch.cat([embed(inputs[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-6)
    assert (whole[0] - whole[1]).abs().max() > 1e-3
    assert embed(inputs[:0]).shape == (0, DIM)


def test_the_precision_of_the_caller_does_not_matter(model):
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.embed_images(pictures())
    assert torch.equal(inside, model.embed_images(pictures()))


def test_many_texts_are_embedded_in_order(model, monkeypatch):
    monkeypatch.setattr("fastseg.vision_language.interface._TEXTS", 2)
    torch.testing.assert_close(
        model.embed_texts(TEXTS)[2:], model.embed_texts(TEXTS[2:]), rtol=0, atol=1e-6
    )


def test_long_texts_are_cut_off(model):
    long = "road " * 200
    assert torch.equal(model.embed_texts([long]), model.embed_texts([long + "sky"]))


def test_nothing_learns(model):
    assert not any(p.requires_grad for p in model.network.parameters())
    assert not any(module.training for module in model.network.modules())


def test_the_identity_is_that_of_weights_tokenizer_and_preprocessing(
    model, written_clip, folder, tmp_path
):
    def identity(place):
        return load_model(place, CPU).identity

    before = model.identity
    assert identity(written_clip) == before
    assert identity(folder) == before  # another place
    assert identity(write_clip(tmp_path / "seed", seed=1)) != before
    change(folder / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert identity(folder) != before
    assert identity(write_clip(tmp_path / "gelu", hidden_act="gelu")) != before


def test_the_older_files_of_a_tokenizer_and_the_newer_ones_of_a_processor(model, folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    rules = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": rules}))
    found = load_model(folder, CPU)
    assert found.preprocessing == model.preprocessing
    assert torch.equal(found.embed_texts(TEXTS), model.embed_texts(TEXTS))


def test_weights_in_several_files(model, written_clip, folder):
    (folder / "model.safetensors").unlink()
    network = transformers.CLIPModel.from_pretrained(written_clip)
    network.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert load_model(folder, CPU).identity == model.identity


def test_a_place_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"gone, which does not exist; expected a folder with"):
        load_model(tmp_path / "gone", CPU)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file, which is a file"):
        load_model(tmp_path / "file", CPU)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"config\.json, model\.safetensors.*found notes\.txt"):
        load_model(tmp_path / "other", CPU)


def test_pickled_weights_are_never_read(folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("unpickled"))
    with pytest.raises(ConfigError, match=r"no model\.safetensors; pytorch_model\.bin is not read"):
        load_model(folder, CPU)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda f: change(f / "config.json", model_type="siglip"),
            "type 'siglip'; expected 'clip'",
        ),
        (lambda f: (f / "config.json").write_text("[1"), "config.json is damaged"),
        (lambda f: (f / "config.json").write_text("[1]"), "holds list, expected a JSON object"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer; expected tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot read the CLIP in"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "cannot read the CLIP in"),
        (lambda f: change(f / "preprocessor_config.json", crop_size=64), "takes 32 x 32"),
    ],
    ids=["type", "json", "list", "tokenizer", "empty-tokenizer", "weights", "crop"],
)
def test_damaged_and_other_folders_are_refused(folder, spoil, said):
    spoil(folder)
    with pytest.raises(ConfigError, match=said):
        load_model(folder, CPU)


def test_missing_tensors_are_not_made_up(folder):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"lack 16 tensors .*vision_model\.encoder\.layers\.2"):
        load_model(folder, CPU)


def test_tensors_of_other_shapes_are_refused(folder):
    change(folder / "config.json", projection_dim=DIM + 1)
    with pytest.raises(ConfigError, match=r"cannot read the CLIP in .*(?s:.*)mismatch"):
        load_model(folder, CPU)


def test_the_tokenizer_of_another_model_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="belong to different models"):
        load_model(folder, CPU)


def test_weights_that_are_not_finite_are_refused(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="zero or not finite"):
        load_model(folder, CPU).embed_images(pictures())


def test_without_transformers_the_message_says_how_to_get_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs transformers.*'\.\[vision-language\]'"):
        load_model(folder, CPU)


def test_a_connection_that_is_tried_is_noticed(connections):
    with pytest.raises(OSError, match="tests have no network"):
        socket.create_connection(("localhost", 80))
    assert len(connections) == 1
    connections.clear()
