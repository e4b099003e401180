"""Which tokens the kernels of attention serve; imports without Triton."""

from __future__ import annotations

from torch import Tensor

from ..common.switch import runs_on

HEAD_DIMENSIONS = (16, 32, 64)


def serves(queries: Tensor) -> bool:
    """True if `reduced_attention` takes its kernels, False for the definition.

    Args:
        queries: ``[N, L, heads, d]``.

    Raises:
        RuntimeError: as ``runs_on``.
    """
    return queries.shape[3] in HEAD_DIMENSIONS and queries.numel() > 0 and runs_on(queries)
