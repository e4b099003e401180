"""What ``fastseg doctor`` says of this machine and of what it lacks."""

import ctypes
import os
import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from fastseg import doctor, kernels
from fastseg.kernels.common import switch
from fastseg.models.precision import best_precision
from fastseg.pipelines.native import build as native


def test_doctor_names_what_serves_instead(capsys, monkeypatch):
    assert doctor.main([]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    wanted = {"fastseg", "torch", "GPU", "precision", "DALI", "apex", "triton", "C", "matplotlib"}
    assert wanted <= set(lines)
    assert (
        best_precision(torch.device("cpu")).value in lines["precision"] or torch.cuda.is_available()
    )
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(native, "library", lambda: native.Library(None, "no C compiler"))
    doctor.main([])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "the torch loader is used" in lines["DALI"]
    assert "PyTorch definitions" in lines["triton"]
    assert "no C compiler" in lines["C"]
    assert "NumPy" in lines["C"]


def test_doctor_says_where_the_c_loops_come_from(monkeypatch):
    for origin in ("packaged", "cached", "compiled"):
        library = native.Library(ctypes.CDLL(None), "pixels.so", origin)
        monkeypatch.setattr(native, "library", lambda found=library: found)
        finding = doctor._native()
        assert finding.state == origin
        assert "pixels.so" in finding.consequence


def test_a_folder_named_triton_is_not_taken_for_it(monkeypatch):
    # what Python imports where a folder, such as a clone, has that name
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    monkeypatch.delitem(sys.modules, "triton.knobs", raising=False)
    assert "another folder" in doctor._triton(torch.device("cpu")).state
    assert runpy.run_path(switch.__file__)["HAS_TRITON"] is False


@pytest.mark.parametrize("broken", [None, "Failed to find C compiler."])
def test_doctor_tries_a_kernel_on_a_gpu(monkeypatch, broken):
    pytest.importorskip("triton")
    tried = []
    monkeypatch.setattr(kernels, "settle", tried.append)
    monkeypatch.setattr(kernels, "why_broken", lambda: broken)
    gpu = torch.device("cuda")
    finding = doctor._triton(gpu)
    assert tried == [gpu]
    assert ("fused kernels" in finding.consequence) == (broken is None)
    assert (broken or "") in finding.state
    assert ("python3-dev" in finding.consequence) == (broken is not None)


@pytest.mark.fault("F38")
@pytest.mark.parametrize(
    ("package", "verdict"),
    [
        ({}, "not installed"),
        ({"apex/__init__.py": ""}, "not NVIDIA apex"),
        ({"apex/__init__.py": "raise ImportError('pyramid')"}, "web toolkit of PyPI"),
        ({"apex/__init__.py": "", "apex/optimizers/__init__.py": ""}, "without CUDA extensions"),
    ],
)
def test_doctor_tells_the_four_kinds_of_apex_apart(tmp_path, package, verdict):
    for name, text in package.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    done = subprocess.run(
        [sys.executable, "-c", "from fastseg import doctor; print(doctor._apex().state)"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert verdict in done.stdout
