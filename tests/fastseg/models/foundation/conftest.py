"""Tiny random backbones on disk, in the classes of their library."""

import pytest
import torch

from fastseg.models import build_segmenter
from tests.support.tiny_dinov2 import write_backbone

MODALITIES = ("img", "depth", "event")


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """``{kind: (model of transformers, its folder)}``."""
    pytest.importorskip("transformers", reason="it reads the folders of foundation encoders")
    found = {}
    for kind in ("dinov2", "dinov2_with_registers", "dinov3_vit"):
        folder = tmp_path_factory.mktemp("backbones") / kind
        found[kind] = write_backbone(folder, kind), folder
    return found


@pytest.fixture
def make(backbones):
    """Make a small network of five classes; adapters that change something with ``moved``."""

    def build(kind="dinov2", moved=False, modalities=MODALITIES, **options):
        options = {
            "pyramid_width": 16,
            "embed_dim": 16,
            "dropout": 0.0,
            "adapter_rank": 2,
        } | options
        torch.manual_seed(3)
        name = kind.split("_")[0]
        network = build_segmenter(name, 5, modalities, foundation=backbones[kind][1], **options)
        if moved:
            for key, weight in network.named_parameters():
                if ".lora_B." in key:
                    torch.nn.init.normal_(weight, std=0.3)
        return network

    return build
