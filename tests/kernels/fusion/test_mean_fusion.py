"""Mean fusion: means of all levels in one launch, gradients of all users of the features in one."""

import pytest
import torch

from fastseg.kernels import fan_out, mean_fusion, reference
from fastseg.kernels.common import switch
from fastseg.kernels.testing import assert_as_accurate

if switch.HAS_TRITON:
    from fastseg.kernels.fusion import mean as operators

FWD, BWD = "_mean_fusion_fwd_kernel", "_mean_fusion_bwd_kernel"
LEVELS = {  # C, h and w of each level
    "usual": [(8, 8, 6), (16, 4, 3)],
    "odd": [(5, 3, 7), (33, 2, 1), (3, 1, 1)],
    "more-than-a-tile": [(32, 9, 8)],
    "one-element": [(1, 1, 1)],
}
DTYPES = {
    "fp32": (torch.float32, 1e-6),
    "fp16": (torch.float16, 1e-3),
    "bf16": (torch.bfloat16, 8e-3),
}


def normal(*shape, seed=0, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def make_levels(m, b, sizes, device="cpu", dtype=torch.float32):
    return [
        normal(m, b, h, w, c, seed=i, device=device).to(dtype).movedim(-1, 2)
        for i, (c, h, w) in enumerate(sizes)
    ]


def make_marks(p, m, b, device):
    """At least one for each fusion and sample."""
    marks = torch.rand(p, m, b, generator=torch.Generator().manual_seed(0)) < 0.5
    marks[:, 0] |= ~marks.any(1)
    return marks.to(device).long()


def both_ways(function, levels, fused=None, branches=2, used=lambda outputs: outputs):
    """Means, then the gradients of the levels, of all outputs that are used."""
    levels = [x.detach().requires_grad_() for x in levels]
    means, users = function(levels, fused, branches)
    outputs = used([*means, *(x for user in users for x in user)])
    weights = [normal(*x.shape, seed=i).to(x) for i, x in enumerate(outputs)]
    grads = torch.autograd.grad(outputs, levels, weights, allow_unused=True)
    return [x.detach() for x in means], grads


def assert_matches(levels, slack, fused=None, **more):
    got = both_ways(mean_fusion, levels, fused, **more)
    with switch.force_reference():
        plain = both_ways(mean_fusion, levels, fused, **more)
        exact = both_ways(mean_fusion, [x.double() for x in levels], fused, **more)
    for results, eager, truth in zip(got, plain, exact, strict=True):
        for x, y, z in zip(results, eager, truth, strict=True):
            assert x.shape == y.shape
            assert x.dtype == y.dtype
            assert x.movedim(-3, -1).is_contiguous()
            assert_as_accurate(x, y, z, slack * z.abs().max().item())


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("sizes", LEVELS.values(), ids=LEVELS.keys())
@pytest.mark.parametrize(("m", "p"), [(1, 0), (2, 0), (6, 0), (1, 1), (3, 1), (3, 3)])
def test_means_and_gradients_are_as_accurate_as_the_definition(sizes, m, p, device):
    fused = make_marks(p, m, 2, device) if p else None
    assert_matches(make_levels(m, 2, sizes, device), 1e-6, fused)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("dtype", "slack"), DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("branches", [0, 1, 3])
def test_sums_are_rounded_once(dtype, slack, branches, device):
    levels = make_levels(4, 1, LEVELS["usual"], device, dtype)
    assert_matches(levels, slack, branches=branches)
    assert_matches(levels, slack, make_marks(2, 4, 1, device), branches=branches)


@pytest.mark.usefixtures("kernels")
def test_levels_have_dtypes_and_layouts_of_their_own(device):
    first, second = make_levels(3, 2, LEVELS["usual"], device)
    wide = torch.full((4, 2, 16, 4, 5), torch.nan, device=device)
    wide[1:, ..., 1:4] = second
    for x in (second.contiguous(), wide[1:, ..., 1:4], second.transpose(0, 1).contiguous()):
        x = x if x.shape == second.shape else x.transpose(0, 1)
        assert_matches([first.bfloat16(), x], 8e-3)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32])
def test_marks_of_any_dtype_and_strides(kind, device):
    levels = make_levels(3, 2, LEVELS["usual"], device)
    marks = make_marks(2, 3, 2, device)
    wanted, _ = mean_fusion(levels, marks)
    strided = marks.to(kind).transpose(0, 2).contiguous().transpose(0, 2)
    got, _ = mean_fusion(levels, strided)
    assert all(map(torch.equal, got, wanted))


@pytest.mark.usefixtures("kernels")
def test_what_is_not_marked_is_not_read(device):
    levels = make_levels(3, 2, LEVELS["usual"], device)
    marks = torch.tensor([[[1, 0], [0, 1], [0, 1]]], device=device)
    wanted, _ = mean_fusion(levels, marks)
    for x in levels:
        x[1:, 0] = torch.nan
        x[0, 1] = torch.nan
    got, _ = mean_fusion(levels, marks)
    assert all(map(torch.equal, got, wanted))


# users that leave gradients out, and what is launched

USES = {  # of the means and two branches of two levels; launches backward
    "all": (lambda x: x, 1),
    "means": (lambda x: x[:2], 1),
    "a branch": (lambda x: x[2:4], 0),
    "both branches": (lambda x: x[2:], 1),
    "a level": (lambda x: [x[1], x[3]], 1),
    "a mean and a branch of another level": (lambda x: [x[0], x[5]], 1),
    "a branch of a level": (lambda x: [x[5]], 0),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("use", USES)
def test_gradients_that_are_not_there_cost_nothing(use, marked, device, launched):
    used, backward = USES[use]
    levels = make_levels(3, 2, LEVELS["usual"], device)
    fused = make_marks(2, 3, 2, device) if marked else None
    _, got = both_ways(mean_fusion, levels, fused, used=used)
    assert launched == [FWD] + backward * [BWD]
    with switch.force_reference():
        _, wanted = both_ways(mean_fusion, levels, fused, used=used)
    for x, y in zip(got, wanted, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize(("used", "launches"), [(3, 1), (2, 1), (1, 0), (0, 0)])
def test_gradients_of_several_users_are_added_by_one_launch(used, launches, m, device, launched):
    levels = [x.requires_grad_() for x in make_levels(m, 2, LEVELS["usual"], device)]
    users = fan_out(levels, 3)
    for user in users:
        assert all(map(torch.equal, user, levels))
    weights = [make_levels(m, 2, LEVELS["usual"], device) for _ in range(used)]
    outputs = [x for user in users[:used] for x in user] + [x.sum() for x in levels]
    upstream = [2 * x for weight in weights for x in weight] + [torch.zeros((), device=device)] * 2
    grads = torch.autograd.grad(outputs, levels, upstream)
    for i, x in enumerate(grads):
        torch.testing.assert_close(x, sum(2 * weight[i] for weight in weights) + 0 * x)
    assert launched == launches * [BWD]


def test_one_user_has_the_features_themselves(device):
    levels = [x.requires_grad_() for x in make_levels(2, 1, LEVELS["usual"], device)]
    with switch.force_kernels():
        assert all(x is y for x, y in zip(fan_out(levels, 1)[0], levels, strict=True))
        with torch.no_grad():
            assert all(x is y for x, y in zip(fan_out(levels, 2)[1], levels, strict=True))
    with switch.force_reference():
        assert all(x is y for x, y in zip(fan_out(levels, 2)[1], levels, strict=True))


@pytest.mark.usefixtures("kernels")
def test_one_modality_is_its_own_mean(device, launched):
    levels = make_levels(1, 2, LEVELS["usual"], device)
    means, users = mean_fusion(levels, None, 1)
    assert all(
        torch.equal(x, y[0]) and x.data_ptr() == y.data_ptr()
        for x, y in zip(means, levels, strict=True)
    )
    assert all(x is y for x, y in zip(users[0], levels, strict=True))
    both_ways(mean_fusion, levels)
    assert launched == [BWD]


@pytest.mark.usefixtures("kernels")
def test_constant_features_are_their_branches(device, launched):
    levels = [x.requires_grad_() for x in make_levels(3, 2, LEVELS["usual"], device)]
    with torch.no_grad():
        means, users = mean_fusion(levels, None, 2)
    assert all(x is y for user in users for x, y in zip(user, levels, strict=True))
    assert not any(x.requires_grad for x in means)
    assert launched == [FWD]


@pytest.mark.usefixtures("kernels")
def test_results_repeat_bit_by_bit(device):
    levels = make_levels(4, 2, LEVELS["odd"], device)
    first, second = (both_ways(mean_fusion, levels) for _ in range(2))
    for results, others in zip(first, second, strict=True):
        assert all(map(torch.equal, results, others))


@pytest.mark.usefixtures("kernels")
def test_compiles_into_one_graph(device):
    levels = [x.requires_grad_() for x in make_levels(3, 2, LEVELS["usual"], device)]
    fused = make_marks(1, 3, 2, device)

    def step(levels, fused):
        means, (first, second) = mean_fusion(levels, fused, 2)
        terms = zip(means, first, second, strict=True)
        return sum((x**2).sum() + (y**3).sum() + z.sin().sum() for x, y, z in terms)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = [
        torch.autograd.grad(function(levels, fused), levels) for function in (step, compiled)
    ]
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.usefixtures("kernels")
def test_opcheck(device):
    levels = make_levels(2, 2, [(3, 2, 2), (4, 1, 1)], device)
    learning = [x.clone().requires_grad_() for x in levels]
    torch.library.opcheck(operators._mean_fusion, (learning, None))
    marks = make_marks(2, 2, 2, device)
    torch.library.opcheck(operators._mean_fusion, (learning, marks))
    means = operators._mean_fusion(levels, marks)
    args = (means[:1], levels, [1, 0], [1, 1], marks, [2, 2], [3, 2, 2, 4, 1, 1])
    torch.library.opcheck(operators._mean_fusion_bwd, args)


# the definition, and errors


def test_the_definition_serves_the_cpu_and_hands_the_features_on():
    levels = [x.requires_grad_() for x in make_levels(3, 2, LEVELS["usual"])]
    with switch._in_mode("auto"):
        means, users = mean_fusion(levels, None, 2)
    assert all(x is y for user in users for x, y in zip(user, levels, strict=True))
    for x, mean in zip(levels, means, strict=True):
        assert torch.equal(mean, x.movedim(2, -1).mean(0).movedim(-1, 1))
        assert mean.movedim(1, -1).is_contiguous()


def test_the_definition_is_a_mean_over_the_marked():
    (x,) = make_levels(3, 2, [(4, 2, 3)], dtype=torch.float64)
    marks = make_marks(2, 3, 2, "cpu")
    ((mean,), _) = reference.mean_fusion([x], marks)
    wanted = [x[marks[p, :, b].bool(), b].mean(0) for p in range(2) for b in range(2)]
    torch.testing.assert_close(mean, torch.stack(wanted))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reference.mean_fusion([x], marks)[0][0], x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nothing_to_fuse_gives_nothing(device):
    means, _ = mean_fusion([torch.zeros(3, 0, 4, 2, 2, device=device)])
    assert means[0].shape == (0, 4, 2, 2)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ([], {}, r"\[M, B, C, h, w\] of one M and B, M > 0, got \[\]"),
        ([torch.zeros(2, 3, 4, 4)], {}, r"got \[\[2, 3, 4, 4\]\]"),
        ([torch.zeros(0, 3, 4, 4, 1)], {}, "M > 0"),
        ([torch.zeros(2, 1, 4, 4, 1), torch.zeros(2, 2, 4, 4, 1)], {}, "of one M and B"),
        ([torch.zeros(2, 1, 4, 4, 1, dtype=torch.int32)], {}, "floats on one device, got .*int32"),
        ([torch.zeros(2, 1, 4, 4, 1)], {"branches": -1}, "at least 0, got -1"),
        ([torch.zeros(2, 1, 4, 4, 1)], {"fused": torch.ones(1, 3, 1)}, r"\[P, 2, 1\] on cpu, got"),
        ([torch.zeros(2, 1, 4, 4, 1)], {"fused": torch.ones(2, 1)}, r"got \[2, 1\]"),
    ],
)
def test_wrong_arguments_are_named(features, options, message):
    with pytest.raises(ValueError, match=message):
        mean_fusion(features, **options)
    if "fused" not in options:
        with pytest.raises(ValueError, match=message):
            fan_out(features, options.get("branches", 2))
