"""The kernels' random numbers: the generator they claim, normal, independent, read from memory."""

import numpy as np
import pytest
import torch

from fastseg.kernels.common import switch
from fastseg.kernels.entropy.regularisation import fisher_regulariser, profile_regulariser
from tests.support import gpu_arithmetic

if switch.HAS_TRITON:
    import triton
    import triton.language as tl

    from fastseg.kernels.entropy import kernel_math as common

pytestmark = pytest.mark.usefixtures("kernels")


def philox(counter, key):
    """Philox 4x32-10: counters ``[4, ...]`` uint32 to four integers each."""
    c = [np.asarray(x, dtype=np.uint64) for x in np.broadcast_arrays(*counter)]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        high, low = np.uint64(32), np.uint64(0xFFFFFFFF)
        c = [(b >> high) ^ c[1] ^ np.uint64(k0), b & low,
             (a >> high) ^ c[3] ^ np.uint64(k1), a & low]  # fmt: skip
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def noise_of(rows, images, elements, seed, stream):
    """What the kernels draw, ``[rows, images, elements]``."""
    image, element = np.arange(images)[:, None], np.arange(elements)
    noise = []
    for call in range(-(-rows // 4)):
        u = philox((element, image, call, stream), seed % 2**64)
        for radius, angle in ((u[0], u[1]), (u[2], u[3])):
            radius = np.sqrt(-2 * np.log((radius + 0.5) / 2**32))
            angle = angle.astype(np.uint32).astype(np.int32) * (np.pi / 2**31)
            noise += [radius * np.cos(angle), radius * np.sin(angle)]
    return torch.tensor(np.stack(noise[:rows]), dtype=torch.float32)


if switch.HAS_TRITON:

    @triton.jit
    def _draw_kernel(out_ptr, seed_ptr, stream, N, FAST: tl.constexpr, BLOCK: tl.constexpr):
        offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        image, call = tl.program_id(1), tl.program_id(2)
        four = common.draw_four(tl.load(seed_ptr), offs, image, call, stream, FAST)
        out_ptr += (call * 4 * tl.num_programs(1) + image) * N + offs
        for j in tl.static_range(4):
            tl.store(out_ptr + j * tl.num_programs(1) * N, four[j], mask=offs < N)

    @triton.jit
    def _pair_kernel(u_ptr, v_ptr, out_ptr, FAST: tl.constexpr, BLOCK: tl.constexpr):
        offs = tl.arange(0, BLOCK)
        u = tl.load(u_ptr + offs).to(tl.uint32, bitcast=True)
        v = tl.load(v_ptr + offs).to(tl.uint32, bitcast=True)
        cosine, sine = common.normal_pair(u, v, FAST)
        tl.store(out_ptr + offs, cosine)
        tl.store(out_ptr + BLOCK + offs, sine)


def draw(rows, images, elements, seed, stream, device):
    """The same from the kernels' own function."""
    out = torch.empty((rows, images, elements), device=device)
    key = torch.tensor([seed], device=device)
    block = 4096
    grid = (triton.cdiv(elements, block), images, rows // 4)
    _draw_kernel[grid](out, key, stream, elements, FAST=common.FAST, BLOCK=block)
    return out


def test_the_replica_is_philox():
    for word, wanted in {  # the known answers of the generator's authors
        0: (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        0xFFFFFFFF: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    }.items():
        assert [int(x) for x in philox([word] * 4, word * (2**32 + 1))] == list(wanted)


@pytest.mark.parametrize("seed", [0, 2**62 + 12345, -3])
def test_draws_equal_the_replica(seed, device):
    got, wanted = draw(8, 2, 700, seed, 3, device).cpu(), noise_of(8, 2, 700, seed, 3)
    assert (spread_of(got - wanted) <= rounding_of(spread_of(wanted))).all()


def spread_of(noise):
    """Lengths of the pairs that one transform makes."""
    return torch.hypot(noise[0::2], noise[1::2])


def rounding_of(radius):
    """The error of a pair of that radius on a GPU.

    Sine and cosine are 2^-20.5 off each; the square of the radius is 5e-7 off, since the logarithm
    is 2^-22 off where it is small and the float32 that it is taken of 2^-25.
    """
    return 2e-6 * radius + 5e-7 / radius.clamp(min=7e-4) + 1e-6


def test_the_smallest_radii_are_finite(device, monkeypatch):
    # a logarithm that is off may be positive just below one
    if switch.INTERPRET:
        gpu_arithmetic.emulate(monkeypatch, "up")
    steps = torch.arange(4096, device=device)
    u, v = (-1 - steps).int(), (steps * 1_048_576).int()
    out = torch.empty(2, len(steps), device=device)
    _pair_kernel[(1,)](u, v, out, FAST=common.FAST, BLOCK=len(steps))
    radius = spread_of(out)[0].double().cpu()
    wanted = torch.sqrt(-2 * torch.log1p(-(steps.cpu().double() + 0.5) / 2**32))
    assert (radius - wanted).abs().max() < 1e-3


def test_draws_are_normal_and_independent(device):
    # samples, sides and images of two levels and of two seeds; then neighbours
    streams = [draw(4, 2, 12_000, *key, device) for key in ((7, 0), (7, 1), (8, 0))]
    rows = torch.cat(streams).flatten(0, 1).double().cpu()
    assert len(rows) == 24
    count = rows.shape[1]
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() * count**0.5 < 4.5
    for lag in (1, 2, 32, 4096):
        assert (rows[:, lag:] * rows[:, :-lag]).mean().abs() * rows.numel() ** 0.5 < 4.5
    total = rows.flatten().sort().values
    n = len(total)
    assert total.mean().abs() * n**0.5 < 4
    assert abs(total.var().item() - 1) * (n / 2) ** 0.5 < 4
    assert abs(total.pow(4).mean().item() / total.var().item() ** 2 - 3) * (n / 24) ** 0.5 < 4
    empirical = (torch.arange(n) + 0.5) / n
    distance = (torch.special.ndtr(total) - empirical).abs().max()
    assert distance * n**0.5 < 1.63  # one in a hundred


def make_features(device, *shape):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device) for _ in range(2)]


def run(function, student, teacher, **options):
    student = student.detach().requires_grad_()
    value = function(student, teacher, **options)
    return value.detach(), torch.autograd.grad(value, student)[0]


@pytest.mark.parametrize(
    ("kernel", "options", "sides"),
    [
        (fisher_regulariser, {}, ()),
        (fisher_regulariser, {"axis": "height"}, ()),
        (profile_regulariser, {}, (2,)),
    ],
    ids=["paper", "paper-height", "code"],
)
@pytest.mark.parametrize("samples", [3, 5])
def test_seeded_equals_given_noise(samples, kernel, options, sides, device):
    student, teacher = make_features(device, 2, 1, 3, 4, 3)
    shape = (samples, *sides, *student.shape)
    rows = torch.Size(shape).numel() // student.numel()
    draws = noise_of(rows, 2, student[0, 0].numel(), 77, 0).view(shape).to(device)
    options = {"samples": samples, **options}
    wanted = run(kernel, student, teacher, noise=draws, **options)
    got = run(kernel, student, teacher, seed=77, **options)
    torch.testing.assert_close(got[0], wanted[0], rtol=2e-5, atol=0)
    assert (got[1] - wanted[1]).norm() < 1e-4 * wanted[1].norm()


def test_seed_is_read_when_the_kernel_runs(device):
    student, teacher = make_features(device, 1, 1, 3, 4, 2)
    seed = torch.tensor([3], device=device)
    for kernel, options in ((fisher_regulariser, {}), (profile_regulariser, {"samples": 1})):
        seed.fill_(3)
        first = run(kernel, student, teacher, seed=seed, **options)
        again = run(kernel, student, teacher, seed=seed, **options)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert torch.equal(kernel(student, teacher, seed=3, **options), first[0])
        seed.fill_(4)
        assert not torch.equal(kernel(student, teacher, seed=seed, **options), first[0])
