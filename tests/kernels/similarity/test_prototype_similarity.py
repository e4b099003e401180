"""Prototype similarity in Triton against its definition."""

import pytest
import torch

from fastseg.kernels.common import switch
from fastseg.kernels.reference import similarity as reference
from fastseg.kernels.testing import assert_as_accurate
from tests.support.optional_hypothesis import given, settings, st

pytest.importorskip("triton")
from fastseg.kernels.modules import PrototypeSimilarity
from fastseg.kernels.similarity import maps
from fastseg.kernels.similarity.cosine import prototype_similarity

pytestmark = pytest.mark.usefixtures("kernels")

# modalities, batch, channels, (h, w), (H, W), classes
SHAPES = {
    "level": (2, 1, 32, (8, 8), (32, 32), 25),
    "one-pixel": (1, 1, 1, (1, 1), (1, 1), 1),
    "one-pixel-of-many": (2, 1, 16, (1, 1), (4, 4), 3),
    "odd": (3, 2, 5, (5, 7), (13, 17), 6),
    "one-column": (1, 2, 8, (9, 1), (9, 3), 4),
    "upsampled": (6, 1, 4, (6, 6), (4, 4), 3),
    "deep": (5, 1, 72, (4, 6), (8, 12), 3),
    "many-classes": (1, 1, 8, (5, 8), (10, 16), 200),
}
SLACK = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def make_inputs(shape, device, dtype=torch.float32, seed=0):
    m, b, c, size, full, k = shape
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(m, b, c, *size, generator=generator).to(device, dtype)
    labels = torch.randint(-1, k + 2, (b, *full), generator=generator)
    labels[labels == k + 1] = 255
    return features, labels.to(device), k


def make_prototypes(features, k, dtype=torch.float32, seed=0):
    m, b, c = features.shape[:3]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, b, k, c, generator=generator).to(features.device, dtype)


def run(similarity, features, labels, k, prototypes=None):
    """Map and the gradients of a fixed weighting."""
    inputs = [features.detach().requires_grad_()]
    if prototypes is not None:
        inputs.append(prototypes.detach().requires_grad_())
    got = similarity(inputs[0], labels, k, *inputs[1:])
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    return got.detach(), *torch.autograd.grad((got * weight.to(got)).sum(), inputs)


def check(features, labels, k, prototypes=None):
    got = run(prototype_similarity, features, labels, k, prototypes)
    eager = run(reference.prototype_similarity, features, labels, k, prototypes)
    double = None if prototypes is None else prototypes.double()
    truth = run(reference.prototype_similarity, features.double(), labels, k, double)
    assert got[0].dtype == torch.float32
    assert got[1].dtype == features.dtype
    assert_as_accurate(got[0], eager[0], truth[0], slack=1e-6)
    for one, plain, exact in zip(got[1:], eager[1:], truth[1:], strict=True):
        scale = max(1.0, float(exact.abs().max()))
        # a gradient in half precision may round the other way
        assert_as_accurate(one, plain, exact, SLACK[one.dtype] * scale)
    return got


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_matches_the_definition(shape, device):
    check(*make_inputs(shape, device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["planar", "channels-last"])
def test_half_precision(dtype, layout, device):
    features, labels, k = make_inputs(SHAPES["deep"], device, dtype)
    check(features if layout == "planar" else LAYOUTS["channels-last"](features), labels, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_prototypes_that_are_given(dtype, device):
    features, labels, k = make_inputs(SHAPES["odd"], device)
    prototypes = make_prototypes(features, k, dtype).transpose(2, 3).contiguous().transpose(2, 3)
    got = check(features, labels, k, prototypes)
    assert got[2].dtype == dtype
    # detached, the pixels' gradient stays the same
    inputs = features.detach().requires_grad_()
    alone = prototype_similarity(inputs, labels, k, prototypes)
    weight = torch.randn(alone.shape, generator=torch.Generator().manual_seed(1)).to(alone)
    assert torch.equal(torch.autograd.grad((alone * weight).sum(), inputs)[0], got[1])


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
    features, labels, k = make_inputs((3, 2, 8, (4, 6), (16, 24), 2), device)
    features = layout(features)
    _, grad = check(features, labels, k)
    if features.movedim(2, -1).is_contiguous():
        assert grad.stride() == features.stride()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32], ids=str)
def test_labels_of_any_integer_dtype_and_strides(dtype, device):
    features, labels, _ = make_inputs((1, 2, 8, (4, 8), (16, 32), 5), device)
    labels = labels.clamp(0, 1) if dtype == torch.bool else labels
    check(features, labels.to(dtype).transpose(1, 2).contiguous().transpose(1, 2), 5)


def test_labels_do_not_wrap_around(device):
    features = torch.ones(1, 1, 2, 2, 2, device=device)
    labels = torch.tensor([[[1, 2**32 + 1], [2**32, 0]]], device=device)
    got = prototype_similarity(features, labels, 2)
    assert (got != 0).tolist() == [[[[True, False], [False, True]]]]


@pytest.mark.parametrize("programs", [1, 10**9], ids=["few-programs", "many-programs"])
@pytest.mark.parametrize("layout", ["planar", "channels-last"])
def test_sums_of_several_tiles_and_many_chunks(programs, layout, device, monkeypatch):
    monkeypatch.setattr(maps, "_PROGRAMS", programs)
    features, labels, k = make_inputs((1, 1, 8, (12, 16), (24, 32), 3), device)
    check(features if layout == "planar" else LAYOUTS["channels-last"](features), labels, k)


def test_absent_classes_and_ignored_pixels_give_zeros(device):
    features = torch.randn(2, 1, 4, 2, 2, device=device).requires_grad_()
    labels = torch.tensor([[[0, 0], [2, 255]]], device=device)
    got = prototype_similarity(features, labels, 4)
    (grad,) = torch.autograd.grad((got * got).sum(), features)
    assert not got[..., 1, 1].any()
    assert not grad[..., 1, 1].any()
    # a class of one pixel is its own mean
    assert torch.allclose(got[:, 0, 1, 0], torch.ones(2, device=device))
    got = prototype_similarity(features, labels * 0 - 1, 4)
    assert not got.any()
    assert not torch.autograd.grad(got.sum(), features)[0].any()


def test_features_of_ignored_pixels_may_be_anything_where_prototypes_are_given(device):
    features, labels, k = make_inputs(SHAPES["odd"], device)
    labels = labels * 0 + 255
    labels[:, 6:] = 1
    prototypes = make_prototypes(features, k).requires_grad_()
    features[..., 0, :] = torch.nan
    got, grad, _ = run(prototype_similarity, features, labels, k, prototypes.detach())
    assert not got[..., 0, :].any()
    assert not grad[..., 0, :].any()
    assert got.isfinite().all()


def test_vectors_without_a_direction_have_no_similarity_and_no_gradient(device):
    features, _, _ = make_inputs((1, 1, 4, (2, 3), (2, 3), 3), device)
    features[..., 0, 0] = 0
    features[..., 1, 2] = -features[..., 1, 1]  # the mean of class 1 is zero
    labels = torch.tensor([[[0, 0, 0], [0, 1, 1]]], device=device)
    got, grad = check(features, labels, 3)
    assert got[0, 0, 0, 0] == 0
    assert not got[..., 1, 1:].any()
    assert not grad[..., 1, 1:].any()


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.sampled_from([0.25, 4.0]))
def test_map_is_a_cosine_and_equivariant(seed, factor):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features, labels, k = make_inputs((3, 1, 8, (4, 4), (8, 8), 5), device, seed=seed)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed)).to(device)
    inside = (labels >= 0) & (labels < k)
    renamed = torch.where(inside, order.argsort()[labels.clamp(0, k - 1)], labels)
    got = prototype_similarity(features, labels, k)
    assert got.abs().max() <= 1
    other = prototype_similarity(factor * features.flip(0), renamed, k)
    torch.testing.assert_close(other, got.flip(0))


def test_results_repeat_bit_by_bit(device):
    inputs = make_inputs((1, 2, 5, (6, 6), (12, 12), 2), device)
    for first, second in zip(
        run(prototype_similarity, *inputs), run(prototype_similarity, *inputs), strict=True
    ):
        assert torch.equal(first, second)


def test_the_operators_are_registered_as_they_behave(device):
    features, labels, k = make_inputs((2, 1, 4, (2, 4), (4, 8), 1), device)
    features = LAYOUTS["channels-last"](features).requires_grad_()
    prototypes = make_prototypes(features, k).requires_grad_()
    for against in (None, prototypes):
        torch.library.opcheck(
            torch.ops.fastseg.prototype_similarity.default, (features, labels, k, against)
        )
    pixels = torch.rand(2 * 2 * 4, device=device)
    counts = torch.ones(1, 1, k, dtype=torch.int64, device=device)
    for scale, number, through in ((None, counts, True), (pixels.new_ones(()), None, False)):
        torch.library.opcheck(
            torch.ops.fastseg.prototype_similarity_bwd.default,
            (pixels, scale, [features.detach()], labels, pixels, pixels,
             prototypes.detach().flatten(), number, k, through),
        )  # fmt: skip


@pytest.mark.parametrize("own", [True, False], ids=["own", "given"])
def test_compiles_to_one_graph(own, device):
    features, labels, k = make_inputs((2, 1, 4, (2, 4), (4, 8), 3), device)
    prototypes = None if own else make_prototypes(features, k)
    compiled = torch.compile(prototype_similarity, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(
        run(compiled, features, labels, k, prototypes),
        run(prototype_similarity, features, labels, k, prototypes),
        strict=True,
    ):
        assert torch.equal(got, wanted)


def test_the_module_is_the_function(device):
    features, labels, k = make_inputs((1, 1, 4, (2, 2), (4, 4), 3), device)
    prototypes = make_prototypes(features, k)
    for against in (None, prototypes):
        wanted = prototype_similarity(features, labels, k, against)
        assert torch.equal(PrototypeSimilarity(k)(features, labels, against), wanted)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 4), (2, 0, 3, 4, 4), (2, 2, 0, 4, 4)], ids=str)
def test_empty_features(shape, device):
    labels = torch.zeros(shape[1], 8, 8, dtype=torch.uint8, device=device)
    got = prototype_similarity(torch.zeros(shape, device=device), labels, 2)
    assert got.shape == (*shape[:2], 4, 4)
    assert not got.any()


def test_the_definition_serves_what_the_kernel_does_not(device):
    features, labels, _ = make_inputs((1, 1, 4, (2, 2), (4, 4), 3), device)
    assert prototype_similarity(features, labels, 300).shape == (1, 1, 2, 2)
    with switch.force_reference():
        assert prototype_similarity(features.double(), labels, 3).dtype == torch.float64


@pytest.mark.parametrize(
    ("features", "labels", "options", "message"),
    [
        ((2, 3, 4, 4), (2, 8, 8), {}, r"\(2, 3, 4, 4\)"),
        ((1, 2, 3, 4, 4), (3, 8, 8), {}, r"\(3, 8, 8\)"),
        ((1, 2, 3, 0, 4), (2, 8, 8), {}, r"\(0, 4\)"),
        ((1, 2, 3, 4, 4), (2, 8, 8), {"num_classes": 0}, "at least 1, got 0"),
        ((1, 2, 3, 4, 4), (2, 8, 8), {"labels": torch.float32}, "integers, got torch.float32"),
        ((1, 2, 3, 4, 4), (2, 8, 8), {"features": torch.int64}, "floats, got torch.int64"),
        ((1, 2, 3, 4, 4), (2, 8, 8), {"device": "meta"}, "one device.* meta"),
        ((1, 2, 3, 4, 4), (2, 8, 8), {"prototypes": (1, 2, 3, 4)}, r"got \(1, 2, 3, 4\)"),
        ((1, 2, 3, 4, 4), (2, 8, 8), {"dtype": torch.int32}, "floats on .* got torch.int32"),
    ],
)
def test_wrong_inputs_are_named(features, labels, options, message, device):
    x = torch.zeros(features, dtype=options.get("features", torch.float32), device=device)
    y = torch.zeros(
        labels, dtype=options.get("labels", torch.int64), device=options.get("device", device)
    )
    prototypes = None
    if "prototypes" in options or "dtype" in options:
        shape = options.get("prototypes", (1, 2, 3, 3))
        prototypes = torch.zeros(shape, dtype=options.get("dtype"), device=device)
    with pytest.raises(ValueError, match=message):
        prototype_similarity(x, y, options.get("num_classes", 3), prototypes)
