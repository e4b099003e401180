"""torch.compile, region by region: the units of a network, such as its blocks and its head.

The blocks of a level share code and shapes, and all but the first take a branch to add, so a
network of any depth costs two compilations per level and number of modalities, level 1 a third, as
its first block drops nothing. Nothing that is random or waits is inside. The whole step would be
one large graph per subset and could not hold the fused losses.
"""

from __future__ import annotations

import sys

import torch

from fastseg.models import Segmenter

# 4 levels, their first block and the others, with and without stochastic depth, 4 numbers of
# modalities, training and evaluation; the default of 8 is for code that meets new shapes by mistake
_VARIANTS = 256


def compile_regions(network: Segmenter, backend: str = "inductor") -> None:
    """Compile the units of a network at their first call with each shape, in place.

    Args:
        network: keeps its parameters, names and state dict.
        backend: backend of ``torch.compile``.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _VARIANTS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 4 * _VARIANTS)
    for region in network.regions():
        region.compile(fullgraph=True, dynamic=False, backend=backend)


def run_as_written(network: Segmenter) -> None:
    """Take back what :func:`compile_regions` did."""
    for region in network.regions():
        region._compiled_call_impl = None


def compile_failure(error: BaseException) -> str | None:
    """Cause of a ``torch.compile`` failure, such as a missing compiler; None for other errors."""
    # loading it takes seconds, which a run without compilation does not spend
    module = sys.modules.get("torch._dynamo.exc")
    if module is None or not isinstance(error, module.TorchDynamoException):
        return None
    cause = getattr(error, "inner_exception", error)
    return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"
