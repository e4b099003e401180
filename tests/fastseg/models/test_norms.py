"""The norms of an encoder: torch's own, or whatever has taken their place."""

import pytest
import torch
from torch import nn

from fastseg.models.backbones.norms import add, add_and_normalise, normalise

TOKENS = (2, 3, 4, 8)


class Doubled(nn.LayerNorm):
    """Stands for a fused layer of another library."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(TOKENS, generator=generator) for _ in range(2)]


FACTORS = {"plain": None, "factors": torch.tensor([0.0, 1.25]).view(2, 1, 1, 1)}


@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS.keys())
@pytest.mark.parametrize("kind", [nn.LayerNorm, Doubled])
def test_the_sum_and_its_norm_are_what_the_layers_give(kind, factor, tokens):
    norm, (x, branch) = kind(8, eps=1e-6), tokens
    nn.init.normal_(norm.weight)
    total = x + branch if factor is None else torch.addcmul(x, branch, factor)
    assert torch.equal(add(x, branch, factor), total)
    assert torch.equal(normalise(norm, x), norm(x))
    for found, wanted in zip(
        add_and_normalise(norm, x, branch, factor), (total, norm(total)), strict=True
    ):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", [nn.LayerNorm, Doubled])
def test_a_bias_in_the_branch_has_its_gradient_behind_any_norm(kind, tokens):
    norm, (x, branch) = kind(8), tokens
    factor, bias = FACTORS["factors"], torch.ones(8, requires_grad=True)
    wanted = add_and_normalise(norm, x, branch - 1 + bias, factor)
    (grad,) = torch.autograd.grad(sum(y.sin().sum() for y in wanted), bias)
    found = add_and_normalise(norm, x, branch, factor, bias)
    assert all(map(torch.equal, found, add_and_normalise(norm, x, branch, factor)))
    torch.testing.assert_close(
        torch.autograd.grad(sum(y.sin().sum() for y in found), bias)[0], grad
    )


def test_a_float32_factor_does_not_widen_a_short_stream(tokens):
    x, branch = (y.bfloat16() for y in tokens)
    factor = torch.tensor([0.0, 1.25]).view(2, 1, 1, 1)
    norm = nn.LayerNorm(8, dtype=torch.bfloat16)
    wanted = torch.addcmul(x, branch, factor.bfloat16())
    for total in (add(x, branch, factor), add_and_normalise(norm, x, branch, factor)[0]):
        assert total.dtype == torch.bfloat16
        assert torch.equal(total, wanted)
