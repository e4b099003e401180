"""UMD and CMD: values and gradients against fp64 loops over samples, modalities and channels."""

import math

import pytest
import torch

from fastseg.methods.losses.features import cross_modal_distillation, unimodal_distillation

SHAPES = ((6, 8, 4), (10, 4, 2))
M, B = 3, 2
MARKS = torch.tensor([[1, 0], [1, 1], [0, 0]])


def make_levels(seed, m=M, b=B, scale=1.0):
    """Levels in fp64 whose channels are the fastest axis in memory."""
    generator = torch.Generator().manual_seed(seed)
    return [
        scale * torch.randn(m, b, h, w, c, generator=generator, dtype=torch.float64).movedim(-1, 2)
        for c, h, w in SHAPES
    ]


def defined_umd(student, teacher, axis, marks):
    dims = {"channel": 0, "height": 1, "map": 1}
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        for m in range(len(s)):
            for b in range(s.shape[1]):
                if not marks[m, b]:
                    continue
                own, other = s[m, b], t[m, b]
                if axis == "map":
                    own, other = own.flatten(1), other.flatten(1)
                p, q = (x.softmax(dims[axis]) for x in (own, other))
                total = total + (q * (q.log() - p.log())).sum() / own.numel()
    return total / student[0].shape[1]


def correlation(maps):
    """R of one sample, ``maps [A, C, h, w]``, diagonal 1."""
    rows = []
    for m in range(len(maps)):
        row = []
        for n in range(len(maps)):
            cosines = [
                (x * y).sum() / ((x * x).sum().sqrt() * (y * y).sum().sqrt())
                for x, y in zip(maps[m], maps[n], strict=True)
            ]
            row.append(sum(cosines) / len(cosines))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def defined_cmd(student, teacher, form, marks):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        for b in range(s.shape[1]):
            there = [m for m in range(len(s)) if marks[m, b]]
            own, other = s[there, b], t[there, b]
            if form == "code":
                # log_softmax and softmax over dim 1 of [C, h, w], then torch's MSE of matrices
                own = torch.stack([x.log_softmax(1) for x in own])
                other = torch.stack([x.softmax(1) for x in other])
                total = total + torch.nn.functional.mse_loss(correlation(own), correlation(other))
                continue
            a = len(there)
            apart = [(m, n) for m in range(a) for n in range(a) if m != n]
            mine, wanted = correlation(own), correlation(other)
            squares = [(mine[pair] - wanted[pair]) ** 2 for pair in apart]
            total = total + (sum(squares) / len(apart) if apart else 0.0 * own.sum())
    return total / student[0].shape[1]


def values_and_gradients(function, student, *args):
    leaves = [x.detach().clone().requires_grad_() for x in student]
    value = function(leaves, *args)
    return value.detach(), torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("marks", [None, MARKS])
@pytest.mark.parametrize(
    ("function", "defined", "form"),
    [
        *((unimodal_distillation, defined_umd, axis) for axis in ("channel", "height", "map")),
        *((cross_modal_distillation, defined_cmd, maps) for maps in ("features", "code")),
    ],
)
def test_value_and_gradient_are_those_of_the_definition(function, defined, form, marks):
    student, teacher = make_levels(0), make_levels(1)
    everywhere = torch.ones(M, B) if marks is None else marks
    wanted, slopes = values_and_gradients(defined, student, teacher, form, everywhere)
    assert wanted > 1e-4
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 3e-2)):
        near = [x.to(dtype) for x in student]
        value, gradients = values_and_gradients(
            function, near, [x.to(dtype) for x in teacher], form, marks
        )
        assert value.dtype == torch.float32
        assert value.ndim == 0
        assert value.item() == pytest.approx(wanted.item(), rel=tolerance)
        for x, found, slope in zip(near, gradients, slopes, strict=True):
            assert found.dtype == dtype
            assert found.stride() == x.stride()
            assert (found.double() - slope).norm() <= tolerance * slope.norm()
            if marks is not None:
                assert not found[marks == 0].any()


@pytest.mark.parametrize("axis", ["channel", "height", "map"])
def test_equal_features_are_at_the_minimum_and_close_ones_keep_their_digits(axis):
    teacher = make_levels(0)
    step = make_levels(1, scale=1e-3)
    student = [x + y for x, y in zip(teacher, step, strict=True)]
    everywhere = torch.ones(M, B)
    wanted = defined_umd(student, teacher, axis, everywhere)
    single = [[x.float() for x in levels] for levels in (student, teacher)]
    assert unimodal_distillation(*single, axis).item() == pytest.approx(wanted.item(), rel=1e-3)
    value, gradients = values_and_gradients(unimodal_distillation, single[1], single[1], axis)
    assert value == 0
    assert not any(x.any() for x in gradients)


def test_correlations_do_not_depend_on_scales_or_on_the_order_of_modalities():
    student, teacher = ([x.float() for x in make_levels(seed)] for seed in (0, 1))
    value = cross_modal_distillation(student, teacher)
    scaled = [x * torch.rand(x.shape[:3])[..., None, None].add(0.5) for x in student]
    torch.testing.assert_close(cross_modal_distillation(scaled, teacher), value)
    turned = [[x[[2, 0, 1]] for x in levels] for levels in (student, teacher)]
    torch.testing.assert_close(cross_modal_distillation(*turned), value)
    assert cross_modal_distillation(student, student) == 0


@pytest.mark.parametrize("maps", ["features", "code"])
@pytest.mark.parametrize("marks", [None, torch.tensor([[1, 1], [0, 0]])])
def test_one_modality_alone_has_no_correlations(maps, marks):
    student, teacher = (
        [x.float() for x in make_levels(seed, 1 if marks is None else 2)] for seed in (0, 1)
    )
    value, gradients = values_and_gradients(cross_modal_distillation, student, teacher, maps, marks)
    assert value == 0
    assert not any(x.any() for x in gradients)


def test_maps_of_zeros_have_no_direction():
    student, teacher = ([x.float() for x in make_levels(seed)] for seed in (0, 1))
    for x in student:
        x[:, :, 0] = 0
    value, gradients = values_and_gradients(cross_modal_distillation, student, teacher)
    assert math.isfinite(value)
    assert all(x.isfinite().all() and not x[:, :, 0].any() and x.any() for x in gradients)


def test_samples_do_not_see_each_other():
    """A batch is the mean of its samples, and one sample alone is a batch."""
    student, teacher = ([x.float() for x in make_levels(seed)] for seed in (0, 1))
    for function in (unimodal_distillation, cross_modal_distillation):
        alone = [
            function([x[:, b : b + 1] for x in student], [x[:, b : b + 1] for x in teacher])
            for b in range(B)
        ]
        torch.testing.assert_close(function(student, teacher), torch.stack(alone).mean())
