"""``python -m fastseg.doctor``: what is installed, what is used instead of the rest, and why."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import fastseg
from fastseg import kernels
from fastseg.cli.command import command
from fastseg.cli.parse import parse
from fastseg.engine.optim import nvidia_apex
from fastseg.models.precision import best_precision
from fastseg.pipelines.native import build as native


@dataclass(frozen=True)
class Finding:
    """One line: what, its version or the reason why it cannot be used, and what follows."""

    name: str
    state: str
    consequence: str


@dataclass(frozen=True)
class DoctorConfig:
    """No options: the doctor looks at this machine."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per component; the exit code is 0."""
    parse(DoctorConfig, prog="python -m fastseg.doctor", description=__doc__, args=arguments)
    findings = examine()
    names, states = (max(len(getattr(f, key)) for f in findings) for key in ("name", "state"))
    for finding in findings:
        print(f"{finding.name:<{names}}  {finding.state:<{states}}  {finding.consequence}")
    return 0


def examine() -> list[Finding]:
    """Look at everything that decides how a run is executed."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    precision = best_precision(device)
    return [
        Finding("fastseg", fastseg.__version__, f"Python {platform.python_version()}"),
        Finding("torch", torch.__version__, f"{os.cpu_count()} cores"),
        Finding(
            "GPU",
            torch.cuda.get_device_name() if gpu else "none",
            "used with --device auto" if gpu else "runs use the CPU",
        ),
        Finding("precision", precision.value, f"what --precision auto takes: {precision.why}"),
        _dali(gpu),
        _apex(),
        _triton(device),
        _native(),
        _module(
            "imagecodecs",
            "PNG files are decoded with it",
            "Pillow decodes PNG files; faster: pip install '.[fast-png]' in the clone",
        ),
        _module("matplotlib", "figures of the report", "pip install matplotlib"),
        _module(
            "onnxruntime",
            "ONNX files of python -m fastseg.export are checked with it",
            "needed for ONNX files: pip install '.[export]' in the clone",
        ),
        _module(
            "transformers",
            "foundation encoders and CLIP models are read with it",
            "needed for foundation encoders: pip install '.[foundation]' in the clone",
        ),
        _torchvision(),
        _module(
            "h5py", "event files of MUSES", "needed for MUSES: pip install '.[muses]' in the clone"
        ),
    ]


def _dali(gpu: bool) -> Finding:
    reason = import_error("nvidia.dali")
    if reason:
        return Finding(
            "DALI", reason, "the torch loader is used; pip install '.[dali]' in the clone"
        )
    used = "used by --data.loader auto" if gpu else "used with --data.loader dali (no GPU: torch)"
    return Finding("DALI", _version("nvidia-dali-cuda130"), used)


def _apex() -> Finding:
    """NVIDIA apex; the package of that name on PyPI is another project."""
    if reason := nvidia_apex.why_unusable():
        instead = "torch.optim.AdamW(fused=True) and torch LayerNorm are used"
        return Finding("apex", reason, f"{instead}; see docs/howto/make-it-fast.md")
    where = " and ".join(nvidia_apex.DEVICES)
    served = "by --optim.kind auto where it is faster, apex_adam, apex_lamb, --model.norm apex"
    return Finding("apex", "found", f"used on {where} {served}")


def _triton(device: torch.device) -> Finding:
    instead = "losses run as their PyTorch definitions"
    if reason := import_error("triton"):
        return Finding("triton", reason, instead)
    if not hasattr(sys.modules["triton"], "knobs"):
        return Finding("triton", "not installed; another folder has its name", instead)
    if device.type == "cpu":
        return Finding("triton", _version("triton"), f"no GPU: {instead}")
    kernels.settle(device)
    if broken := kernels.why_broken():
        remedy = "it needs a C compiler and the headers of Python (gcc, python3-dev)"
        return Finding("triton", f"builds no kernel: {broken}", f"{instead}; {remedy}")
    return Finding("triton", _version("triton"), "losses run as fused kernels")


def _torchvision() -> Finding:
    """By its metadata alone: one that was made for another torch raises when it is imported."""
    unused = "fastseg does not import it"
    try:
        version = importlib.metadata.version("torchvision")
        needs = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("torchvision", "not installed", f"not needed: {unused}")
    pins = [found[1] for need in needs if (found := re.match(r"torch *\(?== *([\w.]+)", need))]
    own = torch.__version__.split("+")[0]
    if not pins or own in pins:
        return Finding("torchvision", version, unused)
    return Finding(
        "torchvision",
        f"{version}, made for torch {pins[0]}",
        f"does not fit torch {own}: {unused}, but transformers does, and fails; "
        "pip uninstall torchvision, or install the one of this torch",
    )


def _native() -> Finding:
    loops = native.library()
    if loops.loaded is None:
        return Finding("C loops", loops.where, "NumPy serves, with the same bits, slower")
    return Finding("C loops", loops.origin, f"resampling, blur and colours: {loops.where}")


def _module(name: str, use: str, remedy: str) -> Finding:
    reason = import_error(name)
    return Finding(name, reason or _version(name), remedy if reason else use)


def import_error(name: str) -> str | None:
    """Reason why a module cannot be imported, or None if it can."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "") in name
        return "not installed" if missing else f"does not import: {error}"
    return None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "found"


if __name__ == "__main__":
    sys.exit(main())
