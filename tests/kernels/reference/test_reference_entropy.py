"""Functional entropy, information and their regulariser, against differentiating twice."""

import math

import pytest
import torch

from fastseg.kernels import reference
from tests.support.optional_hypothesis import given, settings, st
from tests.support.random_features import make_pair, normal, relative


def divergence(log_p, log_q, dim):
    return (log_q.exp() * (log_q - log_p)).sum(dim, keepdim=True)


# functional entropy


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    samples=st.integers(1, 12),
    spread=st.floats(1e-6, 3),
    factor=st.floats(1e-3, 1e3),
)
def test_entropy_is_its_definition_positive_and_homogeneous(seed, samples, spread, factor):
    values = (normal(samples, 4, seed=seed) * spread).exp().requires_grad_()
    entropy = reference.functional_entropy(values)
    mean = values.mean(0)
    wanted = (values * values.log()).mean(0) - mean * mean.log()
    torch.testing.assert_close(entropy, wanted, rtol=1e-6, atol=1e-13)
    assert (entropy >= -1e-18).all()
    torch.testing.assert_close(reference.functional_entropy(values * factor), entropy * factor)
    (grad,) = torch.autograd.grad(entropy.sum(), values)
    torch.testing.assert_close(grad, (values / mean).log() / samples, rtol=1e-6, atol=1e-9)


def test_entropy_at_its_edges():
    values = torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, 2.0]], requires_grad=True)
    entropy = reference.functional_entropy(values)
    torch.testing.assert_close(entropy, torch.tensor([0.5 * math.log(2), 0.0, 0.0]))
    entropy.sum().backward()
    assert values.grad.isfinite().all()
    assert not values.grad[:, 1:].any()
    by_row = reference.functional_entropy(values.detach().T.bfloat16(), dim=1)
    assert by_row.dtype == torch.float32
    torch.testing.assert_close(by_row, entropy.detach())
    with pytest.raises(ValueError, match="at least one sample"):
        reference.functional_entropy(torch.ones(0, 3))


# information of one draw


def informations_by_autograd(student, teacher, sigma, noise, dim):
    """A / f of both sides with the slope from autograd, per softmax group."""
    result = []
    for side, scale in zip(("student", "teacher"), sigma, strict=True):
        base = student if side == "student" else teacher.detach()
        z = base + scale * noise
        if not z.requires_grad:
            z.requires_grad_()
        log_p = (z if side == "student" else student).log_softmax(dim)
        log_q = (z if side == "teacher" else teacher).log_softmax(dim)
        f = divergence(log_p, log_q, dim)
        (slope,) = torch.autograd.grad(f.sum(), z, create_graph=True)
        # 1e-12 is the guard that keeps the ratio finite where the distributions coincide
        result.append((scale.square() * slope.square()).sum(dim, keepdim=True) / (f + 1e-12))
    return result


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("dim", [2, 3])
def test_information_and_gradient_equal_double_backward(dim, scale):
    student, teacher = make_pair(scale=scale)
    sigma = (normal(2, 1, 5, 1, 1, seed=3).abs() * scale, normal(2, 1, 5, 1, 1, seed=4).abs())
    noise = normal(*student.shape, seed=5)
    clean = student.detach()
    got = (
        reference.student_information(clean, teacher.log_softmax(dim), sigma[0], noise, dim),
        reference.teacher_information(clean.log_softmax(dim), teacher, sigma[1], noise, dim),
    )
    wanted = informations_by_autograd(student, teacher, sigma, noise, dim)
    for (information, direction), wanted_information in zip(got, wanted, strict=True):
        assert relative(information, wanted_information.detach()) < 1e-9
        (grad,) = torch.autograd.grad(wanted_information.sum(), student, retain_graph=True)
        assert relative(direction, grad) < 1e-8  # the sum of q r cancels in the oracle


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(1, 40),
    spread=st.sampled_from([1e-6, 1e-3, 1.0, 20.0, 200.0]),
)
def test_student_information_is_bounded_by_the_largest_variance(seed, classes, spread):
    # |p - q|^2 <= KL(q || p), so A / f <= max sigma^2, in float32 and with classes ruled out
    student, log_q = ((normal(64, classes, seed=seed + i) * spread).float() for i in range(2))
    sigma = normal(1, classes, seed=seed + 2).float().abs()
    noise = normal(64, classes, seed=seed + 3).float()
    information, direction = reference.student_information(
        student, log_q.log_softmax(1), sigma, noise, 1
    )
    assert (information >= 0).all()
    assert (information <= sigma.square().max() * 1.001).all()
    assert direction.isfinite().all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    x=st.floats(-3, 3),
    t=st.floats(-3, 3),
    spread=st.floats(0.05, 2.0),
    side=st.sampled_from(["student", "teacher"]),
)
def test_entropy_is_at_most_half_the_information(x, t, spread, side):
    # two classes, one of them perturbed: the noise is one-dimensional and its 4000 quantiles stand
    # for the whole normal distribution
    count = 4000
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    noise = torch.stack([torch.special.ndtri(levels), torch.zeros(count, dtype=torch.float64)], 1)
    sigma = torch.tensor([[spread, 0.0]], dtype=torch.float64)
    student = torch.tensor([[x, 0.0]], dtype=torch.float64).expand(count, 2)
    teacher = torch.tensor([[t, 0.0]], dtype=torch.float64).expand(count, 2)
    log_p, log_q = student.log_softmax(1), teacher.log_softmax(1)
    if side == "student":
        information, _ = reference.student_information(student, log_q, sigma, noise, 1)
        values = divergence((student + sigma * noise).log_softmax(1), log_q, 1)
    else:
        information, _ = reference.teacher_information(log_p, teacher, sigma, noise, 1)
        values = divergence(log_p, (teacher + sigma * noise).log_softmax(1), 1)
    entropy = reference.functional_entropy(values.clamp(min=0)).item()
    assert entropy <= information.mean().item() / 2 * 1.002 + 1e-9


@pytest.mark.parametrize("classes", [3, 12, 40])
def test_the_bound_holds_for_many_classes_within_sampling_error(classes):
    count = 20_000
    student, teacher = normal(1, classes, seed=1), normal(1, classes, seed=2)
    sigma, noise = normal(1, classes, seed=3).abs(), normal(count, classes, seed=4)
    log_q = teacher.log_softmax(1).expand(count, classes)
    values = divergence((student + sigma * noise).log_softmax(1), log_q, 1)
    information, _ = reference.student_information(
        student.expand(count, classes), log_q, sigma, noise, 1
    )
    ratio = reference.functional_entropy(values).item() / (information.mean().item() / 2)
    assert 0.1 < ratio < 1.03


# the information form


def fisher_by_autograd(student, teacher, noise, dim, sigma, normalise):
    """The definition, one modality and sample at a time, differentiated twice by autograd."""
    inverse = []
    for side in range(2):
        for m in range(len(student)):
            scores = [
                informations_by_autograd(
                    student[m : m + 1],
                    teacher[m : m + 1],
                    [scale[m : m + 1] for scale in sigma],
                    draw[m : m + 1],
                    dim,
                )[side].mean()
                for draw in noise
            ]
            information = torch.stack(scores).mean()
            if normalise:
                information = (
                    information * student.shape[dim] / (2 * sigma[side][m].square().mean())
                )
            inverse.append(1 / information)
    return torch.stack(inverse).norm()


@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("axis", ["channel", "height"])
@pytest.mark.parametrize("m", [1, 3])
def test_fisher_regulariser_equals_double_backward(m, axis, normalise):
    student, teacher = make_pair(m=m)
    noise = normal(3, *student.shape, seed=7)
    got = reference.fisher_regulariser(
        student, teacher, samples=3, noise=noise, axis=axis, normalise=normalise
    )
    sigma = []
    for x in (student.detach(), teacher):  # the spread of each channel of each modality
        spread = [[x[i, :, c].std(correction=0) for c in range(x.shape[2])] for i in range(m)]
        sigma.append(torch.tensor(spread, dtype=x.dtype)[:, None, :, None, None])
    dim = {"channel": 2, "height": 3}[axis]
    wanted = fisher_by_autograd(student, teacher, noise, dim, sigma, normalise)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=0)
    grads = [torch.autograd.grad(value * 3, student)[0] for value in (got, wanted)]
    assert relative(*grads) < 1e-8


@pytest.mark.parametrize("normalise", [False, True], ids=["plain", "normalised"])
def test_fisher_gradient_is_checked_numerically(normalise):
    student, teacher = make_pair(c=3, h=2, w=2)
    sigma = (normal(2, 1, 3, 1, 1, seed=3).abs(), normal(1, 1, 3, 1, 1, seed=4).abs())
    noise = normal(2, *student.shape, seed=5)
    assert torch.autograd.gradcheck(
        lambda x: reference.fisher_regulariser(
            x, teacher, noise=noise, sigma=sigma, normalise=normalise
        ),
        (student,),
    )


def test_normalised_information_is_one_for_nearly_uniform_softmaxes():
    sigma = torch.full((1, 1, 1, 1, 1), 1e-2, dtype=torch.float64)
    for m, c in ((1, 4), (3, 64)):
        student, teacher = make_pair(m=m, c=c, scale=1e-2)
        value = reference.fisher_regulariser(
            student, teacher, samples=4, sigma=(sigma, sigma), normalise=True
        )
        assert value.item() == pytest.approx(math.sqrt(2 * m), rel=0.02)


@pytest.mark.parametrize("m", [1, 2, 6])
def test_order_of_modalities_samples_and_channels_does_not_matter(m):
    student, teacher = make_pair(m=m, b=3)
    noise = normal(2, *student.shape, seed=5)
    value = reference.fisher_regulariser(student, teacher, noise=noise)
    generator = torch.Generator().manual_seed(0)
    rows, batch, channels = (torch.randperm(n, generator=generator) for n in (m, 3, 5))

    def shuffle(x):
        return x[..., rows, :, :, :, :][..., batch, :, :, :][..., channels, :, :]

    shuffled = reference.fisher_regulariser(*map(shuffle, (student, teacher)), noise=shuffle(noise))
    torch.testing.assert_close(shuffled, value)


def test_a_side_without_spread_adds_nothing():
    student, teacher = make_pair()
    noise = normal(2, *student.shape, seed=5)
    flat = student.detach() * torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1)
    flat.requires_grad_()
    value = reference.fisher_regulariser(flat, teacher, noise=noise, normalise=True)
    value.backward()
    assert value.isfinite()
    assert flat.grad.isfinite().all()
    nothing = torch.zeros(2, 2, 5, 4, 3, requires_grad=True)
    value = reference.fisher_regulariser(nothing, nothing.detach(), noise=noise)
    value.backward()
    assert value.item() == 0
    assert not nothing.grad.any()


def test_one_pixel_has_no_spread():
    student = normal(1, 1, 4, 1, 1).requires_grad_()
    assert reference.fisher_regulariser(student, normal(1, 1, 4, 1, 1, seed=1)) == 0


def test_nan_is_not_hidden():
    student, teacher = make_pair()
    with torch.no_grad():
        student[0, 0, 0, 0, 0] = torch.nan
    assert reference.fisher_regulariser(student, teacher).isnan()
    assert reference.profile_regulariser(student, teacher).isnan()
