"""Known values in the files, known inputs of the network: 16-bit, float and compatible readings."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.pipelines import Batch, DataConfig, DataError, get_dataset
from fastseg.pipelines.datasets import catalogue
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.loaders.dali.loader import dali_import_error
from tests.support import dataset_trees as trees
from tests.support.loader_cases import LOADERS, Open, needs_dali

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def config_for(root: Path, dataset: str, loader: str = "torch", **change: object) -> DataConfig:
    size = 32 if dataset.startswith("mcubes") else 64
    base = DataConfig(
        dataset=dataset, root=root, size=size, batch_size=2, eval_batch_size=2, workers=0
    )
    return replace(base, loader=loader, **change)


def values(batch: Batch, modality: int, position: int) -> np.ndarray:
    """Network input as ``[H, W, 3]`` in double precision."""
    return batch.images[modality, position].permute(1, 2, 0).double().numpy()


# --- MUSES ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("dataset", ["muses", "muses-npz"])
def test_muses_is_physical_and_whitened(
    muses_tree: Path, open_loader: Open, dataset: str, loader: str
) -> None:
    if dataset == "muses-npz":
        trees.write_muses_projected(muses_tree, suffix=".npz")
    names = ("frame_camera", "event_camera", "lidar", "radar")
    config = config_for(muses_tree, dataset, loader, modalities=names)
    batch = next(open_loader(config, train=False).batches())
    assert batch.images.shape == (4, 2, 3, 64, 96)
    for position, sample in enumerate(batch.sample_ids):
        folder, scene = sample.rsplit("/", 1)
        camera = trees.random_bytes(sample.replace(f"/{scene}", scene), *trees.FRAME, 3)
        np.testing.assert_allclose(
            values(batch, 0, position), (camera / 255 - MEAN) / STD, atol=2e-6
        )
        truth = trees.projections(folder, scene)
        for m, sensor in enumerate(names[1:], start=1):
            spec = get_dataset(dataset).select([sensor])[0]
            shown = values(batch, m, position) * spec.std + spec.mean
            # PNG codes are steps of 1/150; what they lose in float32 is far below one
            step = 1e-4 if dataset == "muses-npz" or sensor == "event_camera" else 1 / 150 + 1e-4
            assert (shown <= truth[sensor] + 1e-4).all()
            np.testing.assert_allclose(shown, truth[sensor], atol=step)
        label = trees.random_bytes(f"{folder}{scene}label", *trees.FRAME, top=20)
        np.testing.assert_array_equal(batch.labels[position], np.where(label == 19, 255, label))


def test_every_sixteen_bit_code_survives(muses_tree: Path, open_loader: Open) -> None:
    codes = np.arange(65536, dtype=np.uint16)
    ramp = np.stack([codes, codes[::-1], np.roll(codes, 257)], axis=-1).reshape(256, 256, 3)
    for path in sorted(muses_tree.glob("projected_to_rgb/lidar/train/**/*.png")):
        trees.save(path, ramp)
    for path in sorted(muses_tree.glob("gt_semantic/train/**/*.png")):
        trees.save(path, np.zeros((256, 256)))
    config = config_for(
        muses_tree, "muses", modalities=("lidar",), eval_split="train", eval_batch_size=1, size=256
    )
    lidar = get_dataset("muses").select(["lidar"])[0]
    for name in ("torch", "dali") if dali_import_error() is None else ("torch",):
        batch = next(open_loader(replace(config, loader=name), train=False).batches())
        decoded = ((values(batch, 0, 0) * lidar.std + lidar.mean) + 100) * 150
        np.testing.assert_allclose(decoded, ramp[..., ::-1], atol=0.01)


@needs_dali
@pytest.mark.parametrize("dataset", ["muses", "muses-npz", "mcubes", "mcubes-masked"])
def test_both_loaders_agree_exactly_without_augmentation(
    muses_tree: Path, mcubes_tree: Path, open_loader: Open, dataset: str
) -> None:
    root = mcubes_tree if dataset.startswith("mcubes") else muses_tree
    if dataset == "muses-npz":
        trees.write_muses_projected(root, suffix=".npz")
    batches = [
        list(open_loader(config_for(root, dataset, name), train=False).batches())
        for name in ("torch", "dali")
    ]
    for ours, theirs in zip(*batches, strict=True):
        assert ours.sample_ids == theirs.sample_ids
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


@needs_dali
@pytest.mark.parametrize("dataset", ["muses", "mcubes"])
def test_both_loaders_apply_the_same_draws(
    muses_tree: Path, mcubes_tree: Path, open_loader: Open, dataset: str
) -> None:
    root = mcubes_tree if dataset == "mcubes" else muses_tree
    ours, theirs = (
        list(open_loader(config_for(root, dataset, name), train=True, seed=3).batches(0, 4))
        for name in ("torch", "dali")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.labels, b.labels)
        for m, modality in enumerate(get_dataset(dataset).modalities):
            if modality.interpolation == "nearest":
                assert torch.equal(a.images[m], b.images[m])
            else:
                std = torch.tensor(modality.std).reshape(3, 1, 1)
                # float32 positions differ in their last bits, and so does what they round to
                step = modality.scale if modality.decoder == "image" else 1e-4
                assert ((a.images[m] - b.images[m]).abs() * std).max() < 1.1 * step


@pytest.mark.parametrize("loader", LOADERS)
def test_crops_are_padded_with_no_return(muses_tree: Path, open_loader: Open, loader: str) -> None:
    config = config_for(muses_tree, "muses", loader, scale=(0.5, 0.5))
    batch = next(open_loader(config, train=True).batches())
    padded = batch.labels == 255
    assert padded[:, 32:].all()
    lidar = get_dataset("muses").modalities[2]
    shown = batch.images[2] * torch.tensor(lidar.std).reshape(3, 1, 1)
    shown = shown + torch.tensor(lidar.mean).reshape(3, 1, 1)
    assert shown[:, :, 32:].abs().max() < 1e-4  # 0 m, not the -100 m of code 0
    assert shown[:, 0, :32].max() > 1


# --- MCubeS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS)
def test_mcubes_is_fed_as_published(mcubes_tree: Path, open_loader: Open, loader: str) -> None:
    config = config_for(mcubes_tree, "mcubes", loader, eval_split="train", eval_batch_size=4)
    batch = next(open_loader(config, train=False).batches())
    assert batch.images.shape == (4, 4, 3, 32, 64)
    for position, stem in enumerate(batch.sample_ids):
        top, full = (65536, 65535) if position % 2 == 0 else (256, 255)
        color = trees.random_bytes(f"{stem}color", 32, 256, 3, top=top)[:, 192:] / full
        np.testing.assert_allclose(values(batch, 0, position), (color - MEAN) / STD, atol=2e-6)
        nir = trees.random_bytes(f"{stem}nir", 32, 256, top=top)[:, 192:, None] / full
        np.testing.assert_allclose(values(batch, 3, position), nir.repeat(3, 2), atol=1e-7)
        phase = trees.random_bytes(f"{stem}phase", 32, 256, top=1000)[:, 192:] / 1000
        sine, cosine, degree = phase * 5 - 2.6, phase * 2 - 0.5, phase * 1.9 - 0.5
        aolp = np.stack([sine, cosine, sine], -1).astype(np.float32)
        np.testing.assert_array_equal(values(batch, 1, position), aolp)
        dolp = np.stack([degree] * 3, -1).astype(np.float32)
        np.testing.assert_array_equal(values(batch, 2, position), dolp)
        label = trees.random_bytes(f"{stem}label", 32, 256, top=20)[:, 192:]
        np.testing.assert_array_equal(batch.labels[position], label)
    assert batch.labels.dtype == torch.int64


@pytest.mark.parametrize("loader", LOADERS)
def test_masked_pixels_are_ignored(mcubes_tree: Path, open_loader: Open, loader: str) -> None:
    batch = next(
        open_loader(config_for(mcubes_tree, "mcubes-masked", loader), train=False).batches()
    )
    for position, stem in enumerate(batch.sample_ids):
        label = trees.random_bytes(f"{stem}label", 32, 256, top=20)
        label[trees.random_bytes(f"{stem}mask", 32, 256, top=4) == 0] = 255
        np.testing.assert_array_equal(batch.labels[position], label[:, 192:])
        assert 0.15 < (batch.labels[position] == 255).float().mean() < 0.35


def test_stitchfusion_rescales_the_degree(mcubes_tree: Path, open_loader: Open) -> None:
    plain, rescaled = (
        next(open_loader(config_for(mcubes_tree, name), train=False).batches()).images[2]
        for name in ("mcubes", "mcubes-stitchfusion")
    )
    torch.testing.assert_close(rescaled, (plain + 0.55) / 2)


def test_nearest_and_bilinear_keep_their_type(mcubes_tree: Path, open_loader: Open) -> None:
    # half the size: bilinear means of four values, computed here from the files
    config = config_for(mcubes_tree, "mcubes", size=32)
    loader = open_loader(replace(config, scale=(0.5, 0.5), flip=0.0), train=True)
    batch = next(loader.batches())
    for position, stem in enumerate(batch.sample_ids):
        degree = (trees.random_bytes(f"{stem}phase", 32, 256, top=1000)[:, 192:] / 1000) * 1.9 - 0.5
        mean = degree.reshape(16, 2, 32, 2).mean((1, 3))
        np.testing.assert_allclose(values(batch, 2, position)[:16, :, 0], mean, atol=1e-6)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("dataset", "file", "message"),
    [
        ("muses", "projected_to_rgb/lidar/{}_lidar.png", "is damaged"),
        ("muses-npz", "projected_to_rgb/lidar/{}_lidar.npz", "is damaged"),
        ("mcubes", "polL_color/{}.png", "is damaged"),
        ("mcubes", "polL_dolp/{}.npy", "is damaged"),
        ("mcubes-masked", "NIR_warped_mask/{}.png", "is damaged"),
        ("mcubes-masked", "GT/{}.png", "label value 77"),
    ],
)
def test_a_bad_file_is_named_in_the_middle_of_a_run(
    muses_tree: Path,
    mcubes_tree: Path,
    open_loader: Open,
    dataset: str,
    file: str,
    message: str,
    loader: str,
) -> None:
    root = mcubes_tree if dataset.startswith("mcubes") else muses_tree
    if dataset == "muses-npz":
        trees.write_muses_projected(root, suffix=".npz")
    opened = open_loader(config_for(root, dataset, loader, scale=(1, 1)), train=True)
    last = list_split(get_dataset(dataset), root, "train").sample_ids[-1]
    path = root / file.format(last)
    if message == "is damaged":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    else:
        trees.blank(path, 77)
    with pytest.raises(DataError, match=message) as caught:
        list(opened.batches(0, 4))
    assert str(path) in str(caught.value)
    assert "Traceback" not in str(caught.value)


@needs_dali
@pytest.mark.parametrize("dataset", ["muses", "mcubes-masked"])
@pytest.mark.parametrize("how", [{"workers": 2}, {"workers": 1, "cache": True}, {"loader": "dali"}])
def test_how_batches_are_made_does_not_matter(
    muses_tree: Path, mcubes_tree: Path, open_loader: Open, dataset: str, how: dict[str, object]
) -> None:
    root = mcubes_tree if dataset.startswith("mcubes") else muses_tree
    config = config_for(root, dataset, scale=(1, 1))
    plain, other = (
        list(open_loader(c, train=True, seed=1).batches(0, 4))
        for c in (config, replace(config, **({"workers": 1} | how)))
    )
    for ours, theirs in zip(plain, other, strict=True):
        assert ours.sample_ids == theirs.sample_ids
        assert torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.images, theirs.images, rtol=0, atol=1e-4)


@pytest.mark.fault("F12")
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("dataset", ["deliver", "muses", "muses-npz", "mcubes"])
def test_blank_images_and_ignored_labels_stay_finite(
    deliver_tree: Path,
    muses_tree: Path,
    mcubes_tree: Path,
    open_loader: Open,
    dataset: str,
    loader: str,
) -> None:
    root = {"deliver": deliver_tree, "mcubes": mcubes_tree}.get(dataset, muses_tree)
    if dataset == "muses-npz":
        trees.write_muses_projected(root, suffix=".npz")
    spec = get_dataset(dataset)
    files = list_split(spec, root, "val")
    for index in range(len(files)):
        for modality in spec.modalities:
            for path in files.paths(index, modality.files):
                trees.blank(path, modality.empty)
        trees.blank(files.path(index, spec.label.file), 255)
    batch = next(open_loader(config_for(root, dataset, loader), train=False).batches())
    assert torch.isfinite(batch.images).all()
    assert all(len(image.unique()) <= 3 for image in batch.images.flatten(0, 1))
    assert (batch.labels == 255).all()


# --- readings for compatibility ------------------------------------------------------------------


@pytest.fixture
def small_anyseg(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two readings at 64 x 64 instead of 1024 x 1024."""
    for name in ("muses-anyseg", "muses-robustseg"):
        small = replace(get_dataset(name), resize=(64, 64))
        monkeypatch.setitem(catalogue.DATASETS, name, small)


@pytest.fixture
def anyseg_tree(tmp_path: Path) -> Path:
    return trees.write_muses_projected(tmp_path / "multimodal", under="")


@pytest.mark.usefixtures("small_anyseg")
@pytest.mark.parametrize("loader", LOADERS)
def test_anyseg_feeds_high_bytes_and_calls_void_road(
    anyseg_tree: Path, open_loader: Open, loader: str
) -> None:
    batch = next(
        open_loader(config_for(anyseg_tree, "muses-anyseg", loader), train=False).batches()
    )
    folder, scene = batch.sample_ids[0].rsplit("/", 1)
    for m, sensor in enumerate(("frame_camera", "event_camera", "lidar")):
        # what the published code does: PIL, its RGB mode, its bicubic rule; no division
        path = anyseg_tree / sensor / folder / f"{scene}_{sensor}.png"
        published = np.array(Image.open(path).convert("RGB").resize((64, 64)))
        np.testing.assert_allclose(values(batch, m, 0), published, atol=1e-4)
    label = trees.random_bytes(f"{folder}{scene}label", *trees.FRAME, top=20) % 19
    rows, cols = np.arange(64), np.arange(64) * 96 // 64
    np.testing.assert_array_equal(batch.labels[0], label[rows][:, cols])


@pytest.mark.fault("F12")
@pytest.mark.usefixtures("small_anyseg")
@pytest.mark.parametrize("loader", LOADERS)
def test_robustseg_stretches_and_survives_a_blank_image(
    anyseg_tree: Path, open_loader: Open, loader: str
) -> None:
    first = min((anyseg_tree / "lidar/val").rglob("*.png"))
    trees.save(first, np.full((*trees.FRAME, 3), 15000, np.uint16))
    config = config_for(anyseg_tree, "muses-robustseg", loader)
    batch = next(open_loader(config, train=False).batches())
    assert torch.isfinite(batch.images).all()
    assert (batch.images[2, 0] == 0).all()  # the published code divides 0 by 0 here
    other = batch.images[2, 1]
    assert (other.min(), other.max()) == (0, 255)
    assert torch.equal(batch.images[:2].round(), batch.images[:2])


def test_the_background_of_high_bytes_is_58(anyseg_tree: Path) -> None:
    from fastseg.pipelines.decode.by_spec import decode_modality

    spec = replace(get_dataset("muses-anyseg"), resize=None)
    path = min((anyseg_tree / "lidar/val").rglob("*.png"))
    image = decode_modality([path], spec, spec.modalities[2])
    assert image.dtype == np.uint8
    counts = np.bincount(image[2].ravel(), minlength=256)
    assert counts.argmax() == 15000 >> 8 == 58


def test_published_deliver_reads_events_bilinearly(deliver_tree: Path, open_loader: Open) -> None:
    def event_codes(name: str) -> set[float]:
        config = config_for(deliver_tree, name, scale=(0.77, 0.77))
        images = next(open_loader(config, train=True, seed=1).batches()).images[2]
        return set((images * 255).round().unique().tolist())

    assert event_codes("deliver") == {0, 255}
    assert len(event_codes("deliver-cmnext")) > 10


def test_grey_depth_is_there_if_named(deliver_tree: Path, open_loader: Open) -> None:
    config = config_for(deliver_tree, "deliver", modalities=("img", "grey_depth"))
    batch = next(open_loader(config, train=False).batches())
    path = deliver_tree / "depth" / f"{batch.sample_ids[0]}_depth_front.png"
    grey = np.array(Image.open(path))[..., None].repeat(3, 2)
    np.testing.assert_allclose(values(batch, 1, 0) * 255, grey, atol=1e-4)
    shutil.rmtree(deliver_tree / "depth")
    open_loader(config_for(deliver_tree, "deliver"), train=False)  # not needed unless named
    with pytest.raises(DataError, match="grey_depth: 6 of 6"):
        open_loader(config, train=False)


def test_standardised_deliver_is_whitened(deliver_tree: Path, open_loader: Open) -> None:
    plain, white = (
        next(open_loader(config_for(deliver_tree, name), train=False).batches()).images[1:]
        for name in ("deliver", "deliver-standardised")
    )
    # the statistics as the document prints them, on the scale of codes
    mean = [[110.346, 66.506, 117.078], [17.667, 0, 16.789], [1.797] * 3]
    std = [[44.367, 77.207, 105.551], [64.753, 1, 63.241], [7.786] * 3]
    mean, std = (torch.tensor(x).reshape(3, 1, 3, 1, 1) for x in (mean, std))
    torch.testing.assert_close(white, (plain * 255 - mean) / std, rtol=1e-3, atol=1e-3)


# --- missing files as zeros ----------------------------------------------------------------------


@pytest.mark.fault("F5")
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("dataset", "file"),
    [("muses", "projected_to_rgb/lidar/{}_lidar.png"), ("mcubes", "polL_dolp/{}.npy")],
)
def test_missing_files_can_be_fed_as_zero(
    muses_tree: Path, mcubes_tree: Path, open_loader: Open, dataset: str, file: str, loader: str
) -> None:
    root = mcubes_tree if dataset == "mcubes" else muses_tree
    config = config_for(root, dataset, loader)
    complete = open_loader(config, train=False)
    whole, whole_fingerprint = next(complete.batches()), complete.fingerprint
    gone = root / file.format(whole.sample_ids[1])
    gone.unlink()
    with pytest.raises(DataError, match=r"--data\.missing zero") as caught:
        open_loader(config, train=False)
    assert str(gone) in str(caught.value)
    opened = open_loader(replace(config, missing="zero"), train=False)
    assert opened.fingerprint != whole_fingerprint
    assert "1 missing files of split val are fed as zero" in opened.reason
    batch = next(opened.batches())
    expected = whole.images.clone()
    expected[2, 1] = 0
    assert torch.equal(batch.images, expected)


def test_missing_labels_are_never_zero(muses_tree: Path, open_loader: Open) -> None:
    gone = min((muses_tree / "gt_semantic/val").rglob("*.png"))
    gone.unlink()
    with pytest.raises(DataError, match="label: 1 of 4"):
        open_loader(config_for(muses_tree, "muses", missing="zero"), train=False)
