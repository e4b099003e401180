"""Launches, bytes and waits of the host of what runs on tensors without values, counted on a CPU.

Counted is what launches a kernel on a GPU: every ATen operator that is neither a view nor in
`FREE`, once (torch's multi-tensor operators once per `PER_LAUNCH` tensors), and every launch of a
Triton kernel, also those within an operator of fastseg. A launch of Triton is counted in place of
being carried out, so the kernels need Triton's interpreter (``TRITON_INTERPRET=1``) and no values.

It is a lower bound: torch's backward passes of convolution, attention and norms launch two or three
kernels each, and library calls may launch a reduction behind a product.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GB = 1e9
# neither a view by its schema nor a launch: memory without values, other names of a tensor, labels
FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias",
    "_unsafe_view", "device", "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip
# tensors that one launch of torch's multi-tensor kernels holds, by tensors per element
PER_LAUNCH = {
    "_foreach_copy_": 64, "_foreach_norm": 110, "_foreach_add_": 110, "_foreach_mul": 64,
    "_foreach_sub_": 64, "_fused_adamw_": 36,
}  # fmt: skip
# operators in which, on a GPU, the host waits for a value
WAITS = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim",
    "_unique", "_unique2", "unique_consecutive",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
OWN = "fastseg"  # namespace of the operators that launch kernels of their own
_CPU = torch._C.DispatchKey.CPU  # type: ignore[attr-defined]


class Costs:
    """Launches and bytes of what runs inside the block; a wait of the host is an error.

    Attributes:
        launches: by operator or kernel.
        bytes: read and written, by operator or kernel.
        calls: of the operators of fastseg.
        moved: copies between host and device.
        part: name of the part of a step that runs.
        parts: launches and bytes by part, in the order in which they began.
    """

    def __init__(self, part: str = "") -> None:
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.moved, self.part = 0, part
        self.parts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._made: dict[int, object] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Costs:
        self._stack.enter_context(_launches_to(self))
        self._stack.enter_context(_Mode(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @property
    def total(self) -> int:
        """All launches."""
        return sum(self.launches.values())

    @property
    def gigabytes(self) -> float:
        """All bytes."""
        return sum(self.bytes.values()) / GB

    def add(self, name: str, count: int, values: Any) -> None:
        """Count launches that read or write all tensors in ``values``."""
        moved = sum(map(size_of, tensors_in(values)))
        self.launches[name] += count
        self.bytes[name] += moved
        part = self.parts[self.part]
        part[0] += count
        part[1] += moved

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator and count what it costs."""
        name = func._schema.name.removeprefix("aten::").removeprefix("prim::")
        self._reject_waits(name, args, kwargs)
        if func.namespace == OWN:
            self.calls[name] += 1
            # what it is made of, not its stand-in for tensors without values
            with _Mode(self):
                out = func._op_dk(_CPU, *args, **kwargs)
        else:
            out = func(*args, **kwargs)
        for x in tensors_in(out):
            self._made[id(x.untyped_storage())] = x.untyped_storage()
        free = func.is_view or name.removeprefix("profiler::") in FREE
        if not free and func.namespace != OWN:
            count = -(-len(args[0]) // PER_LAUNCH[name]) if name in PER_LAUNCH else 1
            self.add(name, count, (args, kwargs, out))
        return out

    def _reject_waits(self, name: str, args: Any, kwargs: Any) -> None:
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


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operator to the costs."""

    def __init__(self, costs: Costs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.costs = costs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        return self.costs.run(func, args, kwargs or {})


@contextmanager
def _launches_to(costs: Costs) -> Iterator[None]:
    """Triton's launches are counted in place of being carried out."""
    try:
        from triton.runtime.interpreter import GridExecutor
    except ImportError:
        yield
        return

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        costs.add(self.fn.__name__, 1, (args, kwargs))

    data_ptr = Tensor.data_ptr

    def aligned(x: Tensor) -> int:
        # tensors without values begin at zero, as if their memory had just been allocated
        if isinstance(x, FakeTensor) or x.is_meta:
            return x.storage_offset() * x.element_size()
        return data_ptr(x)

    with (
        mock.patch.object(GridExecutor, "__call__", launch),
        mock.patch.object(Tensor, "data_ptr", aligned),
    ):
        yield


def follow(costs: Costs, prefix: str, encoder: nn.Module, head: nn.Module) -> None:
    """Let the modules of a network name the part of the step that runs, in both passes.

    Forward these are encoder, fusion and head, and losses from there on; backward losses, head
    (with the fusion) and encoder, for autograd goes back in the order in which the graph was made.

    Args:
        costs: whose ``part`` is set.
        prefix: before the names of the parts of the forward pass.
        encoder: gives a list of maps.
        head: gives logits.
    """

    def enter(part: str) -> None:
        costs.part = part

    def backward(x: Tensor, part: str) -> None:
        if x.requires_grad:
            x.register_hook(lambda _: enter(part))

    def encoded(module: nn.Module, inputs: Any, maps: Any) -> None:
        enter(f"{prefix} fusion")
        for x in maps:
            backward(x, "backward of the encoder")

    def decoded(module: nn.Module, inputs: Any, logits: Tensor) -> None:
        enter("losses")
        backward(logits, "backward of the head")

    encoder.register_forward_pre_hook(lambda *_: enter(f"{prefix} encoder"))
    encoder.register_forward_hook(encoded)
    head.register_forward_pre_hook(lambda *_: enter(f"{prefix} head"))
    head.register_forward_hook(decoded)


def tensors_in(values: Any) -> list[Tensor]:
    """Tensors in nested tuples, lists and dicts."""
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def size_of(x: Tensor) -> int:
    """Bytes that are read or written; a broadcast dimension once."""
    counts = [n for n, stride in zip(x.shape, x.stride(), strict=True) if stride]
    return x.element_size() * torch.Size(counts).numel()
