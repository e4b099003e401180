"""The encoder against its published sizes and initialisation, and its own definition."""

import math

import pytest
import torch
from torch import nn

from fastseg.errors import ConfigError
from fastseg.models.backbones.attention import attention
from fastseg.models.backbones.mit import BACKBONES, Backbone, MixTransformer, get_backbone

# encoder parameters and tensors in the state dict of the released weights
PUBLISHED = {
    "mit_b0": (3_319_392, 176),
    "mit_b1": (13_151_424, 176),
    "mit_b2": (24_196_288, 332),
    "mit_b3": (44_072_128, 572),
    "mit_b4": (60_842_688, 832),
    "mit_b5": (81_443_008, 1052),
}


@pytest.mark.parametrize(("name", "counts"), PUBLISHED.items(), ids=PUBLISHED.keys())
def test_sizes_are_those_of_the_released_weights(name, counts):
    with torch.device("meta"):
        encoder = MixTransformer(BACKBONES[name])
    assert (sum(p.numel() for p in encoder.parameters()), len(encoder.state_dict())) == counts


def test_names_are_those_of_the_released_weights():
    with torch.device("meta"):
        names = set(MixTransformer(BACKBONES["mit_b0"]).state_dict())
    block = ["norm1", "attn.q", "attn.kv", "attn.proj", "attn.sr", "attn.norm"]
    block += ["norm2", "mlp.fc1", "mlp.dwconv.dwconv", "mlp.fc2"]
    expected = {f"block1.0.{part}.{leaf}" for part in block for leaf in ("weight", "bias")}
    assert {n for n in names if n.startswith("block1.0.")} == expected
    # the last level attends to all of its tokens
    assert not any(n.startswith(("block4.0.attn.sr", "block4.0.attn.norm")) for n in names)
    assert {"patch_embed4.proj.weight", "patch_embed1.norm.bias", "norm4.weight"} <= names


@pytest.mark.parametrize("size", [(64, 96), (70, 53)], ids=["multiple", "odd"])
def test_levels_halve_and_keep_the_channels_last(size):
    config = BACKBONES["mit_nano"]
    features = MixTransformer(config)(torch.randn(2, 3, *size))
    h, w = (math.ceil(x / 4) for x in size)
    for x, width in zip(features, config.widths, strict=True):
        assert x.shape == (2, width, h, w)
        assert x.is_contiguous(memory_format=torch.channels_last)
        h, w = math.ceil(h / 2), math.ceil(w / 2)


# at most 64 keys take the plain form on the CPU, more take torch's fused kernel
@pytest.mark.parametrize("keys", [1, 64, 65])
def test_attention_is_its_definition(keys):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator).double() for n in (40, keys, keys))
    scores = torch.einsum("nhld,nhsd->nhls", q, k) / 8**0.5
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    torch.testing.assert_close(attention(q, k, v), weights @ v, rtol=1e-12, atol=1e-12)


def test_norms_use_the_two_published_eps():
    encoder = MixTransformer(BACKBONES["mit_b0"])
    eps = {n: m.eps for n, m in encoder.named_modules() if isinstance(m, nn.LayerNorm)}
    default = {n for n in eps if n.startswith("patch_embed") or n.endswith("attn.norm")}
    assert {eps[n] for n in default} == {1e-5}
    assert {eps[n] for n in eps.keys() - default} == {1e-6}


def test_initialisation_follows_the_release():
    torch.manual_seed(0)
    encoder = MixTransformer(BACKBONES["mit_b1"])
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            std = 0.02
        elif isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] ** 2
            std = math.sqrt(2 * module.groups / (area * module.out_channels))
        else:
            continue
        # six standard errors of the estimated deviation
        slack = 6 / math.sqrt(2 * module.weight.numel())
        assert module.weight.std().item() == pytest.approx(std, rel=slack), name
        if name == "patch_embed1.proj":
            # the one bias that is not zero: evenly spaced over the range of torch's own
            reach = (3 * 7 * 7) ** -0.5
            torch.testing.assert_close(module.bias, torch.linspace(-reach, reach, 64))
        else:
            assert not module.bias.any(), name


def test_drop_path_rises_linearly_over_all_blocks_and_keeps_the_mean():
    torch.manual_seed(0)
    encoder = MixTransformer(BACKBONES["mit_b0"], drop_path=0.35)
    factors = encoder.draw(torch.empty(4001, 3, 1, 1, dtype=torch.bfloat16))
    assert len(factors) == 2 * 8
    assert factors[:2] == [None, None]
    for i, factor in enumerate(factors[2:], start=2):
        p = 0.05 * (i // 2)
        assert factor.shape == (4001, 1, 1, 1)
        torch.testing.assert_close(factor.unique(), torch.tensor([0.0, 1 / (1 - p)]))
        # four standard errors
        assert factor.mean().item() == pytest.approx(1.0, abs=4 * (p / (1 - p) / 4001) ** 0.5)
        # compilers and kernels take it for a tensor of its own
        assert factor.is_contiguous()
        assert factor.data_ptr() % 16 == 0
    drawn = torch.stack(factors[2:]).bool()
    assert len(drawn.flatten(1).unique(dim=0)) == len(drawn)  # each for itself


@pytest.mark.parametrize("case", ["evaluation", "probability of 0"])
def test_nothing_is_dropped(case):
    encoder = MixTransformer(BACKBONES["mit_nano"], drop_path=0.5 * (case == "evaluation"))
    encoder.train(case != "evaluation")
    state = torch.get_rng_state()
    assert encoder.draw(torch.empty(2, 3, 1, 1)) == [None] * 8
    assert torch.equal(torch.get_rng_state(), state)


def test_drop_path_follows_the_global_seed():
    encoder = MixTransformer(BACKBONES["mit_nano"], drop_path=0.5)
    images = torch.randn(4, 3, 32, 32)

    def run(seed):
        torch.manual_seed(seed)
        return encoder(images)[3]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_every_parameter_has_a_gradient():
    encoder = MixTransformer(BACKBONES["mit_nano"], drop_path=0.0)
    features = encoder(torch.randn(2, 3, 64, 64))
    sum((x * torch.randn_like(x)).sum() for x in features).backward()
    # a constant added to all scores of a query changes nothing, so the key half of the bias gets
    # only rounding; everything else must be reached
    unreached = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


def test_unknown_backbone_suggests_the_nearest():
    with pytest.raises(ConfigError, match="'mit-b3': did you mean 'mit_b3'"):
        get_backbone("mit-b3")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"widths": (16, 32, 64, 120), "depths": (1, 1, 1, 1)}, "32 is not a multiple of its 3"),
        ({"widths": (16, 32, 64, 128), "depths": (1, 1, 0, 1)}, "at least 1"),
    ],
    ids=["heads", "depth"],
)
def test_impossible_backbones_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        Backbone(**config, heads=(1, 3, 4, 8))
