"""Turns Triton's interpreter on where there is no GPU, before anything imports the kernels.

``@triton.jit`` reads the variable when it decorates, and the engine's tests, which pytest collects
first, import the kernels too. CPU tensors get the reference all the same unless a test asks for
the kernels: see ``fastseg.kernels.common.switch``.
"""

import importlib
import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
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


@pytest.fixture(scope="session")
def untrained(scenes, tmp_path_factory):
    """The folder of a run whose networks have random weights, with a table of scores."""
    from fastseg.checkpoint.weights import save_weights
    from fastseg.config.presets.registry import get_preset
    from fastseg.engine.context import RunContext
    from fastseg.engine.run_folder import RunFolder
    from fastseg.evaluation.subsets import run_subsets
    from fastseg.report.results import SubsetResult, write_results

    base = get_preset("debug")
    data = replace(base.data, root=scenes, workers=0)
    config = replace(base, name="untrained", out=tmp_path_factory.mktemp("runs"), data=data)
    with RunFolder(config) as folder:
        context = RunContext(folder.config)
        for seed, name in enumerate(("teacher", "student")):
            facts = {"stage": name, "steps": 0, "seed": seed, "size": 64}
            network = context.new_network(seed, name)
            save_weights(folder.weights_file(name), network, context.identity(name), facts)
        scores = [
            SubsetResult("student", subset.name, i / 100, i / 50, (i / 50,) * context.num_classes)
            for i, subset in enumerate(run_subsets(context))
        ]
        write_results(folder.path / "results.csv", scores, context.spec.classes)
    return folder.path


@pytest.fixture(scope="session")
def exported(untrained, tmp_path_factory):
    """What ``fastseg.export`` makes of the student: as .pt2, and as ONNX where that is installed.

    Exporting takes longer than all that is tested on it: processes of one test run share it.
    """
    from filelock import FileLock

    from fastseg import export
    from fastseg.exporting.options import PACKAGES

    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    formats = ["pt2", *["onnx"] * all(map(find_spec, PACKAGES))]
    with FileLock(f"{out}.lock"):
        if not out.is_dir():
            words = ["--checkpoint", str(untrained), "--out", str(out), "--formats", *formats]
            said = StringIO()
            with redirect_stdout(said):
                assert export.main(words) == 0
            (out / "said.txt").write_text(said.getvalue(), encoding="utf-8")
    return out


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
