"""Every kind of input pipeline survives being built and run; ``loader_stress`` does it longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastseg.pipelines.loaders.dali.loader import dali_import_error
from tests.support import loader_stress as stress


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_no_pipeline_crashes(tmp_path: Path, loader: str) -> None:
    if loader == "dali" and dali_import_error() is not None:
        pytest.skip("DALI is not installed")
    stress.write_data(tmp_path)
    names = [name for name, variant in stress.VARIANTS.items() if variant.loader == loader]
    code, said = stress.spawn(names, tmp_path, runs=2, timeout=300)
    assert code == 0, said  # the last line before a crash names the variant
    assert said.count(": run ") == 2 * len(names)
