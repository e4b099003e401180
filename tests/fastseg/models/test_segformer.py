"""The segmenter: any subset of modalities, the folded head, precision and compilation."""

import pytest
import torch
import torch.nn.functional as F

from fastseg.errors import ConfigError
from fastseg.models import BACKBONES, SegFormer
from fastseg.models.heads.mlp import MLPHead

TOLERANCES = {"fp32": (torch.float32, 5e-6), "fp64": (torch.float64, 1e-12)}


def make_images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def nano():
    torch.manual_seed(0)
    return SegFormer("mit_nano", num_classes=7, embed_dim=24).eval()


def test_shapes(nano):
    logits, features = nano(make_images(3, 2, 3, 64, 96))
    assert logits.shape == (2, 7, 16, 24)
    shapes = [(3, 2, c, 16 >> i, 24 >> i) for i, c in enumerate(BACKBONES["mit_nano"].widths)]
    assert [x.shape for x in features] == shapes


@pytest.mark.parametrize(("dtype", "slack"), TOLERANCES.values(), ids=TOLERANCES.keys())
def test_one_call_equals_a_loop_over_samples_and_modalities(dtype, slack):
    torch.manual_seed(0)
    model = SegFormer("mit_b0", num_classes=5, embed_dim=32).eval().to(dtype)
    images = make_images(3, 2, 3, 64, 64).to(dtype)
    with torch.no_grad():
        logits, features = model(images)
        for b in range(2):
            alone = [model.encode(images[m : m + 1, b : b + 1]) for m in range(3)]
            stacked = [torch.cat(level) for level in zip(*alone, strict=True)]
            for together, separate in zip(features, stacked, strict=True):
                torch.testing.assert_close(together[:, b : b + 1], separate, rtol=slack, atol=slack)
            one = model.decode(model.fuse(stacked))
            torch.testing.assert_close(logits[b : b + 1], one, rtol=slack, atol=slack)


@pytest.mark.parametrize("subset", [[2], [0, 3], [3, 1, 0]], ids=str)
def test_fusing_a_subset_equals_encoding_it_alone(nano, subset):
    images = make_images(4, 2, 3, 64, 64)
    with torch.no_grad():
        features = nano.encode(images)
        fused = nano.decode(nano.fuse([x[subset] for x in features]))
        torch.testing.assert_close(fused, nano(images[subset]).logits, rtol=5e-6, atol=5e-6)
        # and it is not blind to the choice
        assert (fused - nano(images).logits).abs().max() > 1e-3


def test_fusion_is_the_mean_and_keeps_the_channels_last(nano):
    for x, fused in zip(
        features := nano.encode(make_images(3, 2, 3, 32, 32)), nano.fuse(features), strict=True
    ):
        torch.testing.assert_close(fused, (x[0] + x[1] + x[2]) / 3)
        assert fused.is_contiguous(memory_format=torch.channels_last)


def plain_head(head, features):
    """The head as published: project, upsample, concatenate from the deepest level, convolve."""
    ups = []
    for i in (4, 3, 2, 1):
        x = features[i - 1].movedim(1, -1)
        y = getattr(head, f"linear_c{i}")["proj"](x).movedim(-1, 1)
        ups.append(F.interpolate(y, features[0].shape[2:], mode="bilinear", align_corners=False))
    x = head.linear_fuse["bn"](head.linear_fuse["conv"](torch.cat(ups, dim=1)))
    return head.linear_pred(head.dropout(x.relu()))


def folded_head(head, features):
    return head(features, head.draw(features))


def test_folded_head_equals_the_plain_one():
    """Outputs, gradients of every parameter and feature, and BatchNorm's statistics, in fp64."""
    widths, results = (8, 12, 20, 32), []
    for forward in (folded_head, plain_head):
        torch.manual_seed(0)
        head = MLPHead(widths, num_classes=5, embed_dim=16, dropout=0.3).double()
        features = [
            make_images(3, c, 16 >> i, 24 >> i, seed=i).double().requires_grad_()
            for i, c in enumerate(widths)
        ]
        torch.manual_seed(1)
        logits = forward(head, features)
        (logits * make_images(*logits.shape, seed=9)).sum().backward()
        grads = [x.grad for x in (*features, *head.parameters())]
        results.append([logits.detach(), *head.buffers(), *grads])
    for folded, plain in zip(*results, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("backbone", "embed_dim", "millions"),
    [
        ("mit_b0", 256, 0.401),
        ("mit_b0", 768, 2.776),
        ("mit_b1", 256, 0.532),
        ("mit_b5", 768, 3.170),
    ],
)
def test_head_sizes_are_the_published_ones(backbone, embed_dim, millions):
    with torch.device("meta"):
        head = MLPHead(BACKBONES[backbone].widths, 25, embed_dim, 0.1)
    assert round(sum(p.numel() for p in head.parameters()) / 1e6, 3) == millions


def test_names_are_those_of_the_published_checkpoints(nano):
    names = {n for n in nano.state_dict() if not n.startswith("encoder.")}
    leaves = {f"linear_c{i}.proj.{leaf}" for i in range(1, 5) for leaf in ("weight", "bias")}
    leaves |= {"linear_fuse.conv.weight", "linear_pred.weight", "linear_pred.bias"}
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    leaves |= {f"linear_fuse.bn.{leaf}" for leaf in bn}
    assert names == {f"decoder.{leaf}" for leaf in leaves}
    assert any(n.startswith("encoder.block1.0.attn.q.") for n in nano.state_dict())


def test_training_repeats_with_the_seed_and_reaches_every_parameter(nano):
    nano.train()
    images = make_images(2, 2, 3, 64, 64)

    def gradients():
        nano.zero_grad()
        torch.manual_seed(5)
        logits, _ = nano(images)
        (logits * make_images(*logits.shape, seed=2)).sum().backward()
        return {n: p.grad for n, p in nano.named_parameters()}

    first, second = gradients(), gradients()
    assert [n for n, grad in first.items() if grad is None] == []
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_bf16_autocast_is_close(nano):
    images = make_images(2, 2, 3, 64, 64)
    nano.train()
    nano.decoder.dropout.p = 0.0
    nano.encoder.drop_path = 0.0
    exact = nano(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = nano(images)
    assert rough.logits.dtype == torch.bfloat16
    for x, y in zip((exact.logits, *exact.features), (rough.logits, *rough.features), strict=True):
        error = (x - y.float()).norm() / x.norm()
        assert error < 0.03
    rough.logits.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in nano.parameters())


def test_compiles_without_graph_breaks(nano):
    images = make_images(2, 1, 3, 32, 32)
    compiled = torch.compile(nano, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).logits, nano(images).logits)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 64, 64), r"expected images \[M, B, 3, H, W\], got \[2, 3, 64, 64\]"),
        ((2, 1, 4, 64, 64), r"got \[2, 1, 4, 64, 64\]"),
        ((0, 1, 3, 64, 64), r"got \[0, 1, 3, 64, 64\]"),
        ((1, 1, 3, 64, 40), "multiples of 32, got 64 x 40"),
    ],
    ids=["axes", "channels", "no-modality", "size"],
)
def test_wrong_shapes_are_refused(nano, shape, message):
    with pytest.raises(ValueError, match=message):
        nano(torch.zeros(shape))


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_classes", 0), ("embed_dim", 0), ("dropout", 1.0), ("drop_path", -0.1)],
)
def test_settings_out_of_range_are_refused(field, value):
    settings = {"backbone": "mit_nano", "num_classes": 5, "embed_dim": 16, field: value}
    with pytest.raises(ConfigError, match=field):
        SegFormer(**settings)
