"""What a batch holds, where it is normalised, and how it gets to its device."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastseg.pipelines import Batch, DataConfig, Loader, get_dataset
from fastseg.pipelines.loaders.to_device import on_device
from fastseg.pipelines.transform.normalise import Normaliser, _portable
from tests.support.loader_cases import LOADERS

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize(
    ("dataset", "dtypes"),
    [
        ("deliver", [torch.uint8] * 4),
        ("muses", [torch.uint8, torch.uint8, torch.uint16]),
        ("mcubes", [torch.uint16, torch.float32, torch.float32, torch.uint16]),
    ],
)
def test_batches_hold_what_the_files_hold(
    deliver_tree: Path,
    muses_tree: Path,
    mcubes_tree: Path,
    open_loader: Callable[..., Loader],
    dataset: str,
    dtypes: list[torch.dtype],
    name: str,
) -> None:
    root = {"deliver": deliver_tree, "muses": muses_tree, "mcubes": mcubes_tree}[dataset]
    config = DataConfig(
        dataset=dataset, root=root, size=32, eval_batch_size=2, workers=0, loader=name
    )
    batch = next(open_loader(config, train=False).batches())
    assert [code.dtype for code in batch.codes] == dtypes
    assert batch.classes.dtype == torch.uint8
    assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
    for modality, code, image in zip(
        get_dataset(dataset).modalities, batch.codes, batch.images, strict=True
    ):
        mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (modality.mean, modality.std))
        value = (code.double() * modality.scale + modality.offset - mean) / std
        torch.testing.assert_close(image.double(), value, rtol=1e-6, atol=1e-5)


@pytest.mark.fault("F28")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_are_int64_whatever_was_stored(dtype: torch.dtype) -> None:
    classes = torch.tensor([[[0, 24], [255, 7]]], dtype=dtype)
    batch = Batch(torch.zeros(1, 1, 3, 2, 2), classes, ("img",), ("a",))
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [[[0, 24], [255, 7]]]


def test_images_are_made_once_and_on_the_device_of_the_codes() -> None:
    calls = []

    def finish(codes: tuple[torch.Tensor, ...]) -> torch.Tensor:
        calls.append(codes[0].device.type)
        return torch.stack([code.float() for code in codes])

    codes = (torch.ones(1, 3, 2, 2, dtype=torch.uint8),) * 2
    batch = Batch(codes, torch.zeros(1, 2, 2), ("a", "b"), ("x",), finish)
    assert batch.to("cpu") is batch
    moved = batch.to("meta")  # stands for a GPU
    assert calls == []
    assert moved.images.device.type == "meta"
    assert moved.images is moved.images
    assert calls == ["meta"]
    assert batch.images.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_channels_last_has_the_same_values(dtype: torch.dtype) -> None:
    modalities = get_dataset("muses").modalities
    codes = [(torch.rand(2, 3, 8, 4) * 250).to(dtype) for _ in modalities]
    present = torch.tensor([[True, False], [True, True], [True, True]])
    planes = Normaliser(modalities, "planes")(codes, present)
    packed = Normaliser(modalities, "channels_last")(codes, present)
    assert torch.equal(planes, packed)
    assert planes.is_contiguous()
    assert packed.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert Normaliser(modalities)(codes).is_contiguous()  # on the CPU


def test_sixteen_bits_survive_where_uint16_is_not_computed_with() -> None:
    codes = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    on_gpu = codes.view(torch.int16).int() & 0xFFFF
    assert torch.equal(on_gpu, codes.int())
    assert _portable(codes) is codes
    assert _portable(torch.empty(4, dtype=torch.uint16, device="meta")).dtype == torch.int32


def test_closing_the_transfer_closes_the_loader() -> None:
    closed = []

    def batches() -> Generator[Batch, None, None]:
        try:
            for i in range(3):
                yield Batch(torch.zeros(1, 1, 3, 2, 2), torch.zeros(1, 2, 2), ("a",), (str(i),))
        finally:
            closed.append(True)

    assert [batch.sample_ids for batch in on_device(batches(), CPU)] == [("0",), ("1",), ("2",)]
    stream = on_device(batches(), CPU)
    next(stream)
    stream.close()
    assert closed == [True, True]


def test_threads_and_processes_are_not_pinned_without_a_gpu(
    deliver_tree: Path, open_loader: Callable[..., Loader]
) -> None:
    config = DataConfig(root=deliver_tree, size=64, workers=0, loader="torch")
    for change in ({}, {"workers": 1}, {"workers": 1, "cache": True}):
        batch = next(open_loader(replace(config, **change), train=True).batches())
        assert batch.classes.is_pinned() == torch.cuda.is_available()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", LOADERS)
def test_a_gpu_gets_the_same_numbers(
    deliver_tree: Path, open_loader: Callable[..., Loader], name: str
) -> None:
    config = DataConfig(root=deliver_tree, size=64, workers=2, loader=name)
    reference = open_loader(replace(config, loader="torch"), train=True).batches(0, 4)
    device = torch.device("cuda", torch.cuda.current_device())
    moved = on_device(open_loader(config, train=True).batches(0, 4), device)
    for wanted, got in zip(reference, moved, strict=True):
        assert got.images.device == device
        assert got.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(got.labels.cpu(), wanted.labels)
        torch.testing.assert_close(got.images.cpu(), wanted.images, atol=0.02, rtol=0)


def test_the_first_samples_are_those_of_the_whole_batch() -> None:
    codes = tuple(torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8) for _ in range(2))
    classes = torch.randint(0, 5, (3, 4, 4), dtype=torch.uint8)
    names = ("a", "b")

    def finish(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([part.float() for part in parts])

    whole = Batch(codes, classes, names, ("x", "y", "z"), finish)
    for batch in (whole, Batch(whole.images, classes, names, ("x", "y", "z"))):
        two = batch.first(2)
        assert torch.equal(two.images, whole.images[:, :2])
        assert torch.equal(two.labels, whole.labels[:2])
        assert two.sample_ids == ("x", "y")
        assert batch.first(9).sample_ids == ("x", "y", "z")
