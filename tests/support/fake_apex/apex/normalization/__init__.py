"""The interface of ``apex.normalization``."""

import torch
import torch.nn.functional as F
from torch import nn


class FusedLayerNorm(nn.Module):
    calls = 0

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, memory_efficient=False):
        super().__init__()
        self.normalized_shape, self.eps = torch.Size(normalized_shape), eps
        self.weight = nn.Parameter(torch.ones(*normalized_shape))
        self.bias = nn.Parameter(torch.zeros(*normalized_shape))

    def forward(self, x):
        FusedLayerNorm.calls += 1
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
