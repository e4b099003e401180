"""The fusion of features reweighted by their agreement (MFF), against loops over pixels."""

from dataclasses import replace

import pytest
import torch

from fastseg.config.sections import ModelConfig
from fastseg.errors import ConfigError
from fastseg.models import SegFormer
from fastseg.models.fusion import mff
from tests.support import toy_backbone

M, B, C = 3, 2, 4


def features_of(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(M, B, 2, 3, C, generator=generator, dtype=dtype).movedim(-1, 2)


def defined(x, marks):
    """``x [M, B, C, h, w]``, ``marks [M, B]``: pixel after pixel."""
    out = torch.empty_like(x[0])
    for b in range(x.shape[1]):
        kept = [m for m in range(len(x)) if marks[m, b]]
        for i in range(x.shape[3]):
            for j in range(x.shape[4]):
                pixel = x[kept, b, :, i, j]
                centre = pixel.mean(0)
                scaled = [
                    (1 + (f @ centre) / (f.norm() * centre.norm())) * f for f in pixel.unbind()
                ]
                scaled = torch.stack(scaled)
                out[b, :, i, j] = scaled.max(0).values + scaled.mean(0)
    return out


MARKS = torch.tensor([[[1, 1], [1, 1], [1, 1]], [[1, 0], [0, 1], [1, 1]], [[0, 1], [1, 0], [0, 0]]])


@pytest.mark.parametrize("fused", [None, MARKS])
def test_value_and_gradient_are_those_of_the_definition(fused):
    x, y = features_of().requires_grad_(), features_of().requires_grad_()
    marks = MARKS[:1] if fused is None else fused
    found, wanted = mff(x, fused), torch.cat([defined(y, each) for each in marks])
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(wanted)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert found.movedim(1, -1).is_contiguous()


def test_equal_modalities_are_multiplied_by_four_and_order_is_nothing():
    x = features_of()
    torch.testing.assert_close(mff(x[:1]), 4 * x[0])
    torch.testing.assert_close(mff(x[:1].expand(3, *x.shape[1:])), 4 * x[0])
    torch.testing.assert_close(mff(x[[2, 0, 1]]), mff(x))


def test_short_dtypes_are_summed_in_full_precision():
    x = features_of(dtype=torch.float32)
    found = mff(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, mff(x.bfloat16().float()).bfloat16())


def test_vectors_of_zeros_stay_zeros_with_finite_gradients():
    x = features_of()
    x[:, 0] = 0
    x.requires_grad_()
    out = mff(x)
    assert not out[0].any()
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.fixture(params=[False, True], ids=["shared", "per_modality"])
def model(request):
    torch.manual_seed(0)
    own = ["img", "depth", "lidar"] if request.param else ()
    return SegFormer(
        "mit_nano", 5, 16, dropout=0, drop_path=0, own_encoders=own, fusion="mff"
    ).eval()  # fmt: skip


@pytest.mark.parametrize("missing", ["drop", "zero"])
def test_subsets_of_encoded_features_are_those_of_whole_passes(model, missing):
    images = torch.randn(3, 2, 3, 32, 64)
    subsets = [(0,), (0, 2), (1, 2), (0, 1, 2)]
    with torch.no_grad():
        for rows, found in zip(
            subsets, model.logits_of_subsets(images, subsets, missing), strict=True
        ):
            if missing == "drop":
                wanted = model(images[list(rows)], rows).logits
            else:
                blanked = torch.zeros_like(images)
                blanked[list(rows)] = images[list(rows)]
                wanted = model(blanked).logits
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_frozen_network_fuses_alike(model):
    images = torch.randn(3, 2, 3, 32, 32)
    with torch.no_grad():
        before = model(images).logits
        torch.testing.assert_close(model.freeze()(images).logits, before, rtol=1e-4, atol=1e-5)


def test_another_fusion_gives_other_logits_of_the_same_weights(model):
    images = torch.randn(3, 1, 3, 32, 32)
    own = ["img", "depth", "lidar"] if model.reads_present else ()
    plain = SegFormer("mit_nano", 5, 16, own_encoders=own).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert not torch.allclose(plain(images).logits, model(images).logits, atol=1e-3)


def test_unknown_fusions_and_models_without_them_are_refused():
    with pytest.raises(ConfigError, match="unknown fusion 'mfff': did you mean 'mff'"):
        SegFormer("mit_nano", 5, 16, fusion="mfff")
    config = ModelConfig(backbone="mit_nano", fusion="mff")
    with pytest.raises(ValueError, match=f"{toy_backbone.NAME} has no --model.fusion"):
        replace(config, backbone=toy_backbone.NAME)
