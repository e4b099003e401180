"""Parts of CMNeXt and CMX against plain formulations of the papers, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastseg.models.backbones.mit import BACKBONES
from fastseg.models.cross_modal.fusion import Fusion, Rectification
from fastseg.models.cross_modal.hub import SelfQueryHub, SharedPatchEmbed
from fastseg.models.cross_modal.pooling import PoolingBlock, PoolingBranch


def shaken(module):
    """In float64, with weights of which none is special."""
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def maps(tokens):
    return tokens.movedim(-1, -3)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_the_hub_selects_the_largest_scored_response():
    hub = shaken(SelfQueryHub(6, 3, "self_query"))
    x = torch.randn(3, 2, 5, 4, 6, dtype=torch.float64)
    y = [
        z * (1 + pair(maps(z)).sigmoid().movedim(1, -1))
        for z, pair in zip(x, hub.scores, strict=True)
    ]
    selected, own = hub(x)
    torch.testing.assert_close(selected, torch.maximum(torch.maximum(y[0], y[1]), y[2]))
    torch.testing.assert_close(own, torch.stack(y))
    there = torch.tensor([[1, 0], [0, 1], [1, 1]]).bool()
    selected, own = hub(x, there)
    torch.testing.assert_close(selected[0], torch.maximum(y[0][0], y[2][0]))
    torch.testing.assert_close(selected[1], torch.maximum(y[1][1], y[2][1]))


def test_the_mean_hub_counts_what_is_there():
    hub = SelfQueryHub(6, 3, "mean")
    assert not list(hub.parameters())
    x = torch.randn(3, 2, 5, 4, 6)
    there = torch.tensor([[1, 0], [0, 1], [1, 1]]).bool()
    torch.testing.assert_close(hub(x)[0], x.mean(0))
    torch.testing.assert_close(hub(x, there)[0][0], (x[0, 0] + x[2, 0]) / 2)


def test_each_modality_has_a_norm_of_its_own():
    embed = shaken(SharedPatchEmbed(2, 3, 8, 7, 4))
    x = torch.randn(2, 1, 3, 16, 16, dtype=torch.float64)
    wanted = [norm(embed.proj(z).movedim(1, -1)) for z, norm in zip(x, embed.norms, strict=True)]
    torch.testing.assert_close(embed(x), torch.stack(wanted))


def pooled(u, side):
    """The mean of each square without its part outside of the map, pixel by pixel."""
    h, w = u.shape[2:]
    r = side // 2
    rows = [
        torch.stack([u[..., max(i - r, 0) : i + r + 1, max(j - r, 0) : j + r + 1].mean((2, 3))
                     for j in range(w)], -1)
        for i in range(h)
    ]  # fmt: skip
    return torch.stack(rows, -2)


@pytest.mark.parametrize("training", [False, True])
def test_a_pooling_mixer(training):
    block = shaken(PoolingBlock(6, 4, 0.1)).train(training)
    with torch.no_grad():
        block.norm1.running_mean.normal_()
        block.norm2.running_var.uniform_(0.5, 2)
    tokens = torch.randn(2, 13, 9, 6, dtype=torch.float64)
    first, second = (torch.rand(2, 1, 1, 1, dtype=torch.float64) for _ in range(2))

    def norm(layer, x):
        mean, var = (layer.running_mean, layer.running_var)
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        scale = layer.weight / (var + 1e-5).sqrt()
        return (x - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    x = maps(tokens)
    g = norm(block.norm1, x)
    u = block.attn.conv0(g)
    mixed = block.attn.conv4(u + pooled(u, 3) + pooled(u, 7) + pooled(u, 11)).sigmoid() * g + g
    x = x + first * block.layer_scale_1.view(-1, 1, 1) * mixed
    means = F.pad(x.mean((2, 3)), (1, 1))
    gate = sum(block.gate.weight[0, 0, k] * means[:, k : k + 6] for k in range(3)).sigmoid()
    z = norm(block.norm2, x).movedim(1, -1)
    z = F.linear(z, block.mlp.fc1.weight, block.mlp.fc1.bias)
    z = F.gelu(block.mlp.dwconv.dwconv(maps(z))).movedim(1, -1)
    z = maps(F.linear(z, block.mlp.fc2.weight, block.mlp.fc2.bias))
    wanted = gate[..., None, None] * x + second * block.layer_scale_2.view(-1, 1, 1) * z
    torch.testing.assert_close(maps(block(tokens, first, second)), wanted)


def test_rectification():
    module = shaken(Rectification(4))
    x, z = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(2))
    a, b = maps(x), maps(z)
    pools = [a.mean((2, 3)), b.mean((2, 3)), a.flatten(2).max(-1)[0], b.flatten(2).max(-1)[0]]
    channel = module.channel_weights["mlp"](torch.cat(pools, 1)).sigmoid().view(2, 2, 4, 1, 1)
    pixel = module.spatial_weights["mlp"](torch.cat([a, b], 1)).sigmoid().view(2, 2, 1, 3, 5)
    got_x, got_z = module(x, z)
    torch.testing.assert_close(maps(got_x), a + 0.5 * channel[:, 1] * b + 0.5 * pixel[:, 1] * b)
    torch.testing.assert_close(maps(got_z), b + 0.5 * channel[:, 0] * a + 0.5 * pixel[:, 0] * a)


def test_fusion_by_linear_attention():
    heads, c = 2, 6
    module = shaken(Fusion(c, heads, 0.1)).eval()
    x, z = (torch.randn(2, 3, 5, c, dtype=torch.float64) for _ in range(2))
    cross = module.cross
    sides = []
    for tokens, proj, kv in (
        (x, cross.channel_proj1, cross.cross_attn["kv1"]),
        (z, cross.channel_proj2, cross.cross_attn["kv2"]),
    ):
        hidden = proj(tokens.flatten(1, 2)).relu()
        y, u = hidden[..., :c], hidden[..., c:]
        k, v = kv(u)[..., :c], kv(u)[..., c:]
        sides.append((y, u, k, v))

    def read(u, k, v):
        """Head by head and sample by sample."""
        out, d = torch.zeros_like(u), c // heads
        for n in range(2):
            for h in range(heads):
                part = slice(h * d, (h + 1) * d)
                context = (k[n, :, part].T @ v[n, :, part] / d**0.5).softmax(0)
                out[n, :, part] = u[n, :, part] @ context
        return out

    (y_x, u_x, k_x, v_x), (y_z, u_z, k_z, v_z) = sides
    x_out = x.flatten(1, 2) + cross.end_proj1(torch.cat([y_x, read(u_x, k_z, v_z)], -1))
    z_out = z.flatten(1, 2) + cross.end_proj2(torch.cat([y_z, read(u_z, k_x, v_x)], -1))
    both = torch.cat([cross.norm1(x_out), cross.norm2(z_out)], -1).mT.reshape(2, 2 * c, 3, 5)
    embed = module.channel_emb
    wanted = embed.norm(nn.Sequential(*embed.channel_embed)(both) + embed.residual(both))
    torch.testing.assert_close(module(x, z), wanted)


def test_the_published_order_between_levels_reads_channels_as_pixels():
    branch = PoolingBranch(BACKBONES["mit_nano"], 2, 0.1, "self_query", scramble=True)
    own, y = torch.randn(2, 3, 4, 6, 8), torch.randn(3, 4, 6, 8)
    got = branch.onward(y, own)
    for m in range(2):
        planes = maps(own[m]).contiguous()  # [B, C, H, W], as published
        wanted = planes.reshape(3, 4, 6, 8).permute(0, 3, 1, 2) + maps(y)
        torch.testing.assert_close(got[m], wanted)
    branch.scramble = False
    torch.testing.assert_close(branch.onward(y, own), maps(own + y))
