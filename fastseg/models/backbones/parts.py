"""Which gradients of an encoder's parameters are summed by one launch, of a block or of all norms.

Weights and biases of norms and biases of linear layers have sums over all tokens as their
gradients. On a GPU the kernels that pass over the tokens anyway leave these sums in parts, and one
launch adds up all of a block, see `fastseg.kernels.common.stand_ins`: a block, for its parameters
may be gathered and freed by themselves. On a CPU, and under ``torch.compile``, there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastseg.kernels.common.row_tiles import summing_programs
from fastseg.kernels.common.stand_ins import are_wanted, serve, stand_ins


class BlockParts(NamedTuple):
    """Stand-ins for parameters of a block; None for those whose layers see to their gradients."""

    norm1: Tensor | None = None
    norm2: Tensor | None = None
    reduced: Tensor | None = None
    q: Tensor | None = None
    kv: Tensor | None = None
    proj: Tensor | None = None
    fc2: Tensor | None = None


NONE = BlockParts()


def block_parts(block: Any, x: Tensor) -> BlockParts:
    """Stand-ins for a `Block` of these tokens ``[N, h, w, C]``."""
    if not are_wanted(x):
        return NONE
    n, h, w, width = x.shape
    attn, r = block.attn, block.attn.reduction
    own = summing_programs(n * h * w, width)[0]
    reduced = summing_programs(max(1, n * (h // r) * (w // r)), width)[0]
    return BlockParts(
        *_stand_ins(
            [
                (block.norm1, own), (block.norm2, own),
                (attn.norm if r > 1 else None, reduced),
                (attn.q, own), (attn.kv, reduced), (attn.proj, own), (block.mlp.fc2, own),
            ]
        )
    )  # fmt: skip


def norm_parts(encoder: Any, images: Tensor) -> list[Tensor | None]:
    """Stand-ins for the norms before and behind the blocks of each level, in this order.

    Of a `MixTransformer`, whose parameters outside its blocks are there for both passes.
    """
    if not are_wanted(images):
        return [None] * 8
    places: list[tuple[nn.Module | None, int]] = []
    h, w = images.shape[2:]
    for patch_embed, _, norm in encoder.levels():
        stride = patch_embed.proj.stride[0]
        h, w = -(-h // stride), -(-w // stride)
        parts = summing_programs(len(images) * h * w, patch_embed.proj.out_channels)[0]
        places += [(patch_embed.norm, parts), (norm, parts)]
    return _stand_ins(places)


def _stand_ins(places: Sequence[tuple[nn.Module | None, int]]) -> list[Tensor | None]:
    """A stand-in for each layer that may have one, of so many parts."""
    groups = [_parameters(layer) for layer, _ in places]
    there = [i for i, group in enumerate(groups) if group]
    found: list[Tensor | None] = [None] * len(places)
    if there:
        made = stand_ins([groups[i] for i in there], [places[i][1] for i in there])
        for i, x in zip(there, made, strict=True):
            found[i] = x
    return found


def _parameters(layer: nn.Module | None) -> list[Tensor]:
    """What learns by sums over the tokens: of a norm both, of a linear layer the bias."""
    own: list[Tensor]
    if type(layer) is nn.LayerNorm:
        own = [layer.weight, layer.bias]
    elif type(layer) is nn.Linear:
        own = [layer.bias]
    else:
        return []
    fits = all(x is not None and serve(x) for x in own)
    return own if fits and any(x.requires_grad for x in own) else []
