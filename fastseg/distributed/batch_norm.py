"""BatchNorm whose statistics are those of the global batch, whatever the number of processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as _FusedSyncBatchNorm

_AXES = (0, 2, 3)


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the batches of all processes; one collective each way.

    On a GPU the kernels of ``nn.SyncBatchNorm`` do the work; that module has no CPU form, so
    :class:`_GlobalNorm` does there. The affine parameters are raised to float32 first: FSDP
    gathers them in the short dtype of the run, but the statistics stay float32.
    """

    def __init__(self, original: nn.BatchNorm2d, group: dist.ProcessGroup) -> None:
        super().__init__(original.num_features, original.eps, original.momentum)
        # the very parameters and buffers: optimizer, checkpoints and seeds do not notice
        self._parameters, self._buffers = original._parameters, original._buffers
        self.train(original.training)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to the same shape and dtype."""
        if x.dtype in (torch.bfloat16, torch.float16):
            weight, bias = self.weight.float(), self.bias.float()
        else:
            weight, bias = self.weight, self.bias
        mean, var = self.running_mean, self.running_var
        assert mean is not None
        assert var is not None
        assert self.momentum is not None
        if not self.training:
            return F.batch_norm(x, mean, var, weight, bias, eps=self.eps)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        world = dist.get_world_size(self.group)
        arguments = (x, weight, bias, mean, var, self.eps, self.momentum, self.group, world)
        function = _FusedSyncBatchNorm if x.is_cuda else _GlobalNorm
        out: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
        return out


class _GlobalNorm(torch.autograd.Function):
    """The normalisation in plain PyTorch, with the statistics of all ranks.

        mean = sum_r n_r mean_r / N,   var = sum_r n_r (var_r + (mean_r - mean)^2) / N
        y = w xhat + b,   xhat = (x - mean) / sqrt(var + eps)
        dx = w / sqrt(var + eps) (dy - sum(dy) / N - xhat sum(dy xhat) / N)

    with N and the sums of dx over the pixels of all ranks. The sums that are the gradients of w
    and b stay those of this rank, as for any other parameter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float,
        group: dist.ProcessGroup,
        world: int,
    ) -> Tensor:
        values = x.to(torch.promote_types(x.dtype, weight.dtype))
        pixels = values.new_full((1,), values.numel() / values.shape[1])
        var, mean = torch.var_mean(values, _AXES, correction=0)
        own = torch.cat([mean, var, pixels])
        rows = [torch.empty_like(own) for _ in range(world)]
        dist.all_gather(rows, own, group=group)
        stacked = torch.stack(rows)
        means, variances, counts = torch.split(stacked, [len(mean), len(var), 1], dim=1)
        total = counts.sum()
        share = counts / total
        mean = (share * means).sum(0)
        var = (share * (variances + (means - mean) ** 2)).sum(0)
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * (total / (total - 1))).to(running_var.dtype), momentum)
        scale = (var + eps).rsqrt()
        normalised = (values - _channels(mean)) * _channels(scale)
        ctx.save_for_backward(normalised, weight, scale, total)
        ctx.group = group
        return (normalised * _channels(weight) + _channels(bias)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        normalised, weight, scale, total = ctx.saved_tensors
        grad = grads[0].to(normalised.dtype)
        own = torch.stack([grad.sum(_AXES), (grad * normalised).sum(_AXES)])
        sums = own.clone()
        dist.all_reduce(sums, group=ctx.group)
        mean_grad, mean_product = sums / total
        dx = grad - _channels(mean_grad) - normalised * _channels(mean_product)
        dx = (dx * _channels(weight * scale)).to(grads[0].dtype)
        return dx, own[1], own[0], None, None, None, None, None, None


def _channels(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def synchronise_batch_norm(network: nn.Module, group: dist.ProcessGroup) -> int:
    """Give every BatchNorm2d of a network the statistics of all ranks; returns how many."""
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.BatchNorm2d)
    ]
    for parent, name, child in found:
        parent.add_module(name, SynchronisedBatchNorm2d(child, group))
    return len(found)
