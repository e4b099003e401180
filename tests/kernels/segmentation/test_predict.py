"""The fused predictions and their counts against their definition."""

import pytest
import torch
from torch.nn import functional

from fastseg.kernels.modules import UpsampleArgmax, UpsampleConfusion
from fastseg.kernels.reference import segmentation
from fastseg.kernels.segmentation.predict import (
    _confusion,
    _upsample_argmax,
    upsample_argmax,
    upsample_confusion,
)

pytestmark = pytest.mark.usefixtures("kernels")

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHAPES = {  # B K h w factor
    "odd": (2, 5, 3, 5, 4),
    "twice": (1, 25, 3, 2, 2),
    "eight": (1, 3, 2, 3, 8),
    "same": (2, 4, 3, 7, 1),
    "many-classes": (1, 200, 1, 2, 4),
    "one-class": (1, 1, 2, 2, 4),
    "one-logit": (3, 6, 1, 1, 4),
    "one-pixel": (1, 3, 1, 1, 1),
}


def make_inputs(shape, device, dtype=torch.float32, seed=0):
    b, k, h, w, factor = shape
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((b, k, h, w), generator=generator).to(device, dtype)
    labels = torch.randint(0, k, (b, h * factor, w * factor), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits, labels.to(device)


def clear(logits, size):
    """Pixels whose best class is best by more than rounding."""
    full = functional.interpolate(logits.double(), size=size, mode="bilinear")
    if full.shape[1] == 1:
        return torch.ones_like(full[:, 0], dtype=torch.bool)
    best, second = full.topk(2, dim=1).values.unbind(1)
    return best - second > 1e-5


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_argmax_matches_reference(shape, dtype, device):
    logits, labels = make_inputs(shape, device, dtype)
    size = labels.shape[1:]
    got = upsample_argmax(logits, size)
    wanted = segmentation.upsample_argmax(logits.double(), size)
    sure = clear(logits, size)
    assert got.dtype == torch.uint8
    assert sure.float().mean() > 0.9
    assert torch.equal(got[sure], wanted[sure])
    assert int(got.max()) < shape[1]


def test_first_of_equal_classes(device):
    logits = torch.zeros(1, 4, 2, 2, device=device)
    logits[:, 1:3] = 1.0
    assert (upsample_argmax(logits, (8, 8)) == 1).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(2, 5, 3, 5, 4), (1, 70, 2, 1, 4), (1, 1, 1, 1, 1)], ids=str)
def test_confusion_counts_labels_by_prediction(shape, dtype, device):
    logits, labels = make_inputs(shape, device)
    k = shape[1]
    predictions = upsample_argmax(logits, labels.shape[1:])
    wanted = torch.zeros(k, k, dtype=torch.int64)
    for label, prediction in zip(
        labels.flatten().tolist(), predictions.flatten().tolist(), strict=True
    ):
        if label < k:
            wanted[label, prediction] += 1
    got = upsample_confusion(logits, labels.to(dtype), k)
    assert got.dtype == torch.int64
    assert torch.equal(got.cpu(), wanted)
    if dtype == torch.int64:
        reference = segmentation.upsample_confusion(logits, labels, k)
        assert int((got - reference).abs().sum()) <= 2 * int(
            (~clear(logits, labels.shape[1:])).sum()
        )


@pytest.mark.parametrize("fill", [255, -1, 5, 2**40 + 1])
def test_nothing_labelled_counts_nothing(fill, device):
    logits, labels = make_inputs((1, 5, 2, 2, 4), device)
    assert not upsample_confusion(logits, torch.full_like(labels, fill), 5).any()


def test_counts_of_many_pixels(device):
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(0, 25, (3, 50, 70), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 30, (3, 50, 70), generator=generator).to(torch.uint8)
    cell = labels.long() * 25 + predictions
    wanted = torch.bincount(cell[labels < 25], minlength=625).view(25, 25)
    first, second = (_confusion(predictions.to(device), labels.to(device), 25) for _ in range(2))
    assert torch.equal(first.cpu(), wanted)
    assert torch.equal(first, second)


def test_strides_do_not_matter(device):
    logits, labels = make_inputs((2, 5, 3, 4, 2), device)
    wanted = upsample_argmax(logits, labels.shape[1:])
    last = logits.to(memory_format=torch.channels_last)
    assert torch.equal(upsample_argmax(last, labels.shape[1:]), wanted)
    sparse = torch.stack([labels, labels], -1)[..., 0]
    counts = upsample_confusion(logits, labels, 5)
    assert torch.equal(upsample_confusion(last, sparse, 5), counts)


@pytest.mark.parametrize("size", [(5, 9), (12, 12), (2, 3)])
def test_other_sizes_are_the_references(size, device):
    logits, _ = make_inputs((1, 5, 3, 4, 1), device)
    labels = torch.ones((1, *size), device=device, dtype=torch.uint8)
    wanted = segmentation.upsample_argmax(logits, size)
    assert torch.equal(upsample_argmax(logits, size), wanted)
    counts = upsample_confusion(logits, labels, 5)
    assert torch.equal(counts[1], torch.bincount(wanted.flatten().long(), minlength=5))


def test_empty_batch(device):
    logits = torch.zeros(0, 5, 2, 2, device=device)
    labels = torch.zeros(0, 8, 8, device=device, dtype=torch.uint8)
    assert upsample_argmax(logits, (8, 8)).shape == (0, 8, 8)
    assert not upsample_confusion(logits, labels, 5).any()


def test_opcheck(device):
    logits, labels = make_inputs((1, 2, 1, 2, 2), device)
    torch.library.opcheck(_upsample_argmax, (logits, 2))
    torch.library.opcheck(_confusion, (_upsample_argmax(logits, 2), labels, 2))


def test_compiles_without_a_break(device):
    logits, labels = make_inputs((1, 3, 2, 2, 2), device)
    compiled = torch.compile(upsample_confusion, fullgraph=True, backend="aot_eager", dynamic=False)
    assert torch.equal(compiled(logits, labels, 3), upsample_confusion(logits, labels, 3))


def test_modules(device):
    logits, labels = make_inputs((1, 3, 2, 2, 2), device)
    predictions = UpsampleArgmax(labels.shape[1:])(logits.requires_grad_())
    assert torch.equal(predictions, upsample_argmax(logits, labels.shape[1:]))
    confusion = UpsampleConfusion(3).to(device)
    confusion(logits, labels)
    assert torch.equal(confusion(logits, labels), 2 * upsample_confusion(logits, labels, 3))
    assert not confusion.state_dict()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: upsample_argmax(torch.zeros(3, 2, 2), (4, 4)), r"\[B, K, h, w\].*\(3, 2, 2\)"),
        (lambda: upsample_argmax(torch.zeros(1, 257, 2, 2), (4, 4)), "fit into uint8"),
        (lambda: upsample_argmax(torch.zeros(1, 3, 2, 2), (4,)), r"size \(H, W\), got \(4,\)"),
        (
            lambda: upsample_confusion(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4), 3),
            "integer labels",
        ),
        (
            lambda: upsample_confusion(
                torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4, dtype=torch.uint8), 4
            ),
            "logits of 4 classes",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
