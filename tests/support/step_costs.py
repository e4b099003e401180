"""Launches, bytes and waits of the host of what runs on tensors without values.

An operator is one launch unless ``LAUNCHES`` says otherwise; views and empty tensors are none.
"""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GB = 1e9
FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias",
    "_unsafe_view", "device", "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip
# tests/kernels/test_step_budget.py counts these; here beside them the copies of channels-last
# logits, two in either pass
LAUNCHES = {
    "fastseg::segmentation_loss": 7 + 2,
    "fastseg::segmentation_loss_bwd": 2 + 2,
    "fastseg::hybrid_prototype_distillation": 4,
    "fastseg::prototype_pool_bwd": 1,
    "fastseg::fisher_regulariser": 4,
    "fastseg::fisher_gradient": 1,
    "fastseg::layer_norm_bwd": 2,
}
# tensors that one launch of torch's multi-tensor kernels holds, by tensors per element
PER_LAUNCH = {"_foreach_copy_": 64, "_foreach_norm": 110, "_foreach_add_": 110, "_fused_adamw_": 36}


class Costs(TorchDispatchMode):
    """Launches and bytes of what runs inside the block; a wait of the host is an error.

    Attributes:
        launches: by operator.
        bytes: read and written, by operator.
        moved: copies between host and device.
    """

    def __init__(self):
        super().__init__()
        self.launches, self.bytes, self.moved = Counter(), Counter(), 0
        self._made = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::").removeprefix("prim::")
        self._reject_waits(name, args, kwargs)
        out = func(*args, **kwargs)
        for x in tensors_in(out):
            self._made[id(x.untyped_storage())] = x.untyped_storage()
        if not func.is_view and name.removeprefix("profiler::") not in FREE:
            count = LAUNCHES.get(name, 1)
            if name in PER_LAUNCH:
                count = -(-len(args[0]) // PER_LAUNCH[name])
            self.launches[name] += count
            self.bytes[name] += sum(map(size_of, tensors_in((args, kwargs, out))))
        return out

    @property
    def total(self):
        return sum(self.launches.values())

    @property
    def gigabytes(self):
        return sum(self.bytes.values()) / GB

    def _reject_waits(self, name, args, kwargs):
        """Operators in which, on a GPU, the host waits for a value or for a copy."""
        if name in WAITS:
            raise AssertionError(f"the host waits in {name}")
        if name in INDEXING:
            for index in tensors_in(args[1]):
                if index.dtype in (torch.bool, torch.uint8):
                    raise AssertionError(f"the host waits in {name} for the size of a mask")
                if id(index.untyped_storage()) not in self._made:
                    raise AssertionError(f"the host waits in {name} until an index is copied")
        kinds = {x.device.type for x in tensors_in((args, kwargs))}
        target = torch.device(kwargs.get("device") or next(iter(kinds), "cpu")).type
        if name == "_to_copy" and kinds != {target}:
            self.moved += 1
            if not kwargs.get("non_blocking"):
                raise AssertionError(f"the host waits for a copy from {kinds} to {target}")


WAITS = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim",
    "_unique", "_unique2", "unique_consecutive",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


def tensors_in(values):
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)]


def size_of(x):
    """Bytes that are read or written; a broadcast dimension once."""
    counts = [n for n, stride in zip(x.shape, x.stride(), strict=True) if stride]
    return x.element_size() * torch.Size(counts).numel()
