"""A model that is not M-SegFormer: a stem for every modality, and the largest response fused."""

import torch
from torch import nn

from fastseg.models import Segmenter, SegmenterOutput, register_backbone

WIDTHS = (8, 8, 16, 16)
NAME = "toy_conv"


class Block(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, 2, 1)

    def forward(self, x):
        return self.conv(x).tanh()


class ToySegmenter(Segmenter):
    """Which modalities are there decides which stems work."""

    reads_present = True

    def __init__(self, modalities, num_classes, norm_momentum):
        super().__init__()
        self.stems = nn.ModuleDict({name: nn.Conv2d(3, WIDTHS[0], 2, 2) for name in modalities})
        inside = (WIDTHS[0], *WIDTHS[:-1])
        self.blocks = nn.ModuleList(map(Block, inside, WIDTHS))
        self.norm = nn.BatchNorm2d(WIDTHS[0], momentum=norm_momentum)
        self.head = nn.Conv2d(WIDTHS[0], num_classes, 1)

    def forward(self, images, present=None):
        names = list(self.stems)
        rows = range(len(names)) if present is None else present
        x = torch.stack(
            [self.stems[names[m]](image) for m, image in zip(rows, images, strict=True)]
        )
        features = []
        for block in self.blocks:
            x = block(x.flatten(0, 1)).unflatten(0, images.shape[:2])
            features.append(x)
        return SegmenterOutput(self.head(self.norm(features[0].amax(0))), features)

    def units(self):
        return list(self.blocks)

    def modality_parameters(self, modality):
        return list(self.stems[modality].parameters())


def build(backbone, num_classes, modalities, *, embed_dim, dropout, drop_path, norm_momentum):
    return ToySegmenter(modalities, num_classes, norm_momentum)


register_backbone(NAME, build)
