"""The losses of upsampled logits on a CPU, tile by tile, against their definition in float64."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastseg.kernels import reference
from fastseg.kernels.reference import upsampled
from fastseg.kernels.reference.segmentation import count_pairs
from fastseg.kernels.testing import assert_as_accurate

SHAPES = {  # B K h w, H W
    "four-times": ((2, 5, 6, 9), (24, 36)),
    "uneven": ((1, 3, 5, 4), (13, 23)),
    "same": ((2, 4, 3, 7), (3, 7)),
    "smaller": ((1, 4, 9, 12), (4, 5)),
    "one-pixel": ((1, 25, 1, 1), (8, 8)),
    "one-class": ((1, 1, 2, 2), (8, 8)),
}


@pytest.fixture(params=[1 << 19, 300, 1], ids=["one-tile", "tiles", "pixels"])
def tile(request, monkeypatch):
    monkeypatch.setattr(upsampled, "_TILE", request.param)


def inputs(shape, size):
    generator = torch.Generator().manual_seed(0)
    x, y = (2 * torch.randn(shape, generator=generator) for _ in range(2))
    labels = torch.randint(-1, shape[1] + 2, (shape[0], *size), generator=generator)
    labels[0, 0, 0] = 0
    return x, labels, y


def run(loss, x, labels, y, **options):
    x = x.detach().requires_grad_()
    ohem, kl = loss(x, labels, y, **options)
    (grad,) = torch.autograd.grad(ohem + 7 * kl, x)
    return ohem, kl, grad


def as_defined(logits, labels, teacher, threshold=0.7, min_kept=1 / 16, temperature=1.0):
    """Interpolated at once."""
    full = torch.nn.functional.interpolate(logits, labels.shape[1:], mode="bilinear")
    target = torch.nn.functional.interpolate(teacher, labels.shape[1:], mode="bilinear")
    ohem = reference.ohem_cross_entropy(full, labels, threshold, min_kept)
    return ohem, reference.logit_distillation(full, target, temperature)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize(
    "options", [{}, {"min_kept": 1.0, "temperature": 2.0}], ids=["hard", "all"]
)
@pytest.mark.parametrize(("shape", "size"), SHAPES.values(), ids=SHAPES.keys())
def test_tiles_are_as_accurate_as_the_definition(shape, size, options):
    x, labels, y = inputs(shape, size)
    truth = run(as_defined, x.double(), labels, y.double(), **options)
    eager = run(as_defined, x, labels, y, **options)
    tiled = run(reference.segmentation_loss, x, labels, y, **options)
    for index, unit in enumerate((1.0, 1.0, max(float(truth[2].abs().max()), 1 / labels.numel()))):
        assert_as_accurate(tiled[index], eager[index], truth[index], 3e-6 * unit)


def test_float64_is_the_definition():
    x, labels, y = (t.double() if t.is_floating_point() else t for t in inputs(*SHAPES["uneven"]))
    found = run(reference.segmentation_loss, x, labels, y)
    assert all(map(torch.equal, found, run(as_defined, x, labels, y)))


def test_short_dtypes_and_autocast_leave_float32():
    x, labels, y = inputs(*SHAPES["four-times"])
    short, target = x.bfloat16(), y.bfloat16()
    wanted = run(reference.segmentation_loss, short.float(), labels, target.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = run(reference.segmentation_loss, short, labels, target)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[2], wanted[2].bfloat16())


def test_nothing_to_learn_is_zero_and_what_is_not_finite_shows():
    x, labels, y = inputs(*SHAPES["four-times"])
    ohem, _, grad = run(reference.segmentation_loss, x, torch.full_like(labels, 255), x.clone())
    assert ohem == 0
    assert grad.abs().max() == 0
    x[0, 0, 0, 0] = torch.nan
    assert run(reference.segmentation_loss, x, labels, y)[0].isnan()


@pytest.mark.parametrize("classes", [1, 3, 256])
def test_the_first_of_the_largest_classes(classes):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (classes, 9, 11), generator=generator).float()
    wanted, flat = x.argmax(0).flatten(), x.flatten(1)
    assert torch.equal(upsampled.first_largest(flat.clone()).long(), wanted)
    flat[:, 0] = torch.nan
    assert upsampled.first_largest(flat)[0] == 0


@pytest.mark.parametrize("factor", [2, 4, 8, 32])
@pytest.mark.parametrize("kind", ["noise", "areas", "ties"])
@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (2, 25, 6, 9), (3, 256, 4, 3)])
def test_classes_between_four_logits_are_those_of_the_definition(shape, kind, factor):
    generator = torch.Generator().manual_seed(factor)
    x = torch.randn(shape, generator=generator)
    if kind == "areas":
        x = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
        x[:, 1] += 2 * (torch.arange(shape[3]) > shape[3] // 2)
    elif kind == "ties":
        x = x.round()
    size = (shape[2] * factor, shape[3] * factor)
    exact = reference.upsample_argmax(x.double(), size)
    found = reference.upsample_argmax(x.to(memory_format=torch.channels_last), size)
    assert found.shape == (shape[0], *size)
    assert found.is_contiguous()
    # ties are as exact as the weights, which are halves of powers of two
    assert (found != exact).sum() <= (1e-4 * exact.numel() if kind == "noise" else 0)
    alone = [reference.upsample_argmax(one[None], size) for one in x]
    assert torch.equal(torch.cat(alone), found)


@pytest.mark.parametrize("classes", [3, 25, 200])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_pairs_are_counted_whatever_the_label(classes, dtype):
    generator = torch.Generator().manual_seed(0)
    most = 256 if dtype == torch.uint8 else 70000
    labels = torch.randint(0 if most == 256 else -5, most, (2, 40, 50), generator=generator)
    labels[0] %= classes
    found = torch.randint(0, classes, labels.shape, generator=generator).to(torch.uint8)
    wanted = torch.zeros(classes, classes, dtype=torch.int64)
    for label, one in zip(labels.flatten().tolist(), found.flatten().tolist(), strict=True):
        if 0 <= label < classes:
            wanted[label, one] += 1
    assert torch.equal(count_pairs(found, labels.to(dtype), classes), wanted)


def test_shapes_alone_are_enough():
    with FakeTensorMode():
        x = torch.empty(2, 5, 6, 9, requires_grad=True)
        labels = torch.empty(2, 24, 36, dtype=torch.int64)
        (grad,) = torch.autograd.grad(sum(reference.segmentation_loss(x, labels, x.detach())), x)
    assert grad.shape == x.shape
