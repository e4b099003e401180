"""Operators of the distillation losses and of the network's head. Import as ``fastseg.kernels``.

Needs torch; with Triton, CUDA tensors are served by kernels (see :mod:`.common.switch`).
"""

import sys

if __name__ == "kernels":
    # imported from a checkout by the folder's name: hand out the modules of fastseg.kernels, so
    # that no operator is registered twice
    import fastseg.kernels  # noqa: F401

    for _name, _module in list(sys.modules.items()):
        if _name == "fastseg.kernels" or _name.startswith("fastseg.kernels."):
            sys.modules[_name.removeprefix("fastseg.")] = _module
else:
    from . import reference, testing
    from .common.switch import force_kernels, force_reference, why_broken
    from .entropy.regularisation import (
        fisher_regulariser,
        functional_entropy,
        profile_regulariser,
        representation_regularisation,
    )
    from .modules import (
        FunctionalEntropy,
        HybridPrototypeDistillation,
        IFVDistillation,
        MaskedPrototypePool,
        PrototypeDivergence,
        PrototypeSimilarity,
        RepresentationRegularisation,
        SegmentationLoss,
        SimilarityDivergence,
        UpsampleArgmax,
        UpsampleConfusion,
    )
    from .operators import (
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
    from .probe import settle

    __all__ = [
        "FunctionalEntropy",
        "HybridPrototypeDistillation",
        "IFVDistillation",
        "MaskedPrototypePool",
        "PrototypeDivergence",
        "PrototypeSimilarity",
        "RepresentationRegularisation",
        "SegmentationLoss",
        "SimilarityDivergence",
        "UpsampleArgmax",
        "UpsampleConfusion",
        "depthwise_conv_gelu",
        "fan_out",
        "fisher_regulariser",
        "folded_projections",
        "force_kernels",
        "force_reference",
        "functional_entropy",
        "hybrid_prototype_distillation",
        "ifv_distillation",
        "layer_norm",
        "masked_prototype_pool",
        "mean_fusion",
        "mlp_head",
        "profile_regulariser",
        "prototype_divergence",
        "prototype_similarity",
        "reduced_attention",
        "reference",
        "representation_regularisation",
        "residual_layer_norm",
        "segmentation_loss",
        "settle",
        "similarity_divergence",
        "split_tokens",
        "sum_of_upsampled",
        "testing",
        "upsample_argmax",
        "upsample_confusion",
        "why_broken",
    ]
