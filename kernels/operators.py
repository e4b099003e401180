"""The public functions, each with kernels where Triton is installed, the definition elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._launch import HAS_TRITON

if TYPE_CHECKING or HAS_TRITON:
    from .hybrid_distillation import hybrid_prototype_distillation
    from .ifv_distillation import ifv_distillation
    from .prototype_divergence import prototype_divergence
    from .prototype_pool import masked_prototype_pool
    from .prototype_similarity import prototype_similarity
    from .segment import upsample_argmax, upsample_confusion
    from .segmentation_loss import segmentation_loss
    from .similarity_divergence import similarity_divergence
else:
    from .reference import (
        hybrid_prototype_distillation,
        ifv_distillation,
        masked_prototype_pool,
        prototype_divergence,
        prototype_similarity,
        segmentation_loss,
        similarity_divergence,
        upsample_argmax,
        upsample_confusion,
    )

__all__ = [
    "hybrid_prototype_distillation",
    "ifv_distillation",
    "masked_prototype_pool",
    "prototype_divergence",
    "prototype_similarity",
    "segmentation_loss",
    "similarity_divergence",
    "upsample_argmax",
    "upsample_confusion",
]
