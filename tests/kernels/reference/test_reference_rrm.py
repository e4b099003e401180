"""The regulariser of the released code, and what both forms share."""

import pytest
import torch

from fastseg.kernels import reference
from tests.support.random_features import make_pair, normal, relative

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


def test_channels_that_agree_have_no_spread_to_change():
    """A blank sensor has no noise scale: its gradient is finite, and that of a fixed scale."""
    student, teacher = (x.detach().float() for x in make_pair(m=2, b=1, c=4, h=6, w=5))
    student[0] = 0.25
    noise = normal(3, 2, *student.shape, seed=5).float()
    for normalise in (False, True):
        options = {"samples": 3, "noise": noise, "normalise": normalise}
        grads = []
        for sigma_grad in (True, False):
            x = student.clone().requires_grad_()
            value = reference.profile_regulariser(x, teacher, sigma_grad=sigma_grad, **options)
            grads.append(torch.autograd.grad(value, x)[0])
        assert grads[0].isfinite().all()
        assert torch.equal(grads[0][0], grads[1][0])
        assert not torch.equal(grads[0][1], grads[1][1])


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


@pytest.mark.parametrize("normalise", [True, False], ids=["one-number", "released"])
def test_code_form_keeps_the_released_proportions_of_the_levels(normalise):
    student, teacher = make_levels()
    noise = [normal(3, 2, *x.shape, seed=20 + i) for i, x in enumerate(student)]
    wanted = sum(map(published_total, student, teacher, noise))
    if normalise:
        wanted = wanted / sum((3 * x[0, 0].numel()) ** 2 * x.shape[3] for x in student)
    got = reference.representation_regularisation(
        student, teacher, samples=3, noise=noise, form="code", normalise=normalise
    )
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=0)
    grads = (torch.autograd.grad(value, student) for value in (got, wanted))
    for grad, wanted_grad in zip(*grads, strict=True):
        assert relative(grad, wanted_grad) < 1e-10


@pytest.mark.parametrize("form", ["paper", "code-normalised"])
def test_levels_add_up_and_draw_their_own_noise(form):
    student, teacher = make_levels()
    got = reference.representation_regularisation(student, teacher, seed=9, form=form, samples=3)
    noise, terms = [], []
    for level, (x, t) in enumerate(zip(student, teacher, strict=True)):
        shape = x.shape if form == "paper" else (2, *x.shape)
        key = reference.fold_key(9, level)
        noise.append(torch.stack([reference.keyed_noise(shape, x, key, s) for s in range(3)]))
        regulariser = FORMS["paper" if form == "paper" else "code"]
        terms.append(regulariser(x, t, samples=3, noise=noise[-1], normalise=True))
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
    with pytest.raises(ValueError, match="'paper', 'code', 'code-normalised', got 'both'"):
        reference.representation_regularisation(*levels, form="both")
    with pytest.raises(ValueError, match="always normalised; the released value is 'code'"):
        reference.representation_regularisation(*levels, form="code-normalised", normalise=False)
    with pytest.raises(ValueError, match="got 3, 2 and none"):
        reference.representation_regularisation(levels[0], levels[1][:2])
    with pytest.raises(ValueError, match="got 3, 3 and 1"):
        reference.representation_regularisation(*levels, noise=[torch.zeros(1)])
