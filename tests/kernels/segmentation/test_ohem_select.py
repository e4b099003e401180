"""The selection of the largest losses against a sort."""

import math

import pytest
import torch

from fastseg.kernels.segmentation.ohem_select import ohem_select

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("pixels", [1, 3000, 40000])
@pytest.mark.parametrize("digits", [9, 1], ids=["distinct", "ties"])
def test_selection_keeps_the_largest(pixels, digits, device):
    generator = torch.Generator().manual_seed(pixels)
    losses = (3 * torch.randn(pixels, generator=generator) - 4).exp().float()
    losses = (losses * 10**digits).round() / 10**digits
    losses[torch.rand(pixels, generator=generator) < 0.1] = -1.0
    hard, valid = losses > 0.5, losses >= 0
    sums = torch.stack([losses[hard].sum(), torch.tensor(3.0)])[:, None]
    counts = torch.stack([valid.sum(), hard.sum()])[:, None].int()
    ohem, kl, (cutoff, above, tied) = ohem_select(
        losses.to(device), sums.to(device), counts.to(device),
        threshold=math.exp(-0.5), min_kept=0.4, kl_scale=0.5, has_teacher=True,
    )  # fmt: skip
    n = int(int(valid.sum()) * 0.4)
    kept = losses.double().sort(descending=True).values[:n]
    assert kl == 1.5
    if n:
        assert ohem.item() == pytest.approx(kept.mean().item(), rel=1e-6)
        assert cutoff == kept[-1]
        weights = torch.zeros(pixels).masked_fill(losses > cutoff.cpu(), above.item())
        weights.masked_fill_(losses == cutoff.cpu(), tied.item())
        assert weights.double().sum().item() == pytest.approx(1, rel=1e-5)


def test_share_is_not_rounded(device):
    # 0.7 in float32 is less than in float64, and would keep six of ten
    for share, kept in ((0.1, 1), (0.7, 7)):
        losses = torch.arange(10.0, device=device) / 100
        counts = torch.tensor([[10], [0]], device=device, dtype=torch.int32)
        ohem, _, _ = ohem_select(
            losses, torch.zeros(2, 1, device=device), counts,
            threshold=0.5, min_kept=share, kl_scale=1.0, has_teacher=False,
        )  # fmt: skip
        assert math.floor(10 * share) == kept
        assert ohem.item() == pytest.approx((10 * kept - kept * (kept + 1) / 2) / kept / 100)
