"""Blocks that are gathered and freed by themselves, as FSDP2 does, with the kernels' stand-ins."""

import copy

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from fastseg.models.backbones.mit import Backbone, MixTransformer

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("kernels")

TINY = Backbone((16, 16, 16, 16), (2, 1, 1, 1), heads=(1, 1, 1, 1), reductions=(2, 2, 1, 1))


@pytest.fixture
def mesh(device, tmp_path):
    """A group of this process alone."""
    torch.distributed.init_process_group(
        "gloo" if device.type == "cpu" else "nccl",
        init_method=f"file://{tmp_path}/store", rank=0, world_size=1,
    )  # fmt: skip
    yield init_device_mesh(device.type, (1,))
    torch.distributed.destroy_process_group()


def gradients(encoder, images):
    loss = sum(x.square().mean() for x in encoder(images))
    loss.backward()
    grads = {name: p.grad for name, p in encoder.named_parameters()}
    return {name: getattr(g, "full_tensor", lambda g=g: g)() for name, g in grads.items()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sharded_blocks_have_the_gradients_of_whole_ones(mesh, device, checkpointing, launched):
    torch.manual_seed(0)
    whole = MixTransformer(TINY, drop_path=0.0).to(device)
    sharded = copy.deepcopy(whole)
    sharded.checkpointing = checkpointing
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    for _, blocks, _ in sharded.levels():
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(sharded, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    wanted = gradients(whole, images)
    # of five blocks, and of the norms around them
    assert launched.count("_row_sums_kernel") == 6
    found = gradients(sharded, images)
    assert launched.count("_row_sums_kernel") == 12
    assert {n for n in wanted if not torch.equal(found[n], wanted[n])} == set()
