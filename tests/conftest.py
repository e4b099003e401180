"""Turns Triton's interpreter on where there is no GPU, before anything imports the kernels.

``@triton.jit`` reads the variable when it decorates, and the engine's tests, which pytest collects
first, import the kernels too. CPU tensors get the reference all the same unless a test asks for
the kernels: see ``fastseg.kernels.common.switch``.
"""

import importlib
import os
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # several workers of several threads each would wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A tiny synthetic data set on disk; tests read it only."""
    from fastseg.pipelines.synthetic import SyntheticConfig, generate

    root = tmp_path_factory.mktemp("scenes") / "data"
    generate(SyntheticConfig(out=root, size=64, train=12, val=5, workers=1), progress=False)
    return root


@pytest.fixture
def apex(monkeypatch):
    """NVIDIA apex by a stand-in with its interface, which computes on a CPU."""
    from fastseg.engine.optim import nvidia_apex

    monkeypatch.syspath_prepend(str(Path(__file__).parent / "support" / "fake_apex"))
    monkeypatch.setattr(nvidia_apex, "DEVICES", ("cuda", "cpu"))
    importlib.invalidate_caches()
    yield
    for name in [n for n in sys.modules if n == "amp_C" or n.split(".")[0] == "apex"]:
        del sys.modules[name]
