"""Functional entropy, information and the regularisers, against autograd differentiating twice."""

import math

import pytest
import torch
from properties import given, settings, st

from fastseg.kernels import reference


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make_pair(m=2, b=2, c=5, h=4, w=3, seed=0, scale=1.0):
    student = (normal(m, b, c, h, w, seed=seed) * scale).requires_grad_()
    return student, normal(m, b, c, h, w, seed=seed + 1) * scale


def divergence(log_p, log_q, dim):
    return (log_q.exp() * (log_q - log_p)).sum(dim, keepdim=True)


def relative(got, wanted):
    """Error of a gradient, relative to its norm."""
    return ((got - wanted).norm() / wanted.norm()).item()


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


# the released code's form


def published_regulariser(x, t, noise, sigma_grad):
    """What the released code does for one sample and modality, gradients with a graph included."""
    n, _, channels, height, width = noise.shape
    noisy = []
    for feature, side in ((x, 0), (t, 1)):
        copies = feature.repeat_interleave(n, 0).view(channels * n, height * width)
        scale = copies.std(0)
        if not sigma_grad:
            scale = scale.detach()
        draws = noise[:, side].transpose(0, 1).reshape(channels * n, height * width)
        noisy.append((copies + draws * scale).view(channels * n, height, width))
    log_p = noisy[0].log_softmax(1)
    q = noisy[1].softmax(1).detach().requires_grad_()
    loss = (q * (q.log() - log_p)).mean().clamp(min=0)
    slopes = torch.autograd.grad(loss, (log_p, q), create_graph=True)
    scores = [(slope**2).sum(1).mean() / loss for slope in slopes]
    return torch.stack([1 / score for score in scores]).norm()


def published_total(student, teacher, noise, sigma_grad=True):
    total = 0.0
    for m in range(student.shape[0]):
        for b in range(student.shape[1]):
            total = total + published_regulariser(
                student[m, b], teacher[m, b], noise[:, :, m, b], sigma_grad
            )
    return total / student.shape[1]


PROFILES = {  # m, b, c, h, w, samples
    "usual": (3, 2, 6, 8, 5, 10),
    "one-draw": (2, 1, 4, 3, 7, 1),
    "one-column": (1, 3, 4, 5, 1, 2),
    "one-channel": (6, 1, 1, 4, 3, 3),
}


@pytest.mark.parametrize("sigma_grad", [True, False], ids=["through-sigma", "sigma-fixed"])
@pytest.mark.parametrize("shape", PROFILES.values(), ids=PROFILES.keys())
def test_code_form_equals_the_published_double_backward(shape, sigma_grad):
    m, b, c, h, w, samples = shape
    student, teacher = make_pair(m, b, c, h, w)
    if c == 1:  # copies of one channel have no spread, where the published std gives NaN gradients
        sigma_grad = False
    noise = normal(samples, 2, *student.shape, seed=5)
    wanted = published_total(student, teacher, noise, sigma_grad)
    (wanted_grad,) = torch.autograd.grad(wanted, student)
    options = {"samples": samples, "sigma_grad": sigma_grad}
    got = reference.profile_regulariser(student, teacher, noise=noise, **options)
    (grad,) = torch.autograd.grad(got, student)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=0)
    assert relative(grad, wanted_grad) < 1e-10

    single = student.detach().float().requires_grad_()
    got = reference.profile_regulariser(single, teacher.float(), noise=noise.float(), **options)
    (grad,) = torch.autograd.grad(got, single)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert relative(grad, wanted_grad) < 1e-5

    normalised = reference.profile_regulariser(
        student, teacher, noise=noise, normalise=True, **options
    )
    size = c * samples * h * w
    torch.testing.assert_close(normalised * size**2 * h, wanted, rtol=1e-10, atol=0)


def test_code_form_gradient_is_checked_numerically_through_sigma():
    student, teacher = make_pair(m=1, b=2, c=3, h=3, w=2)
    noise = normal(2, 2, *student.shape, seed=5)
    assert torch.autograd.gradcheck(
        lambda x: reference.profile_regulariser(x, teacher, samples=2, noise=noise, normalise=True),
        (student,),
    )


def test_code_form_without_a_choice_of_row_is_zero():
    student, teacher = make_pair(h=1)
    value = reference.profile_regulariser(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


# both forms, over the levels


def make_levels(seed=0):
    sides = ((4, 8), (6, 4), (8, 2))
    student = [
        normal(2, 3, c, s, s, seed=seed + i).requires_grad_() for i, (c, s) in enumerate(sides)
    ]
    return student, [normal(2, 3, c, s, s, seed=seed + 5 + i) for i, (c, s) in enumerate(sides)]


FORMS = {"paper": reference.fisher_regulariser, "code": reference.profile_regulariser}


@pytest.mark.parametrize("form", FORMS)
def test_levels_add_up_and_draw_their_own_noise(form):
    student, teacher = make_levels()
    got = reference.representation_regularisation(student, teacher, seed=9, form=form, samples=3)
    noise, terms = [], []
    for level, (x, t) in enumerate(zip(student, teacher, strict=True)):
        shape = x.shape if form == "paper" else (2, *x.shape)
        key = reference.fold_key(9, level)
        noise.append(torch.stack([reference.keyed_noise(shape, x, key, s) for s in range(3)]))
        terms.append(FORMS[form](x, t, samples=3, noise=noise[-1], normalise=True))
    torch.testing.assert_close(got, torch.stack(terms).sum())
    given_noise = reference.representation_regularisation(
        student, teacher, noise=noise, form=form, samples=3
    )
    torch.testing.assert_close(got, given_noise)
    grads = [torch.autograd.grad(value, student) for value in (got, given_noise)]
    for pair in zip(*grads, strict=True):
        torch.testing.assert_close(*pair)
    again = reference.representation_regularisation(student, teacher, seed=9, form=form, samples=3)
    other = reference.representation_regularisation(student, teacher, seed=8, form=form, samples=3)
    assert torch.equal(again, got)
    assert not torch.equal(other, got)


@pytest.mark.parametrize("form", FORMS)
def test_low_precision_under_autocast_is_as_accurate_as_its_values(form):
    student, teacher = make_levels()
    low = [[x.detach().bfloat16() for x in side] for side in (student, teacher)]
    low[0] = [x.transpose(3, 4).contiguous().transpose(3, 4).requires_grad_() for x in low[0]]
    exact = [x.detach().double().requires_grad_() for x in low[0]]
    options = {"form": form, "samples": 3, "seed": 4}
    wanted = reference.representation_regularisation(exact, [x.double() for x in low[1]], **options)
    with torch.autocast("cpu", torch.bfloat16):
        got = reference.representation_regularisation(*low, **options)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    grads = torch.autograd.grad(got, low[0])
    for grad, wanted_grad in zip(grads, torch.autograd.grad(wanted, exact), strict=True):
        assert grad.dtype == torch.bfloat16
        assert relative(grad.double(), wanted_grad) < 5e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("samples", [2, 20])
def test_backward_keeps_one_tensor_however_many_samples(form, samples):
    student, teacher = make_pair()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        FORMS[form](student, teacher, samples=samples)
    assert kept == [student.numel()]


@pytest.mark.parametrize("form", FORMS)
def test_teacher_is_a_constant(form):
    student, teacher = make_pair()
    teacher.requires_grad_()
    FORMS[form](student, teacher, samples=2).backward()
    assert teacher.grad is None
    assert student.grad.isfinite().all()


# noise


def test_noise_depends_on_the_key_alone():
    like = torch.zeros(1)
    draw = reference.keyed_noise((20_000,), like, 1, 2)
    torch.manual_seed(5)
    assert torch.equal(draw, reference.keyed_noise((20_000,), like, 1, 2))
    assert torch.equal(draw.double(), reference.keyed_noise((20_000,), like.double(), 1, 2))
    for other in ((2, 1), (1, 3), (1,), (1, 2, 0)):
        second = reference.keyed_noise((20_000,), like, *other)
        assert abs(torch.corrcoef(torch.stack([draw, second]))[0, 1]) < 0.03
    assert draw.mean().abs() < 0.03
    assert draw.std().item() == pytest.approx(1, abs=0.03)


def test_keys_do_not_collide():
    keys = [(a, b) for a in range(-20, 60) for b in range(80)] + [(2**63,), (-1,), ()]
    seeds = {reference.fold_key(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == len(keys)  # what a CPU generator uses
    assert all(0 <= seed < 2**64 for seed in seeds)


# errors


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        ((2, 2, 5, 4), (2, 2, 5, 4), {}, r"\[M, B, C, h, w\].*\(2, 2, 5, 4\)"),
        ((2, 2, 5, 4, 4), (4, 2, 5, 4, 4), {}, r"of one shape.*\(4, 2, 5, 4, 4\)"),
        ((2, 0, 5, 4, 4), (2, 0, 5, 4, 4), {}, r"\(2, 0, 5, 4, 4\)"),
        ((2, 2, 5, 4, 4), (2, 2, 5, 4, 4), {"samples": 0}, "at least 1, got 0"),
        ((2, 2, 5, 4, 4), (2, 2, 5, 4, 4), {"noise": torch.zeros(3)}, r"noise of .*got \(3,\)"),
    ],
)
def test_wrong_arguments_are_named(form, student, teacher, options, message):
    with pytest.raises(ValueError, match=message):
        FORMS[form](torch.zeros(student), torch.zeros(teacher), **options)


def test_wrong_options_are_named():
    student, teacher = make_pair()
    with pytest.raises(ValueError, match="'width'"):
        reference.fisher_regulariser(student, teacher, axis="width")
    with pytest.raises(ValueError, match=r"five axes.*\(\)"):
        reference.fisher_regulariser(student, teacher, sigma=(torch.ones(()), torch.ones(())))
    with pytest.raises(ValueError, match="standard deviation"):
        reference.profile_regulariser(student[:, :, :1], teacher[:, :, :1], samples=1)
    levels = make_levels()
    with pytest.raises(ValueError, match="'both'"):
        reference.representation_regularisation(*levels, form="both")
    with pytest.raises(ValueError, match="got 3, 2 and none"):
        reference.representation_regularisation(levels[0], levels[1][:2])
    with pytest.raises(ValueError, match="got 3, 3 and 1"):
        reference.representation_regularisation(*levels, noise=[torch.zeros(1)])
