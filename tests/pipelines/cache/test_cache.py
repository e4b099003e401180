"""The decoded cache: the same batches as from the files, refused when they differ from it."""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastseg import data
from fastseg.pipelines import Batch, DataConfig, DataError, get_dataset
from fastseg.pipelines.cache import write as pack
from fastseg.pipelines.cache.format import read_shard, readings
from fastseg.pipelines.cache.read import PackedStore, packed_folder
from fastseg.pipelines.cache.write import PackReport, pack_split
from fastseg.pipelines.datasets.split_files import list_split
from tests.support import dataset_trees as trees
from tests.support.loader_cases import LOADERS, Open, pack_all


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.sample_ids == b.sample_ids
        assert [code.dtype for code in a.codes] == [code.dtype for code in b.codes]
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def config_for(root: Path, dataset: str = "deliver", **change: object) -> DataConfig:
    size = 32 if dataset.startswith("mcubes") else 64
    settings = {"workers": 0, "loader": "torch", "jitter": 0.5, "blur": 0.5, **change}
    return DataConfig(
        dataset=dataset, root=root, size=size, batch_size=2, eval_batch_size=2, **settings
    )


# --- the same batches ----------------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("dataset", ["deliver", "muses", "mcubes", "mcubes-masked", "muses-npz"])
def test_batches_are_those_of_the_files(
    deliver_tree: Path,
    muses_tree: Path,
    mcubes_tree: Path,
    open_loader: Open,
    dataset: str,
    loader: str,
) -> None:
    roots = {"deliver": deliver_tree, "muses": muses_tree, "mcubes": mcubes_tree}
    root = roots[dataset.split("-")[0]]
    if dataset == "muses-npz":
        trees.write_muses_projected(root, suffix=".npz")
    config = config_for(root, dataset, loader=loader)
    files = [open_loader(config, train=train, seed=2) for train in (True, False)]
    pack_all(root, dataset)
    packed = [open_loader(config, train=train, seed=2) for train in (True, False)]
    for plain, cached in zip(files, packed, strict=True):
        assert "packed" not in plain.reason
        assert f"packed in {packed_folder(root, get_dataset(dataset))}" in cached.reason
        assert plain.fingerprint == cached.fingerprint
        assert_same(list(plain.batches(0, 8)), list(cached.batches(0, 8)))


@pytest.mark.parametrize("loader", LOADERS)
def test_a_large_event_image_of_another_size(
    tmp_path: Path, open_loader: Open, loader: str
) -> None:
    for frame in range(2):
        trees.write_deliver_sample(
            tmp_path, "rain", "train", "MAP_1_point2_eventlowres", f"{frame:06d}", side=560
        )
    config = replace(config_for(tmp_path, loader=loader, scale=(1.1, 2.0)), size=512)
    plain = list(open_loader(config, train=True).batches(0, 3))
    files = list_split(get_dataset("deliver"), tmp_path, "train")
    pack_split(files, tmp_path / "fast" / "train", progress=False)
    cached = open_loader(replace(config, packed=tmp_path / "fast"), train=True)
    assert_same(plain, list(cached.batches(0, 3)))


@pytest.mark.parametrize("loader", LOADERS)
def test_some_modalities_in_another_order(
    deliver_tree: Path, open_loader: Open, loader: str
) -> None:
    config = config_for(deliver_tree, loader=loader, modalities=("lidar", "img"))
    plain = list(open_loader(config, train=True).batches(0, 4))
    pack_all(deliver_tree)
    cached = open_loader(config, train=True)
    assert "packed" in cached.reason
    assert_same(plain, list(cached.batches(0, 4)))


def test_a_cache_of_an_earlier_version_counts() -> None:
    # kitti360 has files with a path template of their own; what decoders give has not changed since
    spec = get_dataset("kitti360")
    named, label = readings(spec, spec.modalities)
    assert dict(named) == {
        "img": "4d6112664e595d4c",
        "depth": "66138a4edebbb9af",
        "event": "4fdfd8ea2ad775f1",
        "lidar": "e6f471629015b072",
    }
    assert label == "b107468a283f0c60"


def test_readings_that_differ_later_share_a_cache(deliver_tree: Path, open_loader: Open) -> None:
    folder = pack_all(deliver_tree)
    for dataset in ("deliver-cmnext", "deliver-standardised"):
        plain = config_for(deliver_tree, dataset)
        cached = replace(plain, packed=folder)
        assert_same(
            list(open_loader(plain, train=True).batches(0, 3)),
            list(open_loader(cached, train=True).batches(0, 3)),
        )


@pytest.mark.parametrize("loader", LOADERS)
def test_missing_files_stay_missing(muses_tree: Path, open_loader: Open, loader: str) -> None:
    gone = min((muses_tree / "projected_to_rgb/lidar/val").rglob("*.png"))
    kept = gone.read_bytes()
    gone.unlink()
    config = config_for(muses_tree, "muses", loader=loader, missing="zero")
    plain = list(open_loader(config, train=False).batches())
    pack_all(muses_tree, "muses", missing="zero")
    cached = open_loader(config, train=False)
    assert "packed in" in cached.reason
    assert_same(plain, list(cached.batches()))
    gone.write_bytes(kept)
    assert f"{gone} has changed" in open_loader(config, train=False).reason


@pytest.mark.parametrize("change", [{"workers": 2}, {"cache": True}, {"cache": True, "workers": 1}])
def test_how_batches_are_made_does_not_matter(
    deliver_tree: Path, open_loader: Open, change: dict[str, object]
) -> None:
    pack_all(deliver_tree)
    config = config_for(deliver_tree)
    wanted = list(open_loader(config, train=True).batches(0, 9))
    loader = open_loader(replace(config, **change), train=True)
    assert_same(list(loader.batches(0, 9)), wanted)
    assert_same(list(loader.batches(3, 9)), wanted[3:])


def test_arrays_are_mapped_not_copied_and_read_only(deliver_tree: Path) -> None:
    pack_all(deliver_tree)
    spec = get_dataset("deliver")
    files = list_split(spec, deliver_tree, "train")
    store = PackedStore(files, packed_folder(deliver_tree, spec) / "train")
    image, label = store.image(3, spec.modalities[1]), store.label(3)
    for array in (image, label):
        assert not array.flags.writeable
        assert not array.flags.owndata
    again = pickle.loads(pickle.dumps(store))  # as a spawned worker gets it
    np.testing.assert_array_equal(again.image(3, spec.modalities[1]), image)


# --- when it is used -----------------------------------------------------------------------------


def test_the_cache_beside_the_data_can_be_refused(deliver_tree: Path, open_loader: Open) -> None:
    pack_all(deliver_tree)
    config = config_for(deliver_tree)
    assert "packed in" in open_loader(config, train=True).reason
    assert "packed" not in open_loader(replace(config, packed_auto=False), train=True).reason


def spoil(root: Path, how: str) -> str:
    """Change data or cache; returns what the refusal must say."""
    folder = packed_folder(root, get_dataset("deliver")) / "train"
    image = sorted(root.glob("hha/*/train/*/*.png"))[5]
    arrays, record = folder / "00000.bin", folder / "00000.json"
    if how == "other content":
        trees.save(image, np.zeros((64, 64, 3)))
        return f"{image} has changed since it was packed"
    if how == "new sample":
        trees.write_deliver_sample(root, "sun", "train", "MAP_9_point9", "000000")
        return "lacks 1 of 17 samples, such as sun/train/MAP_9_point9/000000"
    if how == "short arrays":
        arrays.write_bytes(arrays.read_bytes()[:-64])
        return f"{arrays} has "
    if how == "no arrays":
        arrays.unlink()
        return f"cannot read {arrays}"
    if how == "record":
        text = record.read_text()
        record.write_text(text.replace('"height": 64', '"height": 63', 1))
        return f"{record} is damaged (its checksum is wrong)"
    if how == "cut record":
        record.write_text(record.read_text()[:-200])
        return f"{record} is damaged"
    for path in folder.glob("*.json"):
        path.unlink()
    return "holds no packed samples"


FAULTS = [
    *("other content", "new sample", "short arrays", "no arrays"),
    *("record", "cut record", "no records"),
]


@pytest.mark.parametrize("how", FAULTS)
def test_a_stale_or_damaged_cache_is_refused_with_the_remedy(
    deliver_tree: Path, open_loader: Open, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    folder = pack_all(deliver_tree)
    message = spoil(deliver_tree, how)
    config = config_for(deliver_tree)
    # found by itself, it is left alone, and the reason says why
    loader = open_loader(config, train=True)
    assert "files are decoded, because the packed ones cannot be used: " in loader.reason
    assert message in loader.reason
    plain = list(loader.batches(0, 8))
    # named, it is an error
    named = replace(config, packed=folder)
    with pytest.raises(DataError) as caught:
        open_loader(named, train=True)
    assert message in str(caught.value)
    remedy = str(caught.value).partition("run python -m fastseg.data ")[2].partition(", or ")[0]
    assert data.main([*remedy.split(), "--workers", "1"]) == 0
    assert "16 samples" in capsys.readouterr().out or how == "new sample"
    assert_same(plain, list(open_loader(named, train=True).batches(0, 8)))


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_changed_bytes_are_found_when_they_are_read(
    deliver_tree: Path, open_loader: Open, loader: str, workers: int
) -> None:
    folder = pack_all(deliver_tree)
    arrays = folder / "train" / "00000.bin"
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 4
    arrays.write_bytes(content)
    opened = open_loader(config_for(deliver_tree, loader=loader, workers=workers), train=True)
    with pytest.raises(DataError, match=r"the bytes of .* have changed; run python") as caught:
        list(opened.batches(0, 8))
    assert str(arrays) in str(caught.value)


def test_another_reading_needs_another_cache(deliver_tree: Path) -> None:
    folder = pack_all(deliver_tree)
    spec = get_dataset("deliver")
    files = list_split(spec, deliver_tree, "train")
    other = replace(spec.modalities[0], channels=(2, 1, 0))
    with pytest.raises(DataError, match="holds img decoded by other rules"):
        PackedStore(replace(files, modalities=(other,)), folder / "train")
    table = (*spec.label.table[:-2], 3, 255)
    relabelled = replace(spec, label=replace(spec.label, table=table))
    with pytest.raises(DataError, match="holds labels made by other rules"):
        PackedStore(replace(files, spec=relabelled), folder / "train")
    grey = list_split(spec, deliver_tree, "train", ["grey_depth"])
    with pytest.raises(DataError, match="holds img, depth, event, lidar, but not grey_depth"):
        PackedStore(grey, folder / "train")


# --- writing -------------------------------------------------------------------------------------


def state(folder: Path) -> dict[str, tuple[int, int]]:
    files = [p for p in folder.iterdir() if p.name != ".fastseg-pack"]
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in files}


def test_many_shards_and_a_second_run(deliver_tree: Path) -> None:
    spec = get_dataset("deliver")
    files = list_split(spec, deliver_tree, "train")
    folder = deliver_tree / "fast"
    # 13 planes of 64 x 64; four samples have events of 31 x 31, padded to 2944 bytes
    size = 16 * 13 * 64 * 64 - 4 * (3 * 64 * 64 - 2944)
    assert pack_split(files, folder, 1, progress=False) == PackReport(16, 0, size)
    before = state(folder)
    assert set(before) == {"00000.bin", "00000.json"}
    assert pack_split(files, folder, 1, progress=False).kept == 16
    assert state(folder) == before


@pytest.fixture
def four_shards(deliver_tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root whose samples are packed four to a shard."""
    monkeypatch.setattr(pack, "_samples_per_shard", lambda *_: 4)
    return deliver_tree


def test_an_interrupted_run_continues(
    four_shards: Path, monkeypatch: pytest.MonkeyPatch, open_loader: Open
) -> None:
    files = list_split(get_dataset("deliver"), four_shards, "train")
    folder = packed_folder(four_shards, files.spec) / "train"
    decode = pack._decode

    def interrupted(files_: object, index: int) -> object:
        if index == 10:
            raise KeyboardInterrupt
        return decode(files_, index)

    monkeypatch.setattr(pack, "_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack_split(files, folder, workers=1, progress=False)
    done = state(folder)
    assert set(done) == {"00000.bin", "00000.json", "00001.bin", "00001.json"}
    assert "lacks 8 of 16 samples" in open_loader(config_for(four_shards), train=True).reason

    monkeypatch.setattr(pack, "_decode", decode)
    assert pack_split(files, folder, workers=1, progress=False).kept == 8
    assert {name: now for name, now in state(folder).items() if name in done} == done
    assert "packed in" in open_loader(config_for(four_shards), train=True).reason


def test_only_what_changed_is_decoded_again(four_shards: Path) -> None:
    files = list_split(get_dataset("deliver"), four_shards, "train")
    folder = four_shards / "fast"
    pack_split(files, folder, progress=False)
    before = state(folder)
    touched, changed = (files.path(i, files.modalities[1].files[0]) for i in (1, 9))
    os.utime(touched, ns=(1, 1))  # copied without its time
    trees.save(changed, np.zeros((64, 64, 3)))
    with pytest.raises(DataError, match="has changed since it was packed"):
        PackedStore(files, folder)
    assert pack_split(files, folder, progress=False).kept == 12
    after = state(folder)
    assert {name for name in after if after[name] != before[name]} == {
        *("00000.json", "00002.bin", "00002.json")
    }
    store = PackedStore(files, folder)
    assert (store.image(9, files.modalities[1]) == 0).all()


@pytest.mark.parametrize("name", ["00000.bin", "00000.json", "notes.txt"])
def test_files_of_others_are_not_overwritten(deliver_tree: Path, name: str) -> None:
    files = list_split(get_dataset("deliver"), deliver_tree, "train")
    mine = {name: b'{"mine": 1}', ".mine.partial": b"mine"}
    folder = deliver_tree / "clouds"
    folder.mkdir()
    for path, content in mine.items():
        (folder / path).write_bytes(content)
    with pytest.raises(DataError, match=f"holds other files, such as {name}.*nothing was written"):
        pack_split(files, folder, progress=False)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == mine


def test_a_cache_from_before_the_mark_is_known(deliver_tree: Path) -> None:
    files = list_split(get_dataset("deliver"), deliver_tree, "train")
    folder = deliver_tree / "fast"
    pack_split(files, folder, progress=False)
    (folder / ".fastseg-pack").unlink()
    assert pack_split(files, folder, progress=False).kept == len(files)


def test_fewer_samples_leave_no_shards_behind(four_shards: Path) -> None:
    files = list_split(get_dataset("deliver"), four_shards, "train")
    folder = four_shards / "fast"
    pack_split(files, folder, progress=False)
    fewer = replace(files, sample_ids=files.sample_ids[:6])
    assert pack_split(fewer, folder, progress=False).kept == 4
    assert set(state(folder)) == {"00000.bin", "00000.json", "00001.bin", "00001.json"}
    assert len(read_shard(folder / "00001.json").samples) == 2


def test_a_full_disk_is_foreseen(deliver_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = list_split(get_dataset("deliver"), deliver_tree, "train")
    usage = shutil.disk_usage(deliver_tree)._replace(free=1000)
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"packing needs about .* MiB more at .* --out"):
        pack_split(files, deliver_tree / "fast", progress=False)
    assert list((deliver_tree / "fast").iterdir()) == []


def test_a_bad_file_is_named_and_leaves_nothing_half_done(deliver_tree: Path) -> None:
    files = list_split(get_dataset("deliver"), deliver_tree, "train")
    victim = files.path(7, files.modalities[0].files[0])
    victim.write_bytes(victim.read_bytes()[:500])
    with pytest.raises(DataError, match="is damaged") as caught:
        pack_split(files, deliver_tree / "fast", progress=False)
    assert str(victim) in str(caught.value)
    assert list((deliver_tree / "fast").iterdir()) == []


def test_the_command(deliver_tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["pack", "--root", str(deliver_tree), "--workers", "1"]
    assert data.main(arguments) == 0
    folder = packed_folder(deliver_tree, get_dataset("deliver"))
    said = capsys.readouterr().out
    assert f"{folder / 'train'}: 16 samples, 0.00 GiB" in said
    assert f"{folder / 'val'}: 6 samples" in said
    assert data.main(arguments) == 0
    assert "16 samples (16 were up to date)" in capsys.readouterr().out
    assert data.main([*arguments, "--dataset", "muses-raw"]) == 2
    assert "raw sensor data" in capsys.readouterr().err
