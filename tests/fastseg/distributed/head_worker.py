"""Runs on every rank of one launch: the head by its kernels equals the head by its definition.

The definition takes the statistics of all ranks by the module's ``forward``, which other tests hold
to one process with the global batch. The ranks have batches of different sizes.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.distributed as dist
from torch import nn

from fastseg.distributed.batch_norm import SynchronisedBatchNorm2d
from fastseg.kernels import force_kernels, force_reference, mlp_head

SIZES = ((4, 5), (2, 3), (1, 2))
BATCH, E, C, K = 3, 20, 5, 3


def results(mode, rank):
    """Logits, all gradients and the running statistics of this rank's samples."""
    torch.manual_seed(0)
    mine = slice(0, 1) if rank == 0 else slice(1, BATCH)
    first, *levels = (
        torch.randn(BATCH, C if i == 0 else E, *size)[mine].requires_grad_()
        for i, size in enumerate(SIZES)
    )
    leaves = [torch.randn(shape).requires_grad_() for shape in ((E, C), (K, E), (K,))]
    upstream = torch.randn(BATCH, K, *SIZES[0])[mine]
    norm = SynchronisedBatchNorm2d(nn.BatchNorm2d(E), dist.group.WORLD)
    with mode():
        out = mlp_head(levels, first, *leaves, norm)
        inputs = [*levels, first, *leaves, norm.weight, norm.bias]
        grads = torch.autograd.grad(out, inputs, upstream)
    return [out.detach(), *grads, *norm.buffers()]


def main():
    dist.init_process_group("gloo")
    found, wanted = (results(mode, dist.get_rank()) for mode in (force_kernels, force_reference))
    for i, (result, definition) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(result, definition, rtol=2e-5, atol=2e-5, msg=str(i))
    print(f"rank {dist.get_rank()}: {len(found)} equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
