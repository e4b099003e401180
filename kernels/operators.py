"""The public functions, each with kernels where Triton is installed, the definition elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._launch import HAS_TRITON

if TYPE_CHECKING or HAS_TRITON:
    from .hybrid_distillation import hybrid_prototype_distillation
    from .prototype_divergence import prototype_divergence
    from .prototype_pool import masked_prototype_pool
    from .segment import upsample_argmax, upsample_confusion
    from .segmentation_loss import segmentation_loss
else:
    from .reference import (
        hybrid_prototype_distillation,
        masked_prototype_pool,
        prototype_divergence,
        segmentation_loss,
        upsample_argmax,
        upsample_confusion,
    )

__all__ = [
    "hybrid_prototype_distillation",
    "masked_prototype_pool",
    "prototype_divergence",
    "segmentation_loss",
    "upsample_argmax",
    "upsample_confusion",
]
