"""How the C loops are compiled, into a wheel by ``setup.py`` or at the first use by ``build.py``.

``setup.py`` runs this file alone, before anything is installed: the standard library is all it
imports.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

SOURCE = Path(__file__).with_name("pixels.c")
# contracted or reordered arithmetic would change bits; rintf needs no errno to become one
# instruction
_FLAGS = (
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
_PATIENCE_S = 60

# with vectors of 512 bits the loads of the colour tables take half as long again
_FLAGS_OF = {"x86-64-v4": ("-mprefer-vector-width=256",)}

# what a processor must have beside those of the next one below, by the names of /proc/cpuinfo
_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {"x86-64-v4": _V4, "x86-64-v3": _V3, "x86-64": ()},
    "aarch64": {"armv8-a": ()},
}
"""By machine: instruction sets that a wheel holds a library for, the fastest first and the one that
every such processor has last, and what each needs."""


def fitting(machine: str, features: Iterable[str]) -> list[str]:
    """Instruction sets that a processor with these features has, the fastest first."""
    has, known = set(features), INSTRUCTION_SETS.get(machine, {})
    return [march for march, needs in known.items() if has.issuperset(needs)]


def packaged_name(march: str) -> str:
    """File name of the library in a wheel; a changed source or flag gives another."""
    return f"pixels-{digest(march, *_FLAGS_OF.get(march, ()))}-{march}.so"


def digest(*facts: str) -> str:
    """What a library depends on, in 16 characters: the source, the flags and these facts."""
    parts = (SOURCE.read_bytes(), repr((*facts, _FLAGS)).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def compile_library(compiler: list[str], march: str, target: Path) -> None:
    """Compile the source for one instruction set (``native``: this processor's).

    Raises:
        OSError, subprocess.SubprocessError: the compiler does not start, fails, or takes too long.
    """
    subprocess.run(
        [
            *compiler,
            *_FLAGS,
            f"-march={march}",
            *_FLAGS_OF.get(march, ()),
            *("-o", str(target), str(SOURCE), "-lm"),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
    )


def features() -> list[str]:
    """Instructions that this processor has and the system allows; none where that is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return found.partition(":")[2].split()


def machine() -> str:
    """Kind of processor by the names of ``INSTRUCTION_SETS``."""
    return platform.machine()
