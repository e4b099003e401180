"""Work over independent noise samples, shared out to the threads of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

_MOST = 4  # every lane has sums of its own, each as large as the features
_SMALLEST = 1 << 18  # elements; a lane with less to do is mostly the cost of a thread

Sums = Sequence[Tensor]
Work = Callable[[Iterable[int]], Sums]


def sum_over_samples(work: Work, samples: int, like: Tensor) -> Sums:
    """``work(range(samples))``, the tensors that it adds up over the samples it is given.

    Drawing noise is serial, and the operators in between are too short to be shared well. So a few
    threads each take some of the samples from the drawing to the sums, which are then added in a
    fixed order: the result depends on the number of threads as much as any sum does.

    Args:
        work: sums over some samples; it is called without gradients.
        samples: S.
        like: a tensor of the work. On a GPU, or where it has no values, one call does it all.
    """
    lanes = _lanes(samples, like)
    if lanes == 1:
        return work(range(samples))
    threads = torch.get_num_threads()

    def lane(first: int) -> Sums:
        # both settings are those of a thread
        torch.set_num_threads(threads // lanes)
        with torch.no_grad():
            return work(range(first, samples, lanes))

    try:
        with ThreadPoolExecutor(lanes) as pool:
            first, *others = pool.map(lane, range(lanes))
    finally:
        # also the number that threads of the future begin with
        torch.set_num_threads(threads)
    for other in others:
        for total, part in zip(first, other, strict=True):
            total += part
    return first


def _lanes(samples: int, like: Tensor) -> int:
    if like.device.type != "cpu" or torch.compiler.is_compiling():
        return 1
    if like.numel() <= _SMALLEST:
        return 1
    # what watches operators, or replaces them, does so on its own thread
    if type(like) is not Tensor or _get_current_dispatch_mode() is not None:
        return 1
    return min(samples, torch.get_num_threads(), _MOST)
