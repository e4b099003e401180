"""Runs on every rank of one launch: kernels on several processes equal their definitions there.

First the head, whose kernels take the statistics of all ranks; the definition takes them by the
module's ``forward``, which other tests hold to one process with the global batch, and the ranks
have batches of different sizes. Then a whole network in each parallel mode, where the gradients of
norms and biases come by stand-ins.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.distributed as dist
from torch import nn

from fastseg.distributed.batch_norm import SynchronisedBatchNorm2d
from fastseg.distributed.parallelize import parallelize
from fastseg.distributed.ranks import Ranks
from fastseg.kernels import force_kernels, force_reference, mlp_head
from fastseg.models import Backbone, SegFormer

SIZES = ((4, 5), (2, 3), (1, 2))
BATCH, E, C, K = 3, 20, 5, 3
MODES = ("replicate", "fsdp_root", "fsdp_blocks")


def head(mode, rank):
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


def network(mode, parallel_mode, ranks):
    """Logits and the whole gradients of all parameters, by name."""
    torch.manual_seed(0)
    backbone = Backbone(widths=(8, 16, 16, 16), depths=(2, 1, 1, 1), heads=(1, 1, 2, 2))
    model = SegFormer(backbone, K, embed_dim=16, dropout=0.0, drop_path=0.0)
    parallel = parallelize({"student": model}, parallel_mode, ranks, precision="fp32")
    generator = torch.Generator().manual_seed(ranks.rank)
    images = torch.randn(2, 1, 3, 32, 64, generator=generator)
    with mode():
        logits = parallel.forwards["student"](images).logits
        logits.square().sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    whole = {k: g.full_tensor() if hasattr(g, "full_tensor") else g for k, g in grads.items()}
    return {"logits": logits.detach(), **whole}


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found, wanted = (head(mode, rank) for mode in (force_kernels, force_reference))
    for i, (result, definition) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(result, definition, rtol=2e-5, atol=2e-5, msg=str(i))
    print(f"rank {rank}: head, {len(found)} equal")
    ranks = Ranks(torch.device("cpu"), rank, 2, 2)
    wanted = network(force_reference, "replicate", ranks)
    kernels = {mode: network(force_kernels, mode, ranks) for mode in MODES}
    # constants that a BatchNorm subtracts again have gradients of rounding errors alone
    least = 1e-6 * max(float(x.abs().max()) for x in wanted.values())
    learn = sum(float(x.abs().max()) > least for x in wanted.values())
    for mode, found in kernels.items():
        assert found.keys() == wanted.keys()
        for name, definition in wanted.items():
            bound = max(1e-4 * float(definition.abs().max()), least)
            far = float((found[name] - definition).abs().max())
            assert far < bound, (mode, name, far, bound)
            assert torch.equal(found[name], kernels["replicate"][name]), (mode, name)
    print(f"rank {rank}: network, {len(wanted)} equal, {learn} of them learn")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
