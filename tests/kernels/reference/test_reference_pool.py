"""Label maps of a level and masked prototype pooling, against loops over masks."""

import pytest
import torch
from torch.nn import functional

from fastseg.kernels import reference
from tests.support.optional_hypothesis import given, settings, st

# modalities, batch, channels, (h, w), (H, W), classes
SHAPES = {
    "level": (4, 2, 16, (8, 8), (32, 32), 25),
    "one-pixel": (1, 1, 1, (1, 1), (1, 1), 1),
    "odd": (3, 2, 5, (5, 7), (13, 17), 6),
    "many-classes": (6, 1, 3, (4, 6), (16, 24), 200),
    "upsampled": (2, 3, 4, (6, 6), (4, 4), 3),
}


def make_inputs(shape, dtype=torch.float64, seed=0):
    m, b, c, size, full, k = shape
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(m, b, c, *size, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, k + 1, (b, *full), generator=generator)
    labels[labels == k] = 255
    return features, labels, k


def pool_by_masks(features, labels, num_classes, divide="once"):
    """The published algorithm: a boolean mask per modality, sample and class."""
    m, b, c, h, w = features.shape
    small = functional.interpolate(labels[:, None].double(), size=(h, w), mode="nearest")[:, 0]
    rows, counts = [], torch.zeros(b, num_classes, dtype=torch.int64)
    for i in range(m):
        for n in range(b):
            for k in range(num_classes):
                mask = small[n] == k
                counts[n, k] = mask.sum()
                number = max(int(mask.sum()), 1)
                mean = features[i, n][:, mask].sum(1) / number
                rows.append(mean / number if divide == "twice" else mean)
    return torch.stack(rows).view(m, b, num_classes, c), counts


@pytest.mark.parametrize("divide", ["once", "twice"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_pool_equals_loop_over_masks(shape, divide):
    features, labels, k = make_inputs(shape)
    features.requires_grad_()
    prototypes, counts = reference.masked_prototype_pool(features, labels, k, divide)
    wanted, wanted_counts = pool_by_masks(features, labels, k, divide)
    torch.testing.assert_close(prototypes, wanted, rtol=1e-12, atol=1e-12)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, wanted_counts)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).double()
    (grad,) = torch.autograd.grad((prototypes * weight).sum(), features)
    (wanted_grad,) = torch.autograd.grad((wanted * weight).sum(), features)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-12, atol=1e-12)


def test_gradient_is_checked_numerically():
    features, labels, k = make_inputs((2, 2, 3, (3, 4), (6, 8), 3))
    features.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: reference.masked_prototype_pool(x, labels, k)[0], (features,)
    )


@pytest.mark.fault("F11")
def test_absent_class_is_a_zero_row_without_gradient():
    features = torch.ones(2, 1, 4, 2, 2, requires_grad=True)
    labels = torch.tensor([[[0, 0], [2, 255]]])
    prototypes, counts = reference.masked_prototype_pool(features, labels, 4)
    assert counts.tolist() == [[2, 0, 1, 0]]
    assert (prototypes[:, :, [1, 3]] == 0).all()
    assert (prototypes[:, :, [0, 2]] == 1).all()
    prototypes.sum().backward()
    wanted = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert torch.equal(features.grad, wanted.expand_as(features))


@pytest.mark.parametrize("value", [255, -1, 5, 200])
def test_all_ignored_gives_zeros_and_zero_gradient(value):
    features = torch.randn(1, 2, 3, 4, 4, requires_grad=True)
    labels = torch.full((2, 8, 8), value)
    prototypes, counts = reference.masked_prototype_pool(features, labels, 5)
    prototypes.sum().backward()
    assert not prototypes.any()
    assert not counts.any()
    assert not features.grad.any()


def test_byte_labels_do_not_wrap_at_256_classes():
    labels = torch.tensor([[[0, 1], [44, 255]]], dtype=torch.uint8)
    features = torch.randn(1, 1, 2, 2, 2)
    prototypes, counts = reference.masked_prototype_pool(features, labels, 300)
    assert counts[0].nonzero().flatten().tolist() == [0, 1, 44, 255]
    assert not prototypes[0, 0, 256:].any()


def test_low_precision_features_are_summed_in_float32():
    # 4097 ones: a bfloat16 or float16 sum would stop growing long before
    features = torch.ones(1, 1, 1, 1, 4097, dtype=torch.bfloat16, requires_grad=True)
    features_sum = features * 1.5
    labels = torch.zeros(1, 1, 4097, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        prototypes, _ = reference.masked_prototype_pool(features_sum, labels, 1)
    assert prototypes.dtype == torch.float32
    assert prototypes.item() == pytest.approx(1.5, rel=1e-6)
    prototypes.sum().backward()
    assert features.grad.dtype == torch.bfloat16


def test_strides_do_not_matter():
    features, labels, k = make_inputs(SHAPES["odd"])
    wanted, counts = reference.masked_prototype_pool(features, labels, k)
    strided = features.permute(1, 0, 3, 4, 2).contiguous().permute(1, 0, 4, 2, 3)
    wide = torch.stack([labels, labels], -1)[..., 0]
    assert not strided.is_contiguous()
    got, got_counts = reference.masked_prototype_pool(strided, wide, k)
    torch.testing.assert_close(got, wanted)
    assert torch.equal(got_counts, counts)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    m=st.integers(1, 6),
    b=st.integers(1, 3),
    k=st.integers(1, 9),
    scale=st.floats(-100, 100),
)
def test_pool_is_equivariant_and_linear(seed, m, b, k, scale):
    features, labels, k = make_inputs((m, b, 4, (4, 4), (8, 8), k), seed=seed)
    prototypes, counts = reference.masked_prototype_pool(features, labels, k)
    generator = torch.Generator().manual_seed(seed)
    classes, modalities = (torch.randperm(n, generator=generator) for n in (k, m))
    renamed = labels.clone()
    renamed[labels < k] = classes[labels[labels < k]]
    got, got_counts = reference.masked_prototype_pool(features[modalities] * scale, renamed, k)
    torch.testing.assert_close(got[:, :, classes], prototypes[modalities] * scale)
    assert torch.equal(got_counts[:, classes], counts)
    # the means weighted by their counts are the sum over the labelled pixels
    inside = labels[:, ::2, ::2] < k
    total = (features * inside[:, None]).sum((3, 4))
    torch.testing.assert_close((prototypes * counts[..., None]).sum(2), total)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    full=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_level_labels_equal_nearest_interpolation(full, size):
    labels = torch.arange(full[0] * full[1]).view(1, *full)
    wanted = functional.interpolate(labels[:, None].double(), size=size, mode="nearest")
    assert torch.equal(reference.level_labels(labels, size), wanted[:, 0].long())


def test_level_labels_of_an_integer_stride_are_a_view():
    labels = torch.zeros(2, 1024, 1024, dtype=torch.uint8)
    small = reference.level_labels(labels, (32, 32))
    assert small.dtype == torch.uint8
    assert small.data_ptr() == labels.data_ptr()


@pytest.mark.parametrize(
    ("features", "labels", "k", "divide", "message"),
    [
        ((2, 3, 4, 4), (3, 8, 8), 5, "once", r"\[M, B, C, h, w\].*\(2, 3, 4, 4\)"),
        ((1, 3, 2, 4, 4), (2, 8, 8), 5, "once", r"\(2, 8, 8\)"),
        ((1, 3, 2, 4, 4), (3, 1, 8, 8), 5, "once", r"\(3, 1, 8, 8\)"),
        ((1, 3, 2, 4, 4), (3, 8, 8), 0, "once", "num_classes must be at least 1, got 0"),
        ((1, 3, 2, 4, 4), (3, 8, 8), 5, "thrice", "divide must be .*'thrice'"),
        ((1, 3, 2, 0, 4), (3, 8, 8), 5, "once", r"at least 1 x 1.*\(0, 4\)"),
    ],
)
def test_wrong_arguments_are_named(features, labels, k, divide, message):
    with pytest.raises(ValueError, match=message):
        reference.masked_prototype_pool(
            torch.zeros(features), torch.zeros(labels, dtype=torch.int64), k, divide
        )


def test_float_labels_are_refused():
    with pytest.raises(ValueError, match=r"integers, got torch\.float32"):
        reference.masked_prototype_pool(torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 2, 2), 3)
