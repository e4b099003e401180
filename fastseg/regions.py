"""torch.compile, region by region: the transformer blocks and the head.

A block is one graph for all blocks of its level, which share code and shapes, so a network of any
depth costs four compilations per number of modalities, and nothing that is random or waits is
inside. The whole step would be one large graph per subset and could not hold the fused losses.
"""

from __future__ import annotations

import torch

from fastseg.models import SegFormer

# 4 levels, the first with and without stochastic depth, 4 numbers of modalities, training and
# evaluation; the default of 8 is for code that meets new shapes by mistake
_VARIANTS = 128


def compile_regions(network: SegFormer, backend: str = "inductor") -> None:
    """Compile the blocks and the head of a network at their first call with each shape, in place.

    Args:
        network: keeps its parameters, names and state dict.
        backend: of ``torch.compile``.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _VARIANTS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * _VARIANTS)
    regions = [block for _, blocks, _ in network.encoder.levels() for block in blocks]
    for region in (*regions, network.decoder):
        region.compile(fullgraph=True, dynamic=False, backend=backend)
