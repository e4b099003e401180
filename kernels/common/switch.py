"""The switch between Triton kernels and reference, decided for every tensor in one place.

An operator file relies on:

- ``HAS_TRITON``: Triton can be imported. A module that imports ``triton`` is itself imported only
  if this holds, so that ``fastseg.kernels`` imports, and serves the reference, without Triton.
- ``INTERPRET``: Triton's interpreter is on (``TRITON_INTERPRET=1`` when Triton was imported).
  ``@triton.jit`` reads the variable when it decorates: switching it later has no effect.
- ``DEVICES``: the device types of the registered operators, ``("cuda",)``, and ``"cpu"`` too under
  the interpreter. Pass it to ``torch.library.custom_op(..., device_types=DEVICES)``.
- ``UP``: pass it to kernels as a ``tl.constexpr``. Where it is true, cast bfloat16 to float32 right
  after each load and before ``tl.dot``: the interpreter computes bfloat16 wrongly, without a word.
- ``runs_on(tensor)``: true if a public function takes its kernel, false for the reference.

====================  ===================  ============================================
``FASTSEG_KERNELS``   CUDA tensor          CPU tensor
====================  ===================  ============================================
``auto`` (default)    kernel, if Triton    reference, also under the interpreter, which
                                           is for tests and slower by orders of magnitude
``reference``         reference            reference
``strict``            kernel or an error   kernel under the interpreter, else an error
====================  ===================  ============================================

``force_kernels()`` is ``strict`` for the length of a ``with`` block, ``force_reference()`` is
``reference``; the variable is read once, on import. So an ordinary training run on the CPU gets the
reference even in a process whose tests use the interpreter, and a test of a kernel says so::

    with switch.force_kernels():
        prototypes, counts = masked_prototype_pool(features, labels, num_classes)

Float64 tensors have no kernel: the reference serves them, under ``strict`` they are an error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor

try:
    # any folder named triton beside the program can be imported, such as a clone; it has no knobs
    from triton import knobs

    HAS_TRITON = True
    INTERPRET = bool(knobs.runtime.interpret)
except ImportError:
    HAS_TRITON = False
    INTERPRET = False

DEVICES: tuple[str, ...] = ("cuda", "cpu") if INTERPRET else ("cuda",)
UP = INTERPRET
MODES = ("auto", "reference", "strict")


def _mode_of_environment() -> str:
    mode = os.environ.get("FASTSEG_KERNELS", "") or "auto"
    if mode not in MODES:
        raise ValueError(f"FASTSEG_KERNELS={mode!r} is none of {', '.join(MODES)}")
    return mode


# a plain global: torch.compile guards on it, so a compiled function follows a change
_mode = _mode_of_environment()
# why the kernels were turned off
_broken: str | None = None


def why_broken() -> str | None:
    """Reason why :func:`turn_off` has turned the kernels off; None if it has not."""
    return _broken


def is_off() -> bool:
    """True where the reference serves every tensor, by the mode or for want of Triton."""
    return not HAS_TRITON or _mode == "reference"


def turn_off(error: Exception) -> None:
    """Let the reference serve from now on, because kernels cannot be built or launched.

    Args:
        error: error of the compiler, the linker, the loader or the driver.

    Raises:
        RuntimeError: the mode is ``strict``.
    """
    global _broken, _mode
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    if _mode == "strict":
        raise RuntimeError(f"Triton cannot build kernels here: {reason}") from error
    _broken, _mode = reason, "reference"


def runs_on(tensor: Tensor) -> bool:
    """Choose between kernel and reference for a tensor by its device, its dtype and the mode.

    Args:
        tensor: the operator's main input, in most cases the features or logits of the student.

    Returns:
        True for the kernel, False for the reference.

    Raises:
        RuntimeError: the mode is ``strict`` and there is no kernel for the tensor.
    """
    if _mode == "reference":
        return False
    kind = tensor.device.type
    there = HAS_TRITON and kind in DEVICES and tensor.dtype is not torch.float64
    if _mode == "strict":
        if not there:
            triton_is = "installed" if HAS_TRITON else "missing"
            raise RuntimeError(
                f"no kernel for a {tensor.dtype} tensor on {kind!r}: Triton is {triton_is}, its "
                f"kernels serve {', '.join(DEVICES)} up to float32; FASTSEG_KERNELS=auto lets the "
                "reference serve it"
            )
        return True
    return there and kind == "cuda"


@contextlib.contextmanager
def _in_mode(mode: str) -> Iterator[None]:
    global _mode
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


def force_kernels() -> contextlib.AbstractContextManager[None]:
    """Within the block ``runs_on`` says yes, or raises where there is no kernel."""
    return _in_mode("strict")


def force_reference() -> contextlib.AbstractContextManager[None]:
    """Within the block ``runs_on`` says no."""
    return _in_mode("reference")
