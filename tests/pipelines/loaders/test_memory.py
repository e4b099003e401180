"""Memory stays flat over fifty epochs; ``loader_memory`` alone looks at more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastseg.pipelines.loaders.dali.loader import dali_import_error
from tests.support import loader_memory as memory

REPO = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason=f"no way to measure on {sys.platform}"
)
BOUND_MIB = 10
"""The images of one batch per epoch would be 17; what worker processes share shrinks by up to 7."""


def grown(names: list[str], *more: str) -> dict[str, float]:
    """MiB that each variant has gained, in a process that holds nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", memory.__name__, "--variants", *names, *more],
        env=os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = re.findall(r"^(.*): [0-9.]+ MiB, ([+-][0-9.]+) after 50 epochs$", done.stdout, re.M)
    return {name: float(gain) for name, gain in lines}


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_nothing_more_is_held_after_fifty_epochs(loader: str) -> None:
    if loader == "dali" and dali_import_error() is not None:
        pytest.skip("DALI is not installed")
    names = {
        "torch": ["training, torch, processes", "training, torch, packed"],
        "dali": ["training, dali", "training, dali, packed"],
    }[loader]
    gains = grown(names)
    assert list(gains) == names
    assert max(gains.values()) < BOUND_MIB, gains


def test_a_leak_would_be_seen() -> None:
    (gain,) = grown(["training, torch, threads"], "--leak").values()
    assert gain > BOUND_MIB
