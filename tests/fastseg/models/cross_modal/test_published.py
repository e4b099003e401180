"""Weights under the names and shapes of the released code, written here from its tables."""

import pytest
import torch

from fastseg.errors import CheckpointError
from fastseg.models import build_segmenter
from fastseg.models.cross_modal.published import (
    from_published,
    load_published,
    to_published,
)

WIDTHS, DEPTHS, REDUCTIONS = (64, 128, 320, 512), (3, 4, 6, 3), (8, 4, 2, 1)


def norm(name, c):
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def batch_norm(name, c):
    counts = {f"{name}.running_mean": (c,), f"{name}.running_var": (c,)}
    return norm(name, c) | counts | {f"{name}.num_batches_tracked": ()}


def layer(name, *shape, bias=True):
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def mit_block(name, c, reduction):
    found = norm(f"{name}.norm1", c) | norm(f"{name}.norm2", c)
    found |= layer(f"{name}.attn.q", c, c) | layer(f"{name}.attn.kv", 2 * c, c)
    found |= layer(f"{name}.attn.proj", c, c)
    if reduction > 1:
        found |= layer(f"{name}.attn.sr", c, c, reduction, reduction)
        found |= norm(f"{name}.attn.norm", c)
    found |= layer(f"{name}.mlp.fc1", 4 * c, c) | layer(f"{name}.mlp.fc2", c, 4 * c)
    return found | layer(f"{name}.mlp.dwconv.dwconv", 4 * c, 1, 3, 3)


def pooling_block(name, c, ratio):
    found = batch_norm(f"{name}.norm1", c) | batch_norm(f"{name}.norm2", c)
    found |= layer(f"{name}.attn.conv0", c, 1, 7, 7) | layer(f"{name}.attn.conv4", c, c, 1, 1)
    found |= layer(f"{name}.mlp.fc1", ratio * c, c, 1, 1)
    found |= layer(f"{name}.mlp.fc2", c, ratio * c, 1, 1)
    found |= layer(f"{name}.mlp.dwconv.dwconv", ratio * c, 1, 3, 3)
    found |= layer(f"{name}.c_nets.0", 1, 1, 3, bias=False)
    return found | {f"{name}.layer_scale_1": (c,), f"{name}.layer_scale_2": (c,)}


def fusion(level, c):
    frm, ffm = f"backbone.FRMs.{level}", f"backbone.FFMs.{level}"
    found = layer(f"{frm}.channel_weights.mlp.0", 4 * c, 4 * c)
    found |= layer(f"{frm}.channel_weights.mlp.2", 2 * c, 4 * c)
    found |= layer(f"{frm}.spatial_weights.mlp.0", c, 2 * c, 1, 1)
    found |= layer(f"{frm}.spatial_weights.mlp.2", 2, c, 1, 1)
    for i in (1, 2):
        found |= layer(f"{ffm}.cross.channel_proj{i}", 2 * c, c)
        found |= layer(f"{ffm}.cross.cross_attn.kv{i}", 2 * c, c, bias=False)
        found |= layer(f"{ffm}.cross.end_proj{i}", c, 2 * c) | norm(f"{ffm}.cross.norm{i}", c)
    embed = f"{ffm}.channel_emb"
    found |= layer(f"{embed}.residual", c, 2 * c, 1, 1, bias=False)
    found |= layer(f"{embed}.channel_embed.0", c, 2 * c, 1, 1)
    found |= layer(f"{embed}.channel_embed.1", c, 1, 3, 3)
    found |= layer(f"{embed}.channel_embed.3", c, c, 1, 1)
    return found | batch_norm(f"{embed}.channel_embed.4", c) | batch_norm(f"{embed}.norm", c)


def head(embed, classes):
    found = layer("decode_head.linear_fuse.conv", embed, 4 * embed, 1, 1, bias=False)
    found |= batch_norm("decode_head.linear_fuse.bn", embed)
    for i, c in enumerate(WIDTHS, start=1):
        found |= layer(f"decode_head.linear_c{i}.proj", embed, c)
    return found | layer("decode_head.linear_pred", classes, embed, 1, 1)


def released(kind, others):
    """Names and shapes of a B2 model with 25 classes."""
    found = head(512, 25)
    for level, (c, depth, reduction) in enumerate(zip(WIDTHS, DEPTHS, REDUCTIONS, strict=True)):
        inside, k = ((3, *WIDTHS)[level], 7 if level == 0 else 3)
        prefixes = ("", "extra_") if kind == "cmx" else ("",)
        for extra in prefixes:
            embed = f"backbone.{extra}patch_embed{level + 1}"
            found |= layer(f"{embed}.proj", c, inside, k, k) | norm(f"{embed}.norm", c)
            found |= norm(f"backbone.{extra}norm{level + 1}", c)
            for i in range(depth):
                found |= mit_block(f"backbone.{extra}block{level + 1}.{i}", c, reduction)
        found |= fusion(level, c)
        if kind == "cmx":
            continue
        embed = f"backbone.extra_downsample_layers.{level}"
        found |= layer(f"{embed}.proj.module", c, inside, k, k)
        for a in range(others):
            found |= norm(f"{embed}.norm.ln_{a}", c)
            score = f"backbone.extra_score_predictor.{level}.score_nets.{a}"
            found |= layer(f"{score}.0", c, 1, 3, 3) | layer(f"{score}.1", 1, c, 1, 1)
        for i in range(depth):
            block = f"backbone.extra_block{level + 1}.{i}"
            found |= pooling_block(block, c, (8, 8, 4, 4)[level])
        found |= norm(f"backbone.extra_norm{level + 1}", c)
    return found


@pytest.mark.parametrize(("kind", "others"), [("cmnext", 3), ("cmnext", 2), ("cmx", 1)])
def test_names_and_shapes_are_the_released_ones(kind, others):
    with torch.device("meta"):
        network = build_segmenter(f"{kind}_b2", 25, [f"m{i}" for i in range(others + 1)])
    state = to_published(network)
    assert {name: tuple(x.shape) for name, x in state.items()} == released(kind, others)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["cmnext_nano", "cmx_nano"])
def test_a_file_with_released_names_gives_the_same_network(kind, tmp_path):
    names = ["img", "depth", "lidar"][: 2 if kind == "cmx_nano" else 3]
    options = {} if kind == "cmx_nano" else {"scramble": True}
    torch.manual_seed(0)
    first, second = (build_segmenter(kind, 5, names, embed_dim=16, **options) for _ in range(2))
    state = {f"module.{name}": x.contiguous() for name, x in to_published(first).items()}
    torch.save({"model_state_dict": state}, tmp_path / "released.pth")
    report = load_published(second, tmp_path / "released.pth")
    assert report.loaded == len(state)
    images = torch.randn(len(names), 1, 3, 64, 64)
    assert torch.equal(first.eval()(images).logits, second.eval()(images).logits)


def test_a_state_that_does_not_fit_names_what_is_wrong():
    network = build_segmenter("cmnext_nano", 5, ["img", "depth"], embed_dim=16)
    state = to_published(network)
    del state["backbone.FRMs.0.channel_weights.mlp.0.bias"]
    state["backbone.norm1.weight"] = torch.full((16,), torch.nan)
    state["decode_head.linear_pred.weight"] = torch.zeros(7, 16, 1, 1)
    state["backbone.stray"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        from_published(network, state)
    for text in (
        "1 missing: backbone.FRMs.0.channel_weights.mlp.0.bias",
        "1 not finite: backbone.norm1.weight",
        "1 of another shape: decode_head.linear_pred.weight [7, 16, 1, 1] for [5, 16, 1, 1]",
        "1 unexpected: backbone.stray",
    ):
        assert text in str(caught.value)


def test_the_order_of_released_weights_changes_the_result():
    results = []
    for scramble in (False, True):
        torch.manual_seed(0)
        network = build_segmenter(
            "cmnext_nano", 5, ["a", "b", "c"], embed_dim=16, scramble=scramble
        ).eval()
        images = torch.randn(3, 1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        results.append(network(images).logits)
    assert not torch.allclose(*results, atol=1e-4)
