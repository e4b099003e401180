"""Networks on many processes: which copies and shards there are, and when gradients travel.

Networks are made and filled on every process as if it were alone; `parallelize` is then applied
from outside. Gradients are means over the processes, so with the loss of each process a mean over
its samples a step equals that of one process with all of them (what stays per process is said in
`fastseg.engine.step`).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from fastseg.distributed.batch_norm import synchronise_batch_norm
from fastseg.distributed.ranks import Ranks
from fastseg.errors import ConfigError
from fastseg.models import Segmenter
from fastseg.models.precision import reduced_dtype

Mode = Literal["fsdp_root", "replicate", "hsdp", "fsdp_blocks"]

_MEANING: dict[str, str] = {
    "fsdp_root": "parameters, gradients and moments cut over all processes, one group: one "
    "all-gather and one reduce-scatter per step",
    "replicate": "a copy per process, gradients all-reduced in at most three buckets",
    "hsdp": "cut within groups of {shard} processes, copied across {copies}",
    "fsdp_blocks": "cut over all processes, gathered and freed block by block",
}


@dataclass(frozen=True)
class Parallel:
    """Networks ready for this launch.

    Attributes:
        forwards: modules that a step calls, by name; the network itself, or a wrapper of it.
        mode: one of `Mode`, or ``single`` for one process.
        description: the way of spreading the networks, for people.
        rank: this process.
        world: number of processes.
        sync_gradients: called before a forward pass, says whether its backward pass ends a step:
            only then are gradients exchanged.
    """

    forwards: Mapping[str, nn.Module]
    mode: str = "single"
    description: str = "one process"
    rank: int = 0
    world: int = 1
    sync_gradients: Callable[[bool], None] = field(default=lambda last: None)

    def mean(self, x: Tensor) -> Tensor:
        """The mean of a tensor over the processes, without a wait of the host; collective."""
        if self.world > 1:
            torch.distributed.all_reduce(x := x.clone())
            x /= self.world
        return x

    @property
    def sharded(self) -> bool:
        """True if the networks' parameters are shards."""
        return self.mode not in ("single", "replicate")


def parallelize(
    networks: Mapping[str, Segmenter],
    mode: str,
    ranks: Ranks,
    *,
    precision: str,
    shard_size: int = 0,
) -> Parallel:
    """Spread networks over the processes, in place where the mode allows.

    BatchNorm statistics become those of the global batch in every mode. With FSDP in bf16 or fp16
    parameters are gathered in that dtype and gradients reduced in fp32; the shards that the
    optimizer holds stay fp32.

    Args:
        networks: the same weights on every process, on its device, in fp32.
        mode: one of `Mode`; ignored for one process.
        ranks: the processes.
        precision: arithmetic of the run.
        shard_size: processes per copy for ``hsdp``; 0: those of one node.

    Raises:
        ConfigError: the processes cannot be grouped as asked.
    """
    if ranks.world == 1:
        return Parallel(dict(networks))
    group = torch.distributed.group.WORLD
    assert group is not None
    norms = sum(synchronise_batch_norm(network, group) for network in networks.values())
    shard = copy_size(mode, ranks, shard_size)
    meaning = _MEANING[mode].format(shard=shard, copies=ranks.world // shard)
    kernels = "torch's kernels" if ranks.device.type == "cuda" else "plain PyTorch, for the CPU"
    description = f"{mode} ({meaning}); {norms} BatchNorm over the global batch ({kernels})"
    if mode == "replicate":
        wrapped = {name: _replicate(network, ranks) for name, network in networks.items()}

        def sync(last: bool) -> None:
            for forward in wrapped.values():
                forward.require_backward_grad_sync = last

        return Parallel(wrapped, mode, description, ranks.rank, ranks.world, sync)
    mesh = _mesh(mode, ranks, shard)
    sharded = [_shard(network, mode, mesh, precision) for network in networks.values()]

    def sync_shards(last: bool) -> None:
        for network in sharded:
            network.set_requires_gradient_sync(last)
            # gathered parameters serve the next micro-batch too
            network.set_reshard_after_backward(last or mode == "fsdp_blocks")

    return Parallel(dict(networks), mode, description, ranks.rank, ranks.world, sync_shards)


def copy_size(mode: str, ranks: Ranks, shard_size: int = 0) -> int:
    """Number of processes that hold one copy of the network together.

    Raises:
        ConfigError: copies of this size do not fill the processes.
    """
    if mode == "replicate":
        return 1
    if mode != "hsdp":
        return ranks.world
    size = shard_size or ranks.local_world
    if ranks.world % size:
        raise ConfigError(
            f"hsdp cannot split {ranks.world} processes into groups of {size}: set "
            "--parallel.shard-size to a divisor of the number of processes"
        )
    return size


def candidates(ranks: Ranks, shard_size: int = 0) -> list[str]:
    """The modes that differ on these processes; hsdp needs several copies of several shards."""
    size = shard_size or ranks.local_world
    several = ranks.world % size == 0 and 1 < size < ranks.world
    return [mode for mode in get_args(Mode) if mode != "hsdp" or several]


def _replicate(network: Segmenter, ranks: Ranks) -> nn.parallel.DistributedDataParallel:
    # BatchNorm already agrees everywhere, so no buffer is sent; torch 2.13 renamed the option
    ddp = nn.parallel.DistributedDataParallel
    known = inspect.signature(ddp).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {sync: False}
    megabytes = sum(p.numel() * p.element_size() for p in network.parameters()) / 2**20
    # gradients of depthwise kernels are channels_last, those of DDP's buckets are not: a small copy
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return ddp(
        network,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        bucket_cap_mb=int(megabytes / 2) + 1,
        gradient_as_bucket_view=True,
        # parameters of modalities that are dropped have no gradient
        find_unused_parameters=network.reads_present,
        **options,
    )


def _shard(network: Segmenter, mode: str, mesh: DeviceMesh, precision: str) -> FSDPModule:
    dtype = reduced_dtype(precision)
    reduce = None if dtype is None else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduce)
    if mode == "fsdp_blocks":
        # autocast decides the dtype of the residual stream, not the borders of the groups
        inner = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=reduce, cast_forward_inputs=False
        )
        for module in network.units():
            fully_shard(module, mesh=mesh, mp_policy=inner, reshard_after_forward=True)
    # the features are views that nobody writes to
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def _mesh(mode: str, ranks: Ranks, shard: int) -> DeviceMesh:
    """One axis of shards, or copies x shards for hsdp; ranks of a node are neighbours."""
    kind = ranks.device.type
    if mode != "hsdp":
        return init_device_mesh(kind, (ranks.world,), mesh_dim_names=("shard",))
    shape = (ranks.world // shard, shard)
    return init_device_mesh(kind, shape, mesh_dim_names=("copy", "shard"))
