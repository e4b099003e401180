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

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..interface import Segmenter
from ..registry import build_segmenter


@dataclass(frozen=True)
class Costs:
    """Costs of a model.

    Attributes:
        parameters: number of them.
        multiply_adds: of one forward pass of a sample with all modalities.
        activations: bytes, see above.
    """

    parameters: int
    multiply_adds: int
    activations: int


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
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits = model(images).logits
    own = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
    size = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    maps = sum(
        len(level.layers) * level.queries[0] * level.queries[1] * level.queries[2] * level.keys
        for level in model.attention_levels(modalities, side)
    )
    return Costs(
        parameters=sum(x.numel() for x in model.parameters()),
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
