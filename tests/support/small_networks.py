"""M-SegFormer of a few channels, whose tensors all have values of their own."""

import re

import torch

from fastseg.models import SegFormer

CLASSES, EMBED_DIM = 6, 24


def randomise(module, seed):
    """Fill everything, biases and statistics included, so that any mix-up changes the numbers."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            centre = 1.0 if re.search(r"norm.*weight|running_var", key) else 0.0
            value.copy_(centre + 0.1 * torch.randn(value.shape, generator=generator).clamp(-5, 5))
    return module


def make_model(backbone="mit_nano", classes=CLASSES, embed_dim=EMBED_DIM, seed=0):
    return randomise(SegFormer(backbone, classes, embed_dim).eval(), seed)


def assert_same(model, other):
    theirs = other.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, theirs[key]), key
