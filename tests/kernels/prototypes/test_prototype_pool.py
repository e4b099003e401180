"""Masked prototype pooling in Triton against its definition."""

import pytest
import torch

from fastseg.kernels import reference
from fastseg.kernels.common import switch
from fastseg.kernels.testing import assert_as_accurate
from tests.support.optional_hypothesis import given, settings, st

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastseg.kernels.modules import MaskedPrototypePool
from fastseg.kernels.prototypes import pool, pool_kernels
from fastseg.kernels.prototypes.pool import (
    masked_prototype_pool,
    masked_prototype_pools,
)

pytestmark = pytest.mark.usefixtures("kernels")

# modalities, batch, channels, (h, w), (H, W), classes
SHAPES = {
    "level": (4, 2, 32, (8, 8), (32, 32), 25),
    "one-pixel": (1, 1, 1, (1, 1), (1, 1), 1),
    "one-pixel-of-many": (2, 1, 16, (1, 1), (4, 4), 3),
    "odd": (3, 2, 5, (5, 7), (13, 17), 6),
    "one-column": (1, 2, 8, (9, 1), (9, 3), 4),
    "upsampled": (6, 1, 4, (6, 6), (4, 4), 3),
    "many-classes": (1, 1, 8, (9, 10), (18, 20), 200),
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_inputs(shape, device, dtype=torch.float32, seed=0):
    m, b, c, size, full, k = shape
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(m, b, c, *size, generator=generator).to(device, dtype)
    labels = torch.randint(-1, k + 2, (b, *full), generator=generator)
    labels[labels == k + 1] = 255
    return features, labels.to(device), k


def run(pool, features, labels, k, divide="once"):
    """Prototypes, counts and the gradient of a fixed weighting."""
    features = features.detach().requires_grad_()
    prototypes, counts = pool(features, labels, k, divide)
    weight = torch.randn(prototypes.shape, generator=torch.Generator().manual_seed(1))
    value = (prototypes * weight.to(prototypes)).sum()
    return prototypes, counts, torch.autograd.grad(value, features)[0]


def check(features, labels, k, divide="once"):
    got = run(masked_prototype_pool, features, labels, k, divide)
    eager = run(reference.masked_prototype_pool, features, labels, k, divide)
    truth = run(reference.masked_prototype_pool, features.double(), labels, k, divide)
    assert got[0].dtype == torch.float32
    assert torch.equal(got[1], truth[1])
    assert got[2].dtype == features.dtype
    for i in (0, 2):
        assert_as_accurate(got[i], eager[i], truth[i], slack=1e-6)
    return got


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_the_definition(shape, dtype, device):
    if shape[-1] == 200 and dtype != torch.bfloat16:
        pytest.skip("slow in the interpreter")
    check(*make_inputs(shape, device, dtype))


def test_the_second_division(device):
    check(*make_inputs(SHAPES["odd"], device), divide="twice")


LAYOUTS = {
    "channels-last": lambda x: x.movedim(2, -1).contiguous().movedim(-1, 2),
    "tokens": lambda x: x.movedim(0, 1).movedim(2, -1).contiguous().movedim(-1, 2).movedim(1, 0),
    "some-channels": lambda x: x.movedim(2, -1).contiguous().movedim(-1, 2)[:, :, :5],
    "some-modalities": lambda x: x[1::2],
    "expanded": lambda x: x[:1].expand(3, -1, -1, -1, -1),
    "every-other-column": lambda x: x[..., ::2],
    "turned": lambda x: x.transpose(3, 4),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_any_strides(layout, device):
    features, labels, k = make_inputs((3, 2, 8, (6, 8), (24, 32), 5), device)
    features = layout(features)
    _, _, grad = check(features, labels, k)
    if features.movedim(2, -1).is_contiguous():
        assert grad.stride() == features.stride()


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str
)
def test_labels_of_any_integer_dtype_and_strides(dtype, device):
    features, labels, _ = make_inputs((1, 2, 8, (4, 8), (16, 32), 5), device)
    labels = labels.clamp(0, 1) if dtype == torch.bool else labels
    labels = labels.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)
    check(features, labels, 5)
    check(features, labels[:, :, ::2], 5)


@pytest.mark.parametrize(("dtype", "stray"), [(torch.int64, 2**32 + 1), (torch.uint8, 255)])
def test_labels_do_not_wrap_around(dtype, stray, device):
    features = torch.ones(1, 1, 2, 2, 2, device=device)
    labels = torch.tensor([[[1, stray], [stray, 0]]], dtype=dtype, device=device)
    _, counts = masked_prototype_pool(features, labels, 2)
    assert counts.tolist() == [[1, 1]]


@pytest.mark.parametrize("programs", [1, 10**9], ids=["few-programs", "many-programs"])
@pytest.mark.parametrize("layout", ["planar", "channels-last"])
def test_chunks_of_several_tiles_and_many_chunks(programs, layout, device, monkeypatch):
    monkeypatch.setattr(pool, "_PROGRAMS", programs)
    monkeypatch.setattr(pool, "_PROGRAMS_BWD", programs)
    features, labels, k = make_inputs((1, 2, 8, (20, 24), (40, 48), 9), device)
    check(features if layout == "planar" else LAYOUTS["channels-last"](features), labels, k)


def test_several_maps_share_a_launch_and_their_counts(device):
    labels = make_inputs((1, 2, 1, (1, 1), (32, 32), 5), device)[1]
    maps = [
        make_inputs((m, 2, c, size, (32, 32), 5), device, dtype, seed=m)[0].requires_grad_()
        for m, c, size, dtype in (
            (2, 4, (8, 8), torch.float32),
            (1, 6, (4, 4), torch.float32),
            (3, 4, (8, 8), torch.bfloat16),
            (1, 4, (8, 8), torch.float32),
        )
    ]
    maps[3] = LAYOUTS["channels-last"](maps[3].detach()).requires_grad_()
    together = masked_prototype_pools(maps, labels, 5)
    total = sum((p * (i + 1)).sum() for i, (p, _) in enumerate(together))
    grads = torch.autograd.grad(total, maps)
    for i, (x, (prototypes, counts), grad) in enumerate(zip(maps, together, grads, strict=True)):
        alone = masked_prototype_pool(x, labels, 5)
        assert torch.equal(prototypes, alone[0])
        assert torch.equal(counts, alone[1])
        assert torch.equal(grad, torch.autograd.grad((alone[0] * (i + 1)).sum(), x)[0])


@pytest.mark.fault("F11")
def test_absent_classes_and_ignored_pixels_give_zeros(device):
    features = torch.randn(2, 1, 4, 2, 2, device=device, requires_grad=True)
    labels = torch.tensor([[[0, 0], [2, 255]]], device=device)
    prototypes, counts = masked_prototype_pool(features, labels, 4)
    assert counts.tolist() == [[2, 0, 1, 0]]
    assert not prototypes[:, :, [1, 3]].any()
    (grad,) = torch.autograd.grad(prototypes.sum(), features)
    assert grad[0, 0, 0].tolist() == [[0.5, 0.5], [1.0, 0.0]]
    prototypes, counts = masked_prototype_pool(features, labels * 0 - 1, 4)
    assert not torch.autograd.grad(prototypes.sum(), features)[0].any()
    assert not prototypes.any()
    assert not counts.any()


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.sampled_from([0.25, 4.0]))
def test_relabelling_permutes_and_scaling_scales(seed, factor):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features, labels, k = make_inputs((2, 1, 8, (4, 4), (8, 8), 5), device, seed=seed)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed)).to(device)
    inside = (labels >= 0) & (labels < k)
    renamed = torch.where(inside, order.argsort()[labels.clamp(0, k - 1)], labels)
    prototypes, counts = masked_prototype_pool(features, labels, k)
    other, other_counts = masked_prototype_pool(factor * features.flip(0), renamed, k)
    assert torch.equal(other, factor * prototypes.flip(0)[:, :, order])
    assert torch.equal(other_counts, counts[:, order])


@triton.jit
def _halves_kernel(x_ptr, upper_ptr, lower_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    upper, lower = pool_kernels.tf32_halves(tl.load(x_ptr + offs))
    tl.store(upper_ptr + offs, upper)
    tl.store(lower_ptr + offs, lower)


def test_the_halves_of_float32_survive_tf32(device):
    # the interpreter multiplies in full float32, so what tf32 cuts off is cut off here
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0)).to(device)
    halves = torch.empty_like(x), torch.empty_like(x)
    _halves_kernel[(1,)](x, *halves, BLOCK=1024)
    upper, lower = ((half.view(torch.int32) & -0x2000).view(torch.float32) for half in halves)
    assert torch.equal(upper, halves[0])
    error = (upper.double() + lower.double() - x.double()).abs()
    assert (error <= 2**-23 * x.abs()).all()


def test_the_operators_are_registered_as_they_behave(device):
    features, labels, k = make_inputs((2, 1, 4, (2, 4), (4, 8), 3), device)
    other = LAYOUTS["channels-last"](features)[:1].requires_grad_()
    maps = [features.requires_grad_(), other]
    torch.library.opcheck(torch.ops.fastseg.prototype_pool.default, (maps, labels, k, False))
    grad = torch.randn(3 * k * 4, device=device)
    counts = torch.ones(2, 1, k, dtype=torch.int64, device=device)
    layouts = [2, 4, 2, 4, 0, 2, 1, 4, 2, 4, 1, 1]
    for scale in (None, torch.ones((), device=device)):
        torch.library.opcheck(
            torch.ops.fastseg.prototype_pool_bwd.default,
            (grad, scale, labels, counts, layouts, True),
        )


def test_compiles_to_one_graph(device):
    features, labels, k = make_inputs((2, 1, 4, (2, 4), (4, 8), 3), device)
    compiled = torch.compile(masked_prototype_pool, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(
        run(compiled, features, labels, k),
        run(masked_prototype_pool, features, labels, k),
        strict=True,
    ):
        assert torch.equal(got, wanted)


def test_the_module_is_the_function(device):
    features, labels, k = make_inputs((1, 1, 4, (2, 2), (4, 4), 3), device)
    got = MaskedPrototypePool(k, "twice")(features, labels)
    for a, b in zip(got, masked_prototype_pool(features, labels, k, "twice"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 4, 4), (2, 0, 3, 4, 4), (2, 2, 0, 4, 4)], ids=["M0", "B0", "C0"]
)
def test_empty_features(shape, device):
    labels = torch.zeros(shape[1], 8, 8, dtype=torch.uint8, device=device)
    prototypes, counts = masked_prototype_pool(torch.zeros(shape, device=device), labels, 2)
    assert prototypes.shape == (*shape[:2], 2, shape[2])
    assert counts.tolist() == [[16, 0]] * shape[1]


def test_the_definition_serves_what_the_kernel_does_not(device):
    features, labels, _ = make_inputs((1, 1, 4, (2, 2), (4, 4), 3), device)
    prototypes, counts = masked_prototype_pool(features, labels, 300)
    assert prototypes.shape == (1, 1, 300, 4)
    assert counts.shape == (1, 300)
    with switch.force_reference():
        assert masked_prototype_pool(features.double(), labels, 3)[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("features", "labels", "options", "message"),
    [
        ((2, 3, 4, 4), (2, 8, 8), {}, r"\(2, 3, 4, 4\)"),
        ((1, 2, 3, 4, 4), (3, 8, 8), {}, r"\(3, 8, 8\)"),
        ((1, 2, 3, 4, 4), (2, 64), {}, r"\(2, 64\)"),
        ((1, 2, 3, 0, 4), (2, 8, 8), {}, r"\(0, 4\)"),
        ((1, 2, 3, 4, 4), (2, 0, 8), {}, r"\(2, 0, 8\)"),
        ((1, 2, 3, 4, 4), (2, 8, 8), {"num_classes": 0}, "at least 1, got 0"),
        ((1, 2, 3, 4, 4), (2, 8, 8), {"divide": "thrice"}, "'thrice'"),
        ((1, 2, 3, 4, 4), (2, 8, 8), {"labels": torch.float32}, "integers, got torch.float32"),
        ((1, 2, 3, 4, 4), (2, 8, 8), {"features": torch.int64}, "floats, got torch.int64"),
        ((1, 2, 3, 4, 4), (2, 8, 8), {"device": "meta"}, "one device.* meta"),
    ],
)
def test_wrong_inputs_are_named(features, labels, options, message, device):
    x = torch.zeros(features, dtype=options.get("features", torch.float32), device=device)
    y = torch.zeros(
        labels,
        dtype=options.get("labels", torch.int64),
        device=options.get("device", device),
    )
    with pytest.raises(ValueError, match=message):
        masked_prototype_pool(
            x, y, options.get("num_classes", 3), divide=options.get("divide", "once")
        )
