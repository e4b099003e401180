"""Buffers of networks, such as running statistics, that can be put back as they were."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KeptBuffers:
    """The values that buffers have now, of any dtypes, as the bytes of one tensor.

    To keep and to put back takes a few launches however many buffers there are.

    Args:
        buffers: contiguous ones, which stay where they are in memory.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        # others would be copied here, and the copies put back
        assert all(buffer.is_contiguous() for buffer in buffers)
        self._places = [buffer.view(-1).view(torch.uint8) for buffer in buffers]
        self._bytes = self._now()

    def put_back(self, decision: Tensor | None = None) -> None:
        """Write the kept values, or leave what there is where a bool scalar on the device says so.

        Args:
            decision: whether to; None for yes.
        """
        if not self._places:
            return
        kept = self._bytes
        if decision is not None:
            kept = torch.where(decision, kept, self._now())
        torch._foreach_copy_(self._places, torch.split(kept, [len(x) for x in self._places]))

    def _now(self) -> Tensor:
        return torch.cat(self._places) if self._places else torch.empty(0)
