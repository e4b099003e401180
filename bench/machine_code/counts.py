"""Compile kernels for a GPU that is not there and count what is in the machine code.

``row_of`` needs a process without ``TRITON_INTERPRET`` that launches nothing: the driver that
stands in for the GPU is process-wide. :mod:`bench.machine_code.child_process` runs it in children.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import subprocess
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver


class Case(NamedTuple):
    """One kernel in one launch configuration.

    Attributes:
        name: name of the case, unique per kernel.
        kernel: the ``@triton.jit`` function.
        arguments: its run-time arguments in order; tensors on the meta device, numbers as they are.
        constexprs: its ``tl.constexpr`` arguments by name.
        num_warps: warps per block of the launch.
        num_stages: pipeline stages of the launch.
        registers: budget per thread.
        shared: budget in bytes per block.
    """

    name: str
    kernel: Any
    arguments: Sequence[Any]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    registers: int
    shared: int

    @property
    def kernel_name(self) -> str:
        """The function's name without what all of them share."""
        return str(self.kernel.__name__).strip("_").removesuffix("_kernel")

    @property
    def source(self) -> str:
        """Fingerprint of what the compiler gets; prose, places and line numbers do not count."""
        arguments = [x.dtype if isinstance(x, torch.Tensor) else x for x in self.arguments]
        launch = (arguments, sorted(self.constexprs.items()), self.num_warps, self.num_stages)
        text = f"{launch}{_sources(self.kernel)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sources(kernel: Any) -> list[str]:
    """Syntax trees of a kernel and of all it calls, and the global constants in them.

    A function goes by its name without its module, and docstrings are left out: neither a move to
    another file nor prose makes a row stale.
    """
    found: dict[Any, list[str]] = {}
    _collect(kernel.fn, found)
    return sorted(text for texts in found.values() for text in texts)


def _collect(function: Any, found: dict[Any, list[str]]) -> None:
    if function in found:
        return
    name = function.__qualname__
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    (definition,) = tree.body
    if ast.get_docstring(definition):  # type: ignore[arg-type]
        del definition.body[0]  # type: ignore[attr-defined]
    texts = found[function] = [f"{name} {ast.dump(tree)}"]
    own = set(inspect.signature(function).parameters)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in own:
            continue  # a global of the name of an argument is another thing
        if isinstance(node, ast.Name):
            value = function.__globals__.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            value = getattr(function.__globals__.get(node.value.id), node.attr, None)
        else:
            continue
        if isinstance(value, triton.JITFunction):
            # Triton's own are told by its version
            if not value.fn.__module__.startswith("triton."):
                _collect(value.fn, found)
        elif isinstance(value, tl.constexpr | int | float | str):
            texts.append(f"{name} {ast.unparse(node)} = {value!r}")


@dataclass(frozen=True)
class Counts:
    """Registers, memory and static instructions of a compiled case."""

    kernel: str
    case: str
    arch: str
    triton: str
    source: str
    registers: int
    stack: int
    shared: int
    spills: int
    wide_loads: int
    wide_stores: int
    loads: int
    stores: int
    shuffles: int
    tensor_core: int
    special: int
    loop: int
    instructions: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Fields that identify the row: version of Triton, kernel, case and architecture."""
        return (self.triton, self.kernel, self.case, self.arch)


class CrossDriver(DriverBase):  # type: ignore[misc]
    """A GPU that is not there: tells Triton what to compile for, launches nothing."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    @classmethod
    def is_active(cls) -> bool:
        """Never by itself."""
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Part of a launcher that is never built."""
        return "void*"

    def get_current_target(self) -> GPUTarget:
        """The architecture."""
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        """Device on which a benchmark would put its tensors."""
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        """All configurations are equally fast."""
        return lambda _call, quantiles=None: [0.0] * len(quantiles or [0])

    def get_current_device(self) -> int:
        """Another number for each architecture: compiled kernels are kept by it."""
        return self.capability

    def get_current_stream(self, _device: int | None = None) -> int:
        """Any."""
        return 0


def _binary(case: Case) -> Any:
    return case.kernel.warmup(
        *case.arguments,
        **case.constexprs,
        grid=(1,),
        num_warps=case.num_warps,
        num_stages=case.num_stages,
    )


def row_of(case: Case, capability: int) -> Counts:
    """Compile a case for an architecture, the compute capability times ten, and read the code."""
    driver.set_active(CrossDriver(capability))
    binary = _binary(case)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        code = _dumped("-sass", file.name)
        usage = dict(re.findall(r"(REG|STACK):(\d+)", _dumped("--dump-resource-usage", file.name)))
    found = re.findall(
        r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?);", code, re.M
    )
    # the assembler pads the code with NOPs
    names = [name for _, name, _ in found if name != "NOP"]

    def count(pattern: str) -> int:
        return sum(re.match(pattern, name) is not None for name in names)

    return Counts(
        kernel=case.kernel_name,
        case=case.name,
        arch=f"sm_{capability}",
        triton=triton.__version__,
        source=case.source,
        registers=int(usage["REG"]),
        stack=int(usage["STACK"]),
        shared=int(binary.metadata.shared),
        spills=count(r"LDL|STL"),
        wide_loads=count(r"LDG.*\.128|UTMALDG"),
        wide_stores=count(r"STG.*\.128|UTMASTG"),
        loads=count(r"LDG|UTMALDG"),
        stores=count(r"STG|UTMASTG"),
        shuffles=count(r"SHFL"),
        tensor_core=count(r"HMMA|IMMA|QGMMA|HGMMA|IGMMA|UTC\w*MMA"),
        special=count(r"MUFU"),
        loop=_longest_loop(found),
        instructions=len(names),
    )


def _dumped(option: str, path: str) -> str:
    tool = knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


def _longest_loop(found: Sequence[tuple[str, str, str]]) -> int:
    """Instructions of the longest body that a jump back closes."""
    addresses = [int(address, 16) for address, _, _ in found]
    longest = 0
    for here, (_, name, operands) in zip(addresses, found, strict=True):
        target = re.search(r"0x([0-9a-f]+)", operands) if name.startswith("BRA") else None
        # the last instruction is a jump to itself
        if target and int(target[1], 16) < here:
            body = sum(int(target[1], 16) <= address <= here for address in addresses)
            longest = max(longest, body)
    return longest
