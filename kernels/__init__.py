"""Operators of the distillation losses. Import as ``fastseg.kernels``; needs torch alone."""

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
    from .reference import (
        functional_entropy,
        hybrid_prototype_distillation,
        logit_distillation,
        masked_prototype_pool,
        ohem_cross_entropy,
        prototype_divergence,
        representation_regularisation,
    )

    __all__ = [
        "functional_entropy",
        "hybrid_prototype_distillation",
        "logit_distillation",
        "masked_prototype_pool",
        "ohem_cross_entropy",
        "prototype_divergence",
        "reference",
        "representation_regularisation",
        "testing",
    ]
