from __future__ import annotations

import multiprocessing
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.pipelines import Batch, DataConfig, DataError, Loader, build, build_loader, get_dataset
from fastseg.pipelines.cache.read import packed_folder
from fastseg.pipelines.cache.write import pack_split
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.tools.prefetch import ThreadPrefetcher
from tests.support.loader_cases import LOADERS, needs_dali

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def config(deliver_tree: Path) -> DataConfig:
    return DataConfig(
        root=deliver_tree, size=64, batch_size=3, eval_batch_size=4, workers=0, loader="torch"
    )


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.sample_ids == b.sample_ids
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("name", LOADERS)
def test_contract(config: DataConfig, open_loader: Callable[..., Loader], name: str) -> None:
    loader = open_loader(replace(config, loader=name), train=True)
    assert (loader.name, loader.num_samples, loader.steps_per_epoch) == (name, 16, 5)
    assert loader.reason
    batch = next(loader.batches())
    assert batch.images.shape == (4, 3, 3, 64, 64)
    assert batch.labels.shape == (3, 64, 64)
    assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
    assert batch.modalities == ("img", "depth", "event", "lidar")
    assert len(batch.sample_ids) == 3
    assert set(batch.labels.unique().tolist()) <= {*range(25), 255}


@pytest.mark.parametrize("name", LOADERS)
def test_native_size_gives_the_files_content(
    config: DataConfig, open_loader: Callable[..., Loader], name: str
) -> None:
    loader = open_loader(replace(config, loader=name), train=False)
    batches = list(loader.batches())
    assert [len(batch.sample_ids) for batch in batches] == [4, 2]
    assert [i for b in batches for i in b.sample_ids] == sorted(
        i for b in batches for i in b.sample_ids
    )
    batch = batches[1]  # two samples of the fog scene, all files of one size
    for position, sample_id in enumerate(batch.sample_ids):
        for m, (folder, tag) in enumerate(
            [("img", "rgb"), ("hha", "depth"), ("event", "event"), ("lidar", "lidar")]
        ):
            path = config.root / folder / f"{sample_id}_{tag}_front.png"
            expected = np.array(Image.open(path).convert("RGB")) / 255
            if folder == "img":
                expected = (expected - MEAN) / STD
            image = batch.images[m, position].permute(1, 2, 0).double().numpy()
            np.testing.assert_allclose(image, expected, atol=2e-6)
        raw = np.array(Image.open(config.root / "semantic" / f"{sample_id}_semantic_front.png"))
        red = raw[..., 0].astype(int)
        expected = np.where((red == 0) | (red == 255), 255, red - 1)
        np.testing.assert_array_equal(batch.labels[position], expected)


@pytest.mark.fault("F10")
def test_small_events_are_brought_to_the_label_by_nearest(
    config: DataConfig, open_loader: Callable[..., Loader]
) -> None:
    batch = next(open_loader(config, train=False).batches())
    assert "eventlowres" in batch.sample_ids[0]
    stored = np.array(Image.open(config.root / "event" / f"{batch.sample_ids[0]}_event_front.png"))
    index = np.arange(64) * stored.shape[0] // 64
    shown = batch.images[2, 0].permute(1, 2, 0).numpy() * 255
    np.testing.assert_array_equal(shown.round(), stored[index][:, index])


@needs_dali
def test_both_loaders_agree_exactly_without_augmentation(
    config: DataConfig, open_loader: Callable[..., Loader]
) -> None:
    ours = list(open_loader(config, train=False).batches())
    dali = list(open_loader(replace(config, loader="dali"), train=False).batches())
    assert_same(ours, dali)


@needs_dali
def test_both_loaders_apply_the_same_draws(
    config: DataConfig, open_loader: Callable[..., Loader]
) -> None:
    ours = open_loader(config, train=True, seed=4).batches(0, 10)
    dali = open_loader(replace(config, loader="dali"), train=True, seed=4).batches(0, 10)
    padded = 0
    for a, b in zip(ours, dali, strict=True):
        assert a.sample_ids == b.sample_ids
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images[2:], b.images[2:])  # event and lidar are resized by nearest
        levels = (a.images[:2] - b.images[:2]).abs() * 255 * 0.23
        assert levels.max() < 1.1
        assert (levels > 0.1).float().mean() < 0.01
        padded += int((a.labels[:, -1, -1] == 255).sum())
    assert padded > 0  # the draws include images smaller than the crop


@pytest.mark.parametrize("name", LOADERS)
def test_training_starts_at_any_step(
    config: DataConfig, open_loader: Callable[..., Loader], name: str
) -> None:
    settings = replace(config, loader=name)
    whole = list(open_loader(settings, train=True, seed=7).batches(0, 8))
    assert_same(list(open_loader(settings, train=True, seed=7).batches(4, 8)), whole[4:])
    loader = open_loader(settings, train=True, seed=7)
    next(loader.batches(2))
    assert_same(list(loader.batches(6, 8)), whole[6:])
    other = next(open_loader(settings, train=True, seed=8).batches())
    assert other.sample_ids != whole[0].sample_ids


@pytest.mark.parametrize(
    "change",
    [{"workers": 2}, {"workers": 1, "cache": True}, {"cache": True}],
    ids=["processes", "thread", "cache"],
)
def test_how_batches_are_made_does_not_matter(
    config: DataConfig, open_loader: Callable[..., Loader], change: dict[str, object]
) -> None:
    plain, other = (
        open_loader(config, train=True),
        open_loader(replace(config, **change), train=True),
    )
    wanted = list(plain.batches(0, 7))
    assert_same(list(other.batches(0, 7)), wanted)
    assert_same(list(islice(other.batches(3), 3)), wanted[3:6])  # again, from an endless stream
    evaluation = open_loader(replace(config, **change), train=False)
    for _ in range(2):
        assert_same(list(evaluation.batches()), list(open_loader(config, train=False).batches()))


def test_two_processes_see_the_same_global_batch(
    config: DataConfig, open_loader: Callable[..., Loader]
) -> None:
    one = list(open_loader(replace(config, batch_size=4), train=True).batches(0, 3))
    halves = [
        list(open_loader(replace(config, batch_size=2), train=True, rank=r, world=2).batches(0, 3))
        for r in range(2)
    ]
    for step in range(3):
        together = {
            name: batch.images[:, position]
            for batch in (halves[0][step], halves[1][step])
            for position, name in enumerate(batch.sample_ids)
        }
        assert set(together) == set(one[step].sample_ids)
        for position, name in enumerate(one[step].sample_ids):
            assert torch.equal(together[name], one[step].images[:, position])


@pytest.mark.fault("F27")
@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_is_exact_on_any_number_of_processes(
    config: DataConfig, open_loader: Callable[..., Loader], world: int
) -> None:
    seen = [
        name
        for rank in range(world)
        for batch in open_loader(config, train=False, rank=rank, world=world).batches()
        for name in batch.sample_ids
    ]
    assert len(seen) == len(set(seen)) == 6


@pytest.mark.fault("F30")
@pytest.mark.parametrize("name", LOADERS)
def test_modalities_follow_the_config(
    config: DataConfig, open_loader: Callable[..., Loader], name: str
) -> None:
    every = next(open_loader(replace(config, loader=name), train=True).batches())
    chosen = replace(config, loader=name, modalities=("lidar", "img"))
    batch = next(open_loader(chosen, train=True).batches())
    assert batch.modalities == ("lidar", "img")
    assert torch.equal(batch.images, every.images[[3, 0]])


def test_padding_is_black_and_ignored(
    config: DataConfig, open_loader: Callable[..., Loader]
) -> None:
    batch = next(open_loader(replace(config, scale=(0.5, 0.5)), train=True).batches())
    assert (batch.labels[:, 32:] == 255).all()
    assert (batch.labels[:, :, 32:] == 255).all()
    assert (batch.labels[:, :32, :32] != 255).any()
    black = torch.tensor(-MEAN / STD).float().reshape(3, 1, 1)
    torch.testing.assert_close(batch.images[0, :, :, 32:], black.expand(3, 3, 32, 64))
    assert (batch.images[1:, :, :, 32:] == 0).all()


def test_flip_and_crop_are_shared_by_images_and_label(
    config: DataConfig, open_loader: Callable[..., Loader], add_sample: Callable[..., None]
) -> None:
    # the label of this scene is written into its pictures
    root = config.root.parent / "shared"
    for frame in range(4):
        add_sample(root, "sun", "train", "MAP_1_point1", f"{frame:06d}")
    for label in root.glob("semantic/*/*/*/*.png"):
        red = np.array(Image.open(label))[..., 0]
        for folder, tag in (("lidar", "lidar"), ("event", "event")):
            path = str(label).replace("semantic", folder, 1).replace("_semantic_", f"_{tag}_")
            Image.fromarray(red).save(path)
    loader = open_loader(replace(config, root=root, batch_size=4), train=True)
    flips = set()
    for batch in loader.batches(0, 6):
        for m in (2, 3):
            raw = (batch.images[m, :, 0] * 255).round().long()
            expected = torch.where((raw == 0) | (raw == 255), 255, raw - 1)
            assert torch.equal(batch.labels, expected)
        flips.add(tuple(batch.images[1, :, 2, 0, 0].tolist()))
    assert len(flips) > 1


def break_file(config: DataConfig, how: str) -> Path:
    """Spoil one training sample that is not the first, which is checked when a loader is made."""
    stem = "night/train/MAP_2_point7/000001"
    tags = {"img": "rgb", "hha": "depth", "semantic": "semantic"}
    folder = {"torn": "img", "size": "hha"}.get(how, "semantic")
    path = config.root / folder / f"{stem}_{tags[folder]}_front.png"
    pixels = np.array(Image.open(path))
    if how == "torn":
        path.write_bytes(path.read_bytes()[:-4000])
    elif how == "size":
        Image.fromarray(pixels[:40, :32]).save(path)
    elif how == "value":
        pixels[5, 6, 0] = 99
        Image.fromarray(pixels).save(path)
    elif how == "palette":
        Image.fromarray(pixels[..., 0]).convert("P").save(path)
    else:
        path.unlink()
    return path


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("torn", "is damaged"),
        ("size", "is 32 x 40 pixels, its label is 64 x 64"),
        ("value", "label value 99"),
        ("palette", "is a palette PNG"),
        ("gone", "cannot read"),
    ],
)
@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_named(
    config: DataConfig,
    open_loader: Callable[..., Loader],
    name: str,
    how: str,
    message: str,
    workers: int,
) -> None:
    settings = replace(config, loader=name, workers=workers, scale=(1, 1))
    loader = open_loader(settings, train=True)
    path = break_file(config, how)
    with pytest.raises(DataError, match=message) as caught:
        list(loader.batches(0, 6))
    assert str(path) in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_bad_first_sample_is_found_when_the_loader_is_made(config: DataConfig) -> None:
    first = min(config.root.glob("semantic/*/train/*/*.png"))
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(first)
    with pytest.raises(DataError, match="label value 77"):
        build_loader(config, train=True)


def test_too_few_samples_for_a_batch(config: DataConfig) -> None:
    with pytest.raises(DataError, match=r"--data\.batch-size to at most 8"):
        build_loader(replace(config, batch_size=9), train=True, world=2)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("packed", [False, True], ids=["files", "packed"])
def test_an_evaluation_batch_has_images_of_one_shape(
    config: DataConfig,
    open_loader: Callable[..., Loader],
    add_sample: Callable[..., None],
    name: str,
    packed: bool,
) -> None:
    """Whatever the batch size, each sample is what it is alone."""
    for frame in ("000000", "000001"):
        add_sample(config.root, "fog", "val", "MAP_3_point0", frame, side=64)
    for path in config.root.glob("*/fog/val/MAP_3_point0/*.png"):
        Image.fromarray(np.array(Image.open(path))[:32]).save(path)
    if packed:
        spec = get_dataset("deliver")
        folder = packed_folder(config.root, spec) / "val"
        pack_split(list_split(spec, config.root, "val"), folder, workers=1, progress=False)
    one_by_one = replace(config, loader=name, eval_batch_size=1)
    alone = list(open_loader(one_by_one, train=False).batches())
    assert len({batch.images.shape for batch in alone}) == 2
    loader = open_loader(replace(config, loader=name, eval_batch_size=4), train=False)
    together = list(loader.batches())
    assert loader.steps_per_epoch == len(together)
    assert max(len(batch.sample_ids) for batch in together) > 1
    rows = [(batch, row) for batch in together for row in range(len(batch.sample_ids))]
    assert [b.sample_ids[r] for b, r in rows] == [batch.sample_ids[0] for batch in alone]
    for (batch, row), one in zip(rows, alone, strict=True):
        assert torch.equal(batch.images[:, row], one.images[:, 0])
        assert torch.equal(batch.labels[row], one.labels[0])


@pytest.mark.fault("F36")
def test_which_loader_is_chosen(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(problem: str | None, *, gpu: bool, **change: object) -> tuple[str, str]:
        monkeypatch.setattr(build, "dali_import_error", lambda: problem)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        kind, reason = build.choose_loader(replace(config, **change))
        return kind.name, reason

    missing = "ImportError: no module named nvidia"
    assert choose(None, gpu=True, loader="auto")[0] == "dali"
    assert choose(None, gpu=False, loader="auto") == (
        "torch",
        "no GPU, and on the CPU DALI is not faster",
    )
    assert choose(missing, gpu=True, loader="auto") == (
        "torch",
        f"DALI cannot be used: {missing}",
    )
    assert choose(None, gpu=True, loader="auto", cache=True)[0] == "torch"
    assert choose(None, gpu=False, loader="dali")[0] == "dali"
    with pytest.raises(DataError, match=r"no module named nvidia.*\.\[dali\]"):
        choose(missing, gpu=True, loader="dali")
    with pytest.raises(DataError, match=r"--data.cache.*--data.loader torch"):
        choose(None, gpu=True, loader="dali", cache=True)


@pytest.fixture
def stub_dali(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts a package of DALI's name with this text in front of what is installed."""

    def loaded() -> list[str]:
        return [n for n in sys.modules if n == "nvidia" or n.startswith("nvidia.dali")]

    def put(text: str) -> None:
        package = tmp_path / "packages" / "nvidia" / "dali"
        (package / "plugin").mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").write_text(text)
        for name in ("__init__", "pytorch"):
            (package / "plugin" / f"{name}.py").touch()
        for name in loaded():
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(str(package.parents[1]))

    yield put
    for name in loaded():  # the stubs; what was there comes back
        del sys.modules[name]


@pytest.mark.fault("F36")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("__version__ = '1.51.2'", "version 1.51.2 is older than 2.4"),
        ("raise OSError('libcuda.so.1: cannot open')", "OSError: libcuda.so.1: cannot open"),
        ("import nvidia.gone", "ModuleNotFoundError: No module named 'nvidia.gone'"),
    ],
    ids=["too old", "no driver", "absent"],
)
def test_a_dali_that_does_not_serve_is_not_used(
    config: DataConfig, stub_dali: Callable[[str], None], text: str, reason: str
) -> None:
    stub_dali(text)
    loader = build_loader(replace(config, loader="auto"), train=False)
    assert (loader.name, loader.reason) == ("torch", f"DALI cannot be used: {reason}")
    assert len(next(loader.batches()).sample_ids) == 4
    with pytest.raises(DataError, match=rf"{re.escape(reason)}.*\.\[dali\]"):
        build_loader(replace(config, loader="dali"), train=False)


def prefetch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("fastseg-prefetch")]


def test_threads_end_with_their_stream(config: DataConfig) -> None:
    loader = build_loader(replace(config, workers=1, cache=True), train=True)
    stream = loader.batches()
    next(stream)
    assert len(prefetch_threads()) == 1
    stream.close()
    assert not prefetch_threads()

    forgotten = loader.batches()
    next(forgotten)
    loader.close()
    assert not prefetch_threads()
    assert list(forgotten) == []
    loader.close()


def test_worker_processes_end_with_their_loader(config: DataConfig) -> None:
    loader = build_loader(replace(config, workers=1), train=True)
    stream = loader.batches()
    next(stream)
    ours = multiprocessing.active_children()
    assert len(ours) == 1
    loader.close()
    deadline = time.monotonic() + 10
    while any(process.is_alive() for process in ours) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(process.is_alive() for process in ours)
    assert list(stream) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_new_stream_ends_the_old_one(
    config: DataConfig, open_loader: Callable[..., Loader], workers: int
) -> None:
    loader = open_loader(replace(config, workers=workers), train=True)
    old = loader.batches()
    next(old)
    new = loader.batches(2)
    first = next(new)
    assert list(old) == []
    assert_same([first, next(new)], list(open_loader(config, train=True).batches(2, 4)))


@pytest.mark.parametrize("threads", [1, 3])
def test_prefetcher_keeps_the_order_and_raises_at_its_place(threads: int) -> None:
    def item(key: int) -> int:
        if key == 3:
            raise DataError("third")
        time.sleep(0.02 * (3 - key))  # the first is the slowest
        return key

    prefetcher = ThreadPrefetcher(item, range(1, 9), threads)
    stream = iter(prefetcher)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(DataError, match="third"):
        next(stream)
    prefetcher.close()
    prefetcher.close()


def test_prefetcher_does_not_run_ahead_without_bound() -> None:
    made: list[int] = []
    prefetcher = ThreadPrefetcher(made.append, range(100), threads=2, depth=2)
    stream = iter(prefetcher)
    assert next(stream) is None
    time.sleep(0.2)
    assert len(made) == 5  # one taken, two per thread ahead
    prefetcher.close()
    assert list(stream) == []
