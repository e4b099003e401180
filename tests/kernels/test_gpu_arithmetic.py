"""The emulated rounding of a GPU: within its bounds, and every operator under its worst errors.

All tests of kernels run with errors of mixed signs (the fixture ``kernels``). Here each operator
runs once more with all errors of one sign, where none cancels another: value and gradients by the
accuracy rule.
"""

import math

import numpy as np
import pytest
import torch

from fastseg import kernels
from fastseg.kernels import reference
from fastseg.kernels.common import switch
from fastseg.kernels.testing import assert_as_accurate
from tests.support import gpu_arithmetic

pytest.importorskip("triton")
import triton
import triton.language as tl

interpreted = pytest.mark.skipif(not switch.INTERPRET, reason="emulated in the interpreter alone")
N = 512


@triton.jit
def _unary_kernel(x_ptr, out_ptr, WHAT: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs)
    if WHAT == "exp":
        y = tl.exp(x)
    elif WHAT == "exp2":
        y = tl.exp2(x)
    elif WHAT == "log":
        y = tl.log(x)
    elif WHAT == "sqrt":
        y = tl.sqrt(x)
    elif WHAT == "rsqrt":
        y = tl.rsqrt(x)
    elif WHAT == "erf":
        y = tl.math.erf(x)
    elif WHAT == "divide":
        y = 3.0 / x
    else:
        y = tl.math.div_rn(tl.full((BLOCK,), 3.0, tl.float32), x)
    tl.store(out_ptr + offs, y)


@triton.jit
def _dot_kernel(a_ptr, b_ptr, out_ptr, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    a, b = tl.load(a_ptr + offs), tl.load(b_ptr + offs)
    tl.store(out_ptr + offs, tl.dot(a, b, input_precision=PRECISION))


def unary(what, x):
    out = torch.empty_like(x)
    _unary_kernel[(1,)](x, out, WHAT=what, BLOCK=len(x))
    return out


# what it computes, and its error relative to the result; the final rounding takes up to 2^-24
UNARY = {
    "exp": (torch.exp, 2**-22 + 8 * 2**-24),  # the product with log2(e) below 8 is rounded
    "exp2": (torch.exp2, 2**-22),
    "log": (torch.log, 2**-23),
    "sqrt": (torch.sqrt, 2**-23),
    "rsqrt": (torch.rsqrt, 2**-22),
    "erf": (torch.erf, 2**-22),
    "divide": (lambda x: 3 / x, 2 * 2**-23),
    "exact": (lambda x: 3 / x, 0.0),
}


@interpreted
@pytest.mark.parametrize("errors", ["mixed", "up", "down"])
@pytest.mark.parametrize("what", UNARY)
def test_an_error_is_as_large_as_documented_and_follows_the_operand(what, errors, monkeypatch):
    gpu_arithmetic.emulate(monkeypatch, errors)
    function, bound = UNARY[what]
    x = torch.rand(N, generator=torch.Generator().manual_seed(0)) * 4 + 0.03
    x[N // 2 :] = x[: N // 2].flip(0)
    got = unary(what, x)
    off = (got.double() / function(x.double()) - 1).where((x - 1).abs() > 0.01, 0)
    assert off.abs().max() <= bound + 2**-24
    if what != "exact":
        # larger than rounding to the nearest can be
        assert off.abs().max() > 1.2 * 2**-24
        signs = off.sign()[off.abs() > 2**-23.5].unique().tolist()
        assert signs == {"mixed": [-1, 1], "up": [1], "down": [-1]}[errors]
    assert torch.equal(got[: N // 2], got[N // 2 :].flip(0))
    assert torch.equal(got, unary(what, x))


@interpreted
def test_tf32_cuts_operands_off_and_ieee_does_not(monkeypatch):
    gpu_arithmetic.emulate(monkeypatch)
    a, b = (torch.rand(16, 16, generator=torch.Generator().manual_seed(i)) for i in (1, 2))

    def dot(precision):
        out = torch.empty_like(a)
        _dot_kernel[(1,)](a, b, out, PRECISION=precision, BLOCK=16)
        return out.double()

    short = [(x.numpy().view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b)]
    torch.testing.assert_close(
        dot("tf32"), torch.from_numpy(short[0].astype(np.float64) @ short[1]), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(dot("ieee"), a.double() @ b.double(), rtol=1e-6, atol=0)
    assert (dot("tf32") - dot("ieee")).abs().max() > 1e-4


@interpreted
def test_a_zero_divisor_is_refused(monkeypatch):
    gpu_arithmetic.emulate(monkeypatch)
    with pytest.raises(Exception, match="zero divisor"):
        unary("divide", torch.zeros(16))


# every operator under errors of one sign

M, B, K, SIDE = 2, 2, 4, 4


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels():
    found = torch.randint(0, K, (B, 16, 16), generator=torch.Generator().manual_seed(0))
    found[:, :4] = 255
    return found.to(torch.uint8)


def features(seed):
    """Of two levels, channels last."""
    return [normal(M, B, s, s, c, seed=seed + c).movedim(-1, 2) for c, s in ((8, SIDE), (16, 2))]


def counts():
    return torch.randint(1, 9, (B, K), generator=torch.Generator().manual_seed(1))


def regulariser(**more):
    return lambda f, x, t, noise: f(x, t, noise=noise, samples=len(noise), normalise=True, **more)


def head(f, x):
    """The head with a BatchNorm that learns from the batch."""
    norm = torch.nn.BatchNorm2d(16).to(x[0])
    return f(x[:2], *x[2:], norm)


def fusion(f, x):
    """All outputs together; as squares the branches have other gradients than the means."""
    means, (branch,) = f(x, torch.tensor([[[1, 1], [1, 0]]]).to(x[0].device), 1)
    return torch.cat([*(y.flatten() for y in means), *(y.flatten() ** 2 for y in branch)])


def users(f, x):
    """Features of which three users have other gradients."""
    return torch.cat([y.flatten() ** n for n, user in enumerate(f(x, 3), 1) for y in user])


def fold(f, x):
    """The products of all levels in one vector."""
    return torch.cat([y.flatten() for y in f(x[0], x[1:3], x[3:], x[0].dtype)])


# the call, its tensors of floats, of which the first group learns, and the slack
PAIRING = torch.tensor([[0, 1], [1, 0]])
STUDENT, TEACHER = features(1), features(2)
MAPS = [normal(M, B, SIDE, SIDE, seed=i).tanh() for i in (1, 2)]
ROWS = [normal(M, B, K, 8, seed=i) for i in (1, 2)]
SMALL = [normal(M, 1, 3, 5, 2, seed=i) for i in (1, 2)]
TOKENS = normal(B, 3, 4, 16, seed=1)
AFFINE = [1 + 0.1 * normal(16, seed=2), normal(16, seed=3)]
LEVELS = [normal(B, h, w, 16, seed=h).movedim(-1, 1) for h, w in ((3, 4), (2, 2))]
HEAD = [
    normal(B, 6, 8, 8, seed=8).movedim(-1, 1), normal(16, 8, seed=9), normal(K, 16, seed=10),
    normal(K, seed=11),
]  # fmt: skip
WEIGHTS = torch.linspace(0.3, 3, K)
CASES = {
    "masked_prototype_pool": (lambda f, x: f(x, labels(), K)[0], [STUDENT[0]], 1e-5),
    "prototype_divergence": (lambda f, x, t: f(x, t, counts(), PAIRING), ROWS, 1e-5),
    "prototype_similarity": (lambda f, x: f(x, labels(), K), [STUDENT[0]], 1e-5),
    "similarity_divergence": (lambda f, x, t: f(x, t, labels(), K), MAPS, 1e-5),
    "hybrid_prototype_distillation": (
        lambda f, x, t: f(x, t, labels(), K, PAIRING), [STUDENT, TEACHER], 1e-5,
    ),
    "ifv_distillation": (lambda f, x, t: f(x, t, labels(), K), [STUDENT, TEACHER], 1e-5),
    "segmentation_loss": (
        lambda f, x, t: torch.stack([*f(x, labels(), t), f(x, labels(), class_weights=WEIGHTS)[0]]),
        [normal(B, K, SIDE, SIDE, seed=i) for i in (1, 2)], 1e-5,
    ),
    "functional_entropy": (lambda f, x: f(x), [normal(3, 20, seed=1).exp()], 1e-5),
    "fisher_regulariser": (regulariser(), [*SMALL, normal(2, *SMALL[0].shape, seed=3)], 1e-4),
    "profile_regulariser": (regulariser(), [*SMALL, normal(2, 2, *SMALL[0].shape, seed=3)], 1e-4),
    "representation_regularisation": (
        lambda f, x, t, noise: f(x, t, noise=noise, samples=2),
        [[SMALL[0]], [SMALL[1]], [normal(2, *SMALL[0].shape, seed=3)]], 1e-4,
    ),
    "layer_norm": (lambda f, x: f(*x, 1e-6), [[TOKENS, *AFFINE]], 1e-5),
    "residual_layer_norm": (
        lambda f, x: torch.stack(f(x[0], x[1], torch.tensor([0.0, 1.25]).to(x[0]), *x[2:], 1e-6)),
        [[TOKENS, normal(*TOKENS.shape, seed=4), *AFFINE]], 1e-5,
    ),
    "depthwise_conv_gelu": (
        lambda f, x: f(*x), [[TOKENS, normal(16, 1, 3, 3, seed=5), AFFINE[1]]], 1e-5,
    ),
    "reduced_attention": (
        lambda f, x: f(*x), [[normal(B, 9, 2, 16, seed=6), normal(B, 4, 2, 2, 16, seed=7)]], 1e-5,
    ),
    "split_tokens": (
        lambda f, x: torch.cat([y.flatten() for y in f(*x)]),
        [[normal(B, 9, 2, 16, seed=6), normal(B, 4, 2, 2, 16, seed=7)]], 1e-5,
    ),
    "mean_fusion": (fusion, [STUDENT], 1e-5),
    "fan_out": (users, [STUDENT], 1e-5),
    "sum_of_upsampled": (lambda f, x: f(x, (6, 8)), [LEVELS], 1e-5),
    "mlp_head": (head, [[*LEVELS, *HEAD]], 1e-5),
    "folded_projections": (
        fold,
        [[normal(*size, seed=i) for i, size in enumerate(((8, 16), (8, 3), (8, 5), (8,), (8,)))]],
        1e-5,
    ),
}  # fmt: skip
INTEGERS = {"upsample_argmax", "upsample_confusion"}  # no value is close to another


def values_and_gradients(function, call, groups, dtype):
    groups = [
        [x.to(dtype) for x in group] if isinstance(group, list) else group.to(dtype)
        for group in groups
    ]
    first = groups[0] if isinstance(groups[0], list) else [groups[0]]
    for x in first:
        x.requires_grad_()
    value = call(function, *groups)
    weight = torch.linspace(1, 2, value.numel(), dtype=value.dtype).view(value.shape)
    grads = torch.autograd.grad((value * weight.to(value.device)).sum(), first)
    return value.detach(), *grads


def on(device, group):
    return [on(device, x) for x in group] if isinstance(group, list) else group.detach().to(device)


def test_every_operator_has_its_case():
    public = {name for name in kernels.__all__ if hasattr(reference, name)}
    assert public == CASES.keys() | INTEGERS


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("errors", ["up", "down"])
@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_accurate_where_no_error_cancels(name, errors, device, monkeypatch):
    if switch.INTERPRET:
        gpu_arithmetic.emulate(monkeypatch, errors)
    call, groups, slack = CASES[name]
    groups = on(device, groups)
    fused = values_and_gradients(getattr(kernels, name), call, groups, torch.float32)
    eager, truth = (
        values_and_gradients(getattr(reference, name), call, groups, dtype)
        for dtype in (torch.float32, torch.float64)
    )
    # where one level has no gradient but that of rounding, another one has
    scale = max(float(exact.abs().max()) for exact in truth[1:])
    for got, plain, exact in zip(fused, eager, truth, strict=True):
        assert math.isfinite(scale)
        assert_as_accurate(got, plain, exact, slack * max(scale, float(exact.abs().max())))
