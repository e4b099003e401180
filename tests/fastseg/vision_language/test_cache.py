"""Embeddings of a tiny split: made, kept, continued, and made again where they do not serve."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.distributed import HashStore

from fastseg.distributed.ranks import Ranks
from fastseg.errors import ConfigError
from fastseg.pipelines import DataConfig, DataError, get_dataset
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.inspection.display import picture, to_values
from fastseg.pipelines.loaders.samples import SampleReader
from fastseg.vision_language import cache
from fastseg.vision_language.cache import embed_dataset, embed_split
from fastseg.vision_language.load import load_model
from fastseg.vision_language.prompts import Prompts, classes_by_area
from tests.support.tiny_clip import DIM, write_clip

CPU = torch.device("cpu")
NAMES = ("img", "lidar")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """12 samples in three parts."""
    monkeypatch.setattr(cache, "_PART", 5)


@pytest.fixture
def files(scenes):
    return list_split(get_dataset("deliver"), scenes, "train", NAMES)


@pytest.fixture(scope="module")
def model(written_clip):
    return load_model(written_clip, CPU)


@pytest.fixture
def embed(files, model, tmp_path):
    """Embed the split; returns the table and what was said."""

    def run(files=files, model=model, folder=tmp_path / "kept", **options):
        said = []
        table = embed_split(files, lambda: model, folder, Ranks(CPU), say=said.append, **options)
        return table, said

    return run


def same(a, b):
    return a.rows == b.rows and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("visual", "text", "classes")
    )


def only_file(folder):
    (path,) = folder.iterdir()
    return path


class Broken:
    """A model that is interrupted at its n-th part."""

    def __init__(self, model, parts):
        self._model, self._left = model, parts

    def __getattr__(self, name):
        return getattr(self._model, name)

    def embed_prepared(self, pixels):
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return self._model.embed_prepared(pixels)


def test_rows_are_the_embeddings_of_pictures_and_sentences(embed, files, model):
    table, said = embed()
    assert (table.visual.shape, table.text.shape) == ((12, 2, DIM), (12, DIM))
    assert table.rows == {name: row for row, name in enumerate(files.sample_ids)}
    torch.testing.assert_close(table.visual.norm(dim=-1), torch.ones(12, 2))
    sample, spec = SampleReader(files).read(7), files.spec
    for m, modality in enumerate(files.modalities):
        pixels = picture(modality, to_values(modality, sample.images[m]))
        alone = model.embed_images(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        torch.testing.assert_close(table.visual[7, m], alone[0], rtol=0, atol=1e-6)
    names = [spec.classes[i] for i in classes_by_area(sample.label, spec.num_classes)]
    sentence = Prompts().scene(names, [files.sample_ids[7].split("/")[0]])
    torch.testing.assert_close(table.text[7], model.embed_texts([sentence])[0], rtol=0, atol=1e-6)
    assert torch.equal(table.classes, model.embed_texts(Prompts().classes(spec.classes)))
    assert len(said) == 1
    assert said[0].startswith("embedding 12 samples by tiny-clip")


def test_rows_are_found_by_sample(embed, files):
    table, _ = embed()
    found = table.find([files.sample_ids[i] for i in (3, 0, 3)])
    assert (found.tolist(), found.dtype) == ([3, 0, 3], torch.int64)
    with pytest.raises(ValueError, match="no embedding of elsewhere among 12"):
        table.find(["elsewhere"])


def test_a_second_run_reads_what_the_first_has_written(embed, model, tmp_path):
    first, _ = embed()
    before = os.stat(only_file(tmp_path / "kept")).st_mtime_ns
    second, said = embed(model=Broken(model, 0))
    assert same(first, second)
    assert said == []
    assert os.stat(only_file(tmp_path / "kept")).st_mtime_ns == before


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_an_interrupted_filling_continues_to_the_same_bits(embed, model, tmp_path, parts):
    whole, _ = embed(folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        embed(model=Broken(model, parts))
    left, _ = embed(model=Broken(model, 3 - parts))
    assert same(left, whole)
    assert only_file(tmp_path / "kept").is_file()  # no parts are left


def test_a_damaged_part_is_made_again(embed, model, tmp_path):
    whole, _ = embed(folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        embed(model=Broken(model, 2))
    part = sorted((tmp_path / "kept").rglob("*.safetensors"))[1]
    part.write_bytes(part.read_bytes()[:-4])
    again, said = embed(model=Broken(model, 2))
    assert same(again, whole)
    assert any("00001.safetensors is damaged" in line for line in said)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def strip(path):
    save_file(load_file(path), path)


def shorten(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({n: t[:, :-1].contiguous() for n, t in load_file(path).items()}, path, metadata)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut, "is damaged"),
        (flip, "its checksum is wrong"),
        (strip, "was not written by fastseg"),
        (shorten, "holds tensors of other shapes"),
    ],
)
def test_a_file_that_does_not_serve_is_made_again(embed, tmp_path, spoil, reason):
    first, _ = embed()
    spoil(only_file(tmp_path / "kept"))
    again, said = embed()
    assert same(first, again)
    assert [reason in line and "made again" in line for line in said] == [True, False]
    assert embed()[1] == []


def test_other_weights_prompts_and_modalities_have_files_of_their_own(
    embed, files, model, tmp_path
):
    first, _ = embed()
    other_weights, said = embed(model=load_model(write_clip(tmp_path / "other", seed=1), CPU))
    assert not torch.allclose(other_weights.visual, first.visual, atol=1e-3)
    assert len(said) == 1
    other_words, _ = embed(prompts=Prompts(of_scene="a drawing"))
    assert not torch.allclose(other_words.text, first.text, atol=1e-3)
    embed(files=replace(files, modalities=files.modalities[:1]))
    assert len(list((tmp_path / "kept").iterdir())) == 4
    assert same(embed(model=Broken(model, 0))[0], first)


def test_changed_files_are_embedded_again(deliver_tree, embed, tmp_path):
    files = list_split(get_dataset("deliver"), deliver_tree, "train", NAMES)
    first, _ = embed(files=files)
    path = files.path(4, files.modalities[0].files[0])
    Image.new("RGB", (64, 64), (255, 0, 0)).save(path)
    again, said = embed(files=files)
    assert "was made from other file sizes, file times: it is made again" in said[0]
    changed = (again.visual != first.visual).any(dim=-1)
    assert changed.nonzero().tolist() == [[4, 0]]
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_repeated_samples_are_embedded_once(embed, files):
    table, _ = embed(files=replace(files, sample_ids=files.sample_ids * 3))
    assert same(table, embed()[0])


def test_samples_that_cannot_be_read_stop_or_are_left_out(deliver_tree, embed, files):
    files = list_split(get_dataset("deliver"), deliver_tree, "train", NAMES)
    whole, _ = embed(files=files)
    files.path(4, files.modalities[0].files[0]).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"rgb_front\.png"):
        embed(files=files)
    table, _ = embed(files=files, skip_damaged=True)
    kept = [row for row in range(len(files)) if row != 4]
    assert list(table.rows) == [files.sample_ids[row] for row in kept]
    torch.testing.assert_close(table.visual[kept], whole.visual[kept], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=f"no embedding of {files.sample_ids[4]}"):
        table.find([files.sample_ids[4]])


def test_an_absent_modality_is_a_blank_picture(embed, files, model):
    absent = replace(files, absent=frozenset({("img", files.sample_ids[2])}))
    table, _ = embed(files=absent)
    blank = model.embed_images(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    torch.testing.assert_close(table.visual[2, 0], blank[0], rtol=0, atol=1e-6)


def test_rank_0_embeds_and_the_others_read(files, model, tmp_path):
    store, loaded = HashStore(), []

    def load(rank):
        loaded.append(rank)
        return model

    def run(rank):
        ranks = Ranks(CPU, rank=rank, world=2, local_world=2, store=store)
        return embed_split(
            files, partial(load, rank), tmp_path / "kept", ranks, say=lambda text: None
        )

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, (0, 1))
    assert same(first, second)
    assert loaded == [0]


def test_a_rank_that_does_not_see_the_folder_says_so(files, model, tmp_path):
    store = HashStore()
    gone = [str(tmp_path / "gone.safetensors"), {}, DIM]
    store.set("fastseg/shared-1", json.dumps(gone))
    ranks = Ranks(CPU, rank=1, world=2, local_world=2, store=store)
    with pytest.raises(ConfigError, match=r"rank 1 cannot use .*folder that all machines share"):
        embed_split(files, lambda: model, tmp_path, ranks)


def test_the_training_samples_of_a_run(deliver_tree, embed, model, tmp_path):
    data = DataConfig(root=deliver_tree, missing="skip", damaged="skip")
    files = list_split(get_dataset("deliver"), deliver_tree, "train", NAMES[::-1])
    files.path(1, files.modalities[0].files[0]).unlink()
    files.path(2, files.modalities[1].files[0]).write_bytes(b"no picture")

    def run(**changes):
        settings = replace(data, **changes)
        return embed_dataset(settings, NAMES[::-1], lambda: model, tmp_path / "run", Ranks(CPU))

    kept = [row for row in range(len(files)) if row != 1]
    table = run()
    assert table.visual.shape == (15, 2, DIM)
    assert list(table.rows) == [files.sample_ids[row] for row in kept if row != 2]
    there = replace(files, sample_ids=tuple(files.sample_ids[row] for row in kept))
    assert same(table, embed(files=there, skip_damaged=True)[0])
    with pytest.raises(DataError, match="1 files of split 'train' are missing"):
        run(missing="error")
    with pytest.raises(DataError, match=r"rgb_front\.png"):
        run(missing="zero", damaged="error")
