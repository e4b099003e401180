"""The head's kernels take the statistics of all ranks, forward and backward."""

from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_the_head_by_its_kernels_equals_the_definition_on_two_ranks(launch):
    codes, out, errors = launch([Path(__file__).parent / "head_worker.py"]).finish(timeout=280)
    assert codes == [0, 0], errors
    assert sorted(out.splitlines()) == ["rank 0: 12 equal", "rank 1: 12 equal"]
