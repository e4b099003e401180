"""Kernels on two ranks: statistics of the global batch, gradients of norms by stand-ins."""

from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_kernels_equal_their_definitions_on_two_ranks(launch):
    codes, out, errors = launch([Path(__file__).parent / "kernels_worker.py"]).finish(timeout=280)
    assert codes == [0, 0], errors
    said = [f"rank {rank}: head, 12 equal" for rank in (0, 1)]
    said += [f"rank {rank}: network, 134 equal, 128 of them learn" for rank in (0, 1)]
    assert sorted(out.splitlines()) == sorted(said)
