"""The public functions, each with kernels where Triton is installed, the definition elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common.switch import HAS_TRITON

if TYPE_CHECKING or HAS_TRITON:
    from .fusion.mean import fan_out, mean_fusion
    from .network.attention import reduced_attention
    from .network.depthwise import depthwise_conv_gelu
    from .network.head.mlp_head import mlp_head
    from .network.head.projections import folded_projections
    from .network.head.upsampling import sum_of_upsampled
    from .network.layer_norm import layer_norm, residual_layer_norm
    from .network.split_tokens import split_tokens
    from .prototypes.divergence import prototype_divergence
    from .prototypes.hybrid_distillation import hybrid_prototype_distillation
    from .prototypes.pool import masked_prototype_pool
    from .segmentation.loss import segmentation_loss
    from .segmentation.predict import upsample_argmax, upsample_confusion
    from .similarity.cosine import prototype_similarity
    from .similarity.divergence import similarity_divergence
    from .similarity.ifv_distillation import ifv_distillation
else:
    from .reference import (
        depthwise_conv_gelu,
        fan_out,
        folded_projections,
        hybrid_prototype_distillation,
        ifv_distillation,
        layer_norm,
        masked_prototype_pool,
        mean_fusion,
        mlp_head,
        prototype_divergence,
        prototype_similarity,
        reduced_attention,
        residual_layer_norm,
        segmentation_loss,
        similarity_divergence,
        split_tokens,
        sum_of_upsampled,
        upsample_argmax,
        upsample_confusion,
    )

__all__ = [
    "depthwise_conv_gelu",
    "fan_out",
    "folded_projections",
    "hybrid_prototype_distillation",
    "ifv_distillation",
    "layer_norm",
    "masked_prototype_pool",
    "mean_fusion",
    "mlp_head",
    "prototype_divergence",
    "prototype_similarity",
    "reduced_attention",
    "residual_layer_norm",
    "segmentation_loss",
    "similarity_divergence",
    "split_tokens",
    "sum_of_upsampled",
    "upsample_argmax",
    "upsample_confusion",
]
