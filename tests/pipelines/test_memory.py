"""Memory stays flat over fifty epochs; ``memory.py`` alone looks at more."""

from __future__ import annotations

import sys
from pathlib import Path

import memory
import pytest

from fastseg import data
from fastseg.pipelines.dali_loader import dali_import_error

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(),
    reason=f"not known how to measure on {sys.platform}",
)
BOUND_MIB = 10
"""The images of one batch per epoch would be 17; what worker processes share shrinks by up to 7."""


@pytest.mark.parametrize("name", [name for name in memory.VARIANTS if name != "torch, threads"])
def test_training_holds_no_more_after_fifty_epochs(deliver_tree: Path, name: str) -> None:
    if "dali" in name and dali_import_error() is not None:
        pytest.skip("DALI is not installed")
    if "packed" in name:
        data.main(["pack", "--root", str(deliver_tree), "--splits", "val"])
    _, more = memory.measure(deliver_tree, name, 50)
    assert more < BOUND_MIB


@pytest.mark.parametrize(("name", "passes"), [("torch, processes", 50), ("dali", 15)])
def test_evaluation_holds_no_more_after_many_passes(
    deliver_tree: Path, name: str, passes: int
) -> None:
    if "dali" in name and dali_import_error() is not None:
        pytest.skip("DALI is not installed")
    _, more = memory.measure(deliver_tree, name, passes, train=False)
    assert more < BOUND_MIB


def test_a_leak_would_be_seen(deliver_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    plain = memory.training

    def leaking(loader):
        run = plain(loader)

        def run_and_keep() -> None:
            run()
            kept.append(next(loader.batches()).images)  # of another stream, one per epoch

        return run_and_keep

    monkeypatch.setattr(memory, "training", leaking)
    _, more = memory.measure(deliver_tree, "torch, threads", 50)
    assert more > BOUND_MIB
