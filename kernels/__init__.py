"""Operators of the distillation losses. Import as ``fastseg.kernels``.

Needs torch; with Triton, CUDA tensors are served by kernels (see :mod:`._launch` for the switch).
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
    from ._launch import force_kernels, force_reference
    from .functional_entropy import (
        fisher_regulariser,
        functional_entropy,
        profile_regulariser,
        representation_regularisation,
    )
    from .modules import (
        FunctionalEntropy,
        HybridPrototypeDistillation,
        MaskedPrototypePool,
        PrototypeDivergence,
        RepresentationRegularisation,
        SegmentationLoss,
        UpsampleArgmax,
        UpsampleConfusion,
    )
    from .operators import (
        hybrid_prototype_distillation,
        masked_prototype_pool,
        prototype_divergence,
        segmentation_loss,
        upsample_argmax,
        upsample_confusion,
    )

    __all__ = [
        "FunctionalEntropy",
        "HybridPrototypeDistillation",
        "MaskedPrototypePool",
        "PrototypeDivergence",
        "RepresentationRegularisation",
        "SegmentationLoss",
        "UpsampleArgmax",
        "UpsampleConfusion",
        "fisher_regulariser",
        "force_kernels",
        "force_reference",
        "functional_entropy",
        "hybrid_prototype_distillation",
        "masked_prototype_pool",
        "profile_regulariser",
        "prototype_divergence",
        "reference",
        "representation_regularisation",
        "segmentation_loss",
        "testing",
        "upsample_argmax",
        "upsample_confusion",
    ]
