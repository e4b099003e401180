"""Parameters, multiply-adds and kept activations of a model, without memory or arithmetic.

The model runs forward in training mode on tensors of the device ``meta``, which have shapes alone.

- **Multiply-adds** are those of matrix products and convolutions, one for two flops of
  ``torch.utils.flop_counter``. Norms, pools, interpolation and element-wise work are left out. As
  papers print them, "GFLOPs" are often these.
- **Activations** are the tensors that autograd keeps for the backward pass, each memory once, in
  float32, images included and parameters left out, of one sample. Maps of attention
  probabilities are left out, too: fused kernels keep none. Kernels on a GPU keep less in other
  places as well, and bf16 halves most of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ..interface import Segmenter
from ..parameter_groups import fixed_buffers
from ..registry import build_segmenter


@dataclass(frozen=True)
class Costs:
    """Costs of a model.

    Attributes:
        parameters: number of them, with those that never learn.
        learning: number of those that learn.
        multiply_adds: of one forward pass of a sample with all modalities.
        activations: bytes, see above.
    """

    parameters: int
    learning: int
    multiply_adds: int
    activations: int


class _FusedAttention(TorchFunctionMode):
    """Within the block attention keeps queries, keys, values and its result, as fused kernels do.

    Args:
        keep: what is called with each of them.
    """

    def __init__(self, keep: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.keep = keep

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            out: Tensor = func(*args, **(kwargs or {}))
        for x in (*args[:3], out):
            self.keep(x)
        return out


def count_costs(model: Segmenter, modalities: int, side: int) -> Costs:
    """The costs of a model for one sample.

    Args:
        model: on the device ``meta``, in training mode.
        modalities: M.
        side: height and width of the images, in pixels; a multiple of 32.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = storage
        return x

    images = torch.empty((modalities, 1, 3, side, side), device="meta")
    counter = FlopCounterMode(display=False)
    levels = model.attention_levels(modalities, side)
    fused = nullcontext() if levels else _FusedAttention(keep)
    with fused, counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits = model(images).logits
    own = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
    size = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    maps = sum(
        len(level.layers) * level.queries[0] * level.queries[1] * level.queries[2] * level.keys
        for level in levels
    )
    learning = sum(x.numel() for x in model.parameters() if x.requires_grad)
    fixed = [*(x for x in model.parameters() if not x.requires_grad), *fixed_buffers(model)]
    return Costs(
        parameters=learning + sum(x.numel() for x in fixed),
        learning=learning,
        multiply_adds=counter.get_total_flops() // 2,
        activations=size - maps * logits.element_size(),
    )


def costs_of(name: str, modalities: int, num_classes: int, side: int) -> Costs:
    """The costs of the model of a backbone, with the head of published models.

    Raises:
        ConfigError: the name is unknown, or the model does not take so many modalities.
    """
    with torch.device("meta"):
        model = build_segmenter(name, num_classes, [f"modality {m}" for m in range(modalities)])
    return count_costs(model, modalities, side)
