"""Faults of sensors: what each does, to whom, and that a draw depends on its key alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastseg.pipelines import Batch, CorruptionConfig, DataConfig, DataError, get_dataset
from fastseg.pipelines.datasets.spec import ModalitySpec
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.faults import image_faults as faults
from fastseg.pipelines.faults.sensor_faults import Corruptor, describe
from fastseg.pipelines.loaders.dali.loader import dali_import_error
from fastseg.pipelines.loaders.samples import FileStore
from tests.support import dataset_trees as trees
from tests.support.loader_cases import LOADERS, Open, corrupted, evaluated, needs_dali, pack_all

EACH = ("freeze", "low_resolution", "lidar_jitter", "gaussian", "poisson", "shift", "blackout")


@pytest.fixture
def config(deliver_tree: Path) -> DataConfig:
    """Evaluation of the 16 training samples, one batch."""
    return DataConfig(
        root=deliver_tree,
        size=64,
        batch_size=4,
        eval_batch_size=16,
        eval_split="train",
        workers=0,
        loader="torch",
    )


def changed(batch: Batch, plain: Batch) -> list[list[int]]:
    """Per modality, the samples whose codes differ."""
    return [
        [b for b in range(len(batch.sample_ids)) if not torch.equal(ours[b], theirs[b])]
        for ours, theirs in zip(batch.codes, plain.codes, strict=True)
    ]


# --- each fault ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "hit"),
    [
        ("blackout", [0, 1, 2, 3]),
        ("shift", [0, 1, 2, 3]),
        ("freeze", [0, 2, 3]),  # the depth of this tree is the same in all frames
        ("gaussian", [0]),
        ("poisson", [0]),
        ("low_resolution", [2]),
        ("lidar_jitter", [3]),
    ],
)
def test_each_fault_hits_its_sensors(
    config: DataConfig, open_loader: Open, fault: str, hit: list[int]
) -> None:
    plain = evaluated(config, open_loader)
    batch = evaluated(corrupted(config, **{fault: 1}), open_loader)
    found = changed(batch, plain)
    assert [m for m, samples in enumerate(found) if samples] == hit
    assert torch.equal(batch.labels, plain.labels)
    assert [code.dtype for code in batch.codes] == [code.dtype for code in plain.codes]
    if fault not in ("freeze", "shift", "lidar_jitter"):  # these may move nothing
        assert all(len(found[m]) == 16 for m in hit)
    only = corrupted(config, **{fault: 1}, modalities=(batch.modalities[hit[-1]],))
    assert [m for m, s in enumerate(changed(evaluated(only, open_loader), plain)) if s] == hit[-1:]


def test_blackout_is_the_empty_code(muses_tree: Path, open_loader: Open) -> None:
    config = DataConfig(dataset="muses", root=muses_tree, size=64, eval_batch_size=2, workers=0)
    batch = evaluated(replace(corrupted(config, blackout=1), loader="torch"), open_loader)
    for modality, code in zip(get_dataset("muses").modalities, batch.codes, strict=True):
        assert (code.int() == modality.empty).all()
    assert batch.images[2].mul(13.347).add(4.917)[:, 0].abs().max() < 1e-2  # range 0, not -100 m


def test_freeze_repeats_the_frame_before(config: DataConfig, open_loader: Open) -> None:
    plain = evaluated(config, open_loader)
    batch = evaluated(corrupted(config, freeze=1), open_loader)
    place = {name: b for b, name in enumerate(plain.sample_ids)}
    for b, name in enumerate(batch.sample_ids):
        scene, frame = name.rsplit("/", 1)
        before = place.get(f"{scene}/{int(frame) - 1:06d}", b)  # the first frame has none
        for ours, theirs in zip(batch.codes, plain.codes, strict=True):
            assert torch.equal(ours[b], theirs[before])


def test_scenes_are_told_apart_by_the_number_at_the_end(tmp_path: Path) -> None:
    ids = ("a_9", "b_1", "a_10", "a_2", "c")
    files = list_split(get_dataset("mcubes"), trees.write_mcubes(tmp_path), "train")
    files = replace(files, sample_ids=ids)
    assert Corruptor(CorruptionConfig(), files, 0).before == {0: 3, 2: 0}
    twice = replace(files, sample_ids=ids * 2)
    assert Corruptor(CorruptionConfig(), twice, 0).before == {0: 3, 2: 0, 5: 3, 7: 0}


def test_shift_moves_whole_pixels() -> None:
    image = np.arange(1, 61, dtype=np.uint8).reshape(1, 6, 10).repeat(3, axis=0)
    moved = faults.shift(image, 0, 2, -3)
    np.testing.assert_array_equal(moved[:, 2:, :-3], image[:, :-2, 3:])
    assert (moved[:, :2] == 0).all()
    assert (moved[:, :, -3:] == 0).all()
    np.testing.assert_array_equal(faults.shift(image, 0, 0, 0), image)
    assert (faults.shift(image, 7, 99, 0) == 7).all()


def test_shift_stays_in_its_range(config: DataConfig, open_loader: Open) -> None:
    plain = evaluated(config, open_loader)
    batch = evaluated(corrupted(config, shift=1, shift_by=0.05), open_loader)
    moves = set()
    for b in range(16):  # 0.05 of 64 pixels: at most 3
        for m in range(4):
            image = plain.codes[m][b].numpy()
            found = [
                (down, right)
                for down in range(-3, 4)
                for right in range(-3, 4)
                if np.array_equal(faults.shift(image, 0, down, right), batch.codes[m][b])
            ]
            assert found
            moves.add(found[0])
    assert len(moves) > 15  # of 49, in 64 draws


def test_low_resolution_keeps_every_second_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    coarse = faults.low_resolution(image, 0.5)
    np.testing.assert_array_equal(coarse, image[:, ::2, ::2].repeat(2, axis=1).repeat(2, axis=2))


def test_lidar_jitter_moves_returns_and_keeps_the_nearest() -> None:
    g = np.random.default_rng(0)
    hits = g.random((200, 200)) < 0.05
    image = (hits * g.integers(1, 101, (200, 200))).astype(np.uint8)[None].repeat(3, axis=0)
    turned = faults.lidar_jitter(image, 0, math.atan(0.07), 0.0, (1,))
    np.testing.assert_array_equal(turned, faults.shift(image, 0, 0, 7))  # 200 / 2 * 0.07

    spread = faults.lidar_jitter(image, 0, 0.0, 0.01, (1,))  # 2 pixels
    assert 0.85 < (spread > 0).sum() / (image > 0).sum() < 1  # some fall on others
    assert set(np.unique(spread)) <= set(np.unique(image))
    crowd = np.zeros((3, 1, 9), np.uint8)
    crowd[:, 0, :4] = [50, 7, 90, 60]
    pile = [faults.lidar_jitter(crowd, 0, 0.0, 1.5, (seed,)) for seed in range(200)]
    # of returns that land on one pixel the one with the smallest range is left
    assert all(7 in p for p in pile if (p[0] > 0).sum() == 1 and p[0].max() < 50)
    assert any((p[0] > 0).sum() < 3 for p in pile)


@pytest.mark.fault("F12")
def test_blank_lidar_survives() -> None:
    blank = np.full((3, 8, 8), 15000, np.uint16)
    np.testing.assert_array_equal(faults.lidar_jitter(blank, 15000, 0.1, 0.1, (1,)), blank)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_camera_noise_has_its_law(dtype: type) -> None:
    white = np.iinfo(dtype).max
    image = np.full((3, 120, 120), white // 2, dtype)
    normal = faults.gaussian(image, 0.1, (1,)).astype(float) / white
    assert abs(normal.mean() - 0.5) < 0.003
    assert abs(normal.std() - 0.1) < 0.003
    for photons in (20.0, 200.0):
        shot = faults.poisson(image, photons, (1,)).astype(float) / white
        assert abs(shot.mean() - 0.5) < 0.005
        assert abs(shot.std() - math.sqrt(0.5 / photons)) < 0.05 * math.sqrt(0.5 / photons)
    assert (faults.poisson(np.zeros_like(image), 50.0, (1,)) == 0).all()
    bright = faults.gaussian(np.full_like(image, white), 0.1, (1,))
    assert bright.max() == white
    assert bright.min() < 0.8 * white


# --- draws ---------------------------------------------------------------------------------------


def test_probabilities_are_met_and_sensors_fail_by_themselves(deliver_tree: Path) -> None:
    files = list_split(get_dataset("deliver"), deliver_tree, "train")
    corruptor = Corruptor(CorruptionConfig(blackout=0.3), files, seed=1)
    image = np.ones((3, 2, 2), np.uint8)
    hits = np.array(
        [
            [
                corruptor(image, m, epoch, index, lambda *_: image).max() == 0
                for m in files.modalities
            ]
            for epoch in range(100)
            for index in range(16)
        ]
    )
    assert np.abs(hits.mean(0) - 0.3).max() < 0.04
    assert np.abs(np.corrcoef(hits.T.astype(float)) - np.eye(4)).max() < 0.08


def test_draws_depend_on_seed_epoch_sample_and_sensor_only(deliver_tree: Path) -> None:
    files = list_split(get_dataset("deliver"), deliver_tree, "train")
    config = CorruptionConfig(gaussian=1)
    image = np.full((3, 16, 16), 128, np.uint8)

    def draw(seed: int, epoch: int, index: int, given: object = files) -> bytes:
        corruptor = Corruptor(config, given, seed)
        return corruptor(image, files.modalities[0], epoch, index, lambda *_: image).tobytes()

    first = draw(1, 2, 3)
    assert first == draw(1, 2, 3)
    assert len({first, draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0)}) == 4
    config = CorruptionConfig(gaussian=1, seed=1)
    assert draw(1, 2, 3) != first
    config = CorruptionConfig(gaussian=1)
    twice = replace(files, sample_ids=files.sample_ids * 2)
    assert first == draw(1, 2, 3, twice)
    assert first != draw(1, 2, 19, twice)
    # the sample's name counts, not its place in the split
    assert first == draw(1, 2, 0, replace(files, sample_ids=files.sample_ids[3:]))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_loader_puts_in_the_same_faults(
    config: DataConfig, open_loader: Open, loader: str, packed: bool, train: bool
) -> None:
    everything = CorruptionConfig(**dict.fromkeys(EACH, 0.4))
    config = replace(config, corruption=everything, eval_corruption=everything, scale=(1, 1))
    wanted = list(open_loader(config, train=train, seed=3).batches(0, 1 if not train else 5))
    if packed:
        pack_all(config.root)
    other = replace(config, loader=loader, workers=2, eval_batch_size=5)
    got = list(open_loader(other, train=train, seed=3).batches(0, None if not train else 5))
    ours, theirs = (torch.cat([b.images for b in some], dim=1) for some in (wanted, got))
    assert torch.equal(ours, theirs)


def decoded(config: DataConfig, open_loader: Open, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """``modality/sample`` of every image that is decoded for one evaluation."""
    found = []
    decode = FileStore.image

    def image(self: FileStore, index: int, modality: ModalitySpec) -> np.ndarray:
        found.append(f"{modality.name}/{self._files.sample_ids[index].rsplit('/', 1)[1]}")
        return decode(self, index, modality)

    loader = open_loader(config, train=False)
    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "image", image)
        list(loader.batches())
    return found


@pytest.mark.parametrize("loader", LOADERS)
def test_what_is_discarded_is_not_decoded(
    config: DataConfig, open_loader: Open, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    config = replace(config, loader=loader)
    dark = corrupted(config, blackout=1, gaussian=1, freeze=1, modalities=("img", "event"))
    names = {name.split("/")[0] for name in decoded(dark, open_loader, monkeypatch)}
    assert names.isdisjoint({"img", "event"})
    frozen = corrupted(config, freeze=1, modalities=("img",))
    images = [n for n in decoded(frozen, open_loader, monkeypatch) if n.startswith("img")]
    # one for each sample: that of the frame before, or its own where there is none
    assert len(images) == 16
    assert max(images.count(name) for name in images) > 1
    # some of the time
    some = corrupted(config, blackout=0.5, modalities=("lidar",))
    number = sum(n.startswith("lidar") for n in decoded(some, open_loader, monkeypatch))
    assert 0 < number < 16


@pytest.mark.parametrize(
    ("loader", "cache"),
    [("torch", False), ("torch", True), pytest.param("dali", False, marks=needs_dali)],
)
def test_batches_are_those_of_a_loader_that_decodes_everything(
    config: DataConfig, open_loader: Open, monkeypatch: pytest.MonkeyPatch, loader: str, cache: bool
) -> None:
    faulty = CorruptionConfig(**dict.fromkeys(EACH, 0.4), noise="low")
    config = replace(config, loader=loader, cache=cache, corruption=faulty)

    def batches() -> list[Batch]:
        return list(open_loader(config, train=True, seed=3).batches(0, 9))

    got = batches()
    monkeypatch.setattr(Corruptor, "discards", lambda *_: False)
    for ours, theirs in zip(got, batches(), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def test_where_damaged_samples_are_replaced_every_file_is_read(
    config: DataConfig, open_loader: Open
) -> None:
    """What is fed would else depend on what a process has seen before it was interrupted."""
    dark = CorruptionConfig(blackout=1, modalities=("event",))
    config = replace(config, corruption=dark, damaged="skip", damaged_limit=0.4)
    victim = sorted(config.root.glob("event/*/train/*/*.png"))[5]
    victim.write_bytes(victim.read_bytes()[:-50])
    replaced = [r for b in open_loader(config, train=True).batches(0, 4) for r in b.replaced]
    assert len(replaced) == 1
    assert str(victim) in replaced[0]
    # otherwise nobody looks at it
    strict = replace(config, damaged="error")
    assert len(list(open_loader(strict, train=True).batches(0, 4))) == 4


def test_evaluation_meets_the_same_faults_in_every_run(
    config: DataConfig, open_loader: Open
) -> None:
    everything = CorruptionConfig(**dict.fromkeys(EACH, 0.4), noise="low")
    config = replace(config, corruption=everything, eval_corruption=everything)
    first, second = (
        next(open_loader(config, train=False, seed=seed).batches()).images for seed in (0, 7)
    )
    assert torch.equal(first, second)
    first, second = (
        next(open_loader(config, train=True, seed=seed).batches()).images for seed in (0, 7)
    )
    assert not torch.equal(first, second)


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blackout": 1.2}, "blackout must be a probability from 0 to 1, got 1.2"),
        (
            {"low_resolution_factor": 0.0},
            "low_resolution_factor must be above 0 and at most 1, got 0",
        ),
        ({"shift_by": 2.0}, "shift_by must be above 0 and at most 1, got 2"),
        ({"gaussian_sigma": math.nan}, "gaussian_sigma must be above 0 and at most 10, got nan"),
        ({"lidar_jitter_turn": math.inf}, "lidar_jitter_turn must be from 0 to 0.5, got inf"),
        (
            {"modalities": ("event",)},
            "modalities names event, but no fault can hit them: set noise",
        ),
        ({"seed": -1}, "seed must be at least 0"),
        ({"poisson_photons": 1e9}, "poisson_photons must be above 0 and at most 100000"),
    ],
)
def test_senseless_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorruptionConfig(**settings)


def test_a_fault_that_can_hit_nothing_is_refused(config: DataConfig, open_loader: Open) -> None:
    with pytest.raises(DataError, match=r"lidar_jitter is for sensors of kind lidar.*img \(camera"):
        open_loader(
            replace(corrupted(config, lidar_jitter=1), modalities=("img", "depth")), train=False
        )
    with pytest.raises(DataError, match="did you mean 'event'"):
        open_loader(corrupted(config, blackout=1, modalities=("evnt",)), train=False)
    unused = replace(corrupted(config, noise="low", modalities=("lidar",)), modalities=("img",))
    with pytest.raises(
        DataError, match=r"no modality in use is among lidar.*they are img \(camera"
    ):
        open_loader(unused, train=False)


def test_freeze_needs_a_sample_before(mcubes_tree: Path, open_loader: Open) -> None:
    listing = mcubes_tree / "list_folder" / "val.txt"
    listing.write_text(listing.read_text().splitlines()[0] + "\n")
    config = DataConfig(dataset="mcubes", root=mcubes_tree, size=64, loader="torch", workers=0)
    with pytest.raises(DataError, match=r"freeze repeats the sample before.*number at their end"):
        open_loader(corrupted(config, freeze=1), train=False)


def test_codes_of_16_bits_and_floats_are_hit_alike_by_both_loaders(
    mcubes_tree: Path, open_loader: Open
) -> None:
    if dali_import_error() is not None:
        pytest.skip("DALI is not installed")
    config = DataConfig(dataset="mcubes", root=mcubes_tree, size=32, loader="torch", workers=0)
    faults_of_all = {"shift": 0.7, "shift_by": 0.2, "blackout": 0.3}
    config = corrupted(config, gaussian=1, poisson=0.5, noise="low", **faults_of_all)
    wanted = evaluated(config, open_loader)
    got = evaluated(replace(config, loader="dali"), open_loader)
    assert len(changed(wanted, evaluated(corrupted(config), open_loader))[0]) == 2
    assert torch.equal(got.images, wanted.images)


def test_settings_in_words() -> None:
    config = CorruptionConfig(noise="high", blackout=0.5, modalities=("img", "event"))
    assert describe(config) == "blackout 0.5, noise high, modalities img event"
    assert describe(CorruptionConfig(shift_by=0.1)) == "none"
