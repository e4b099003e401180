import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastseg.kernels
from fastseg.kernels.common import switch

CHECKOUT = Path(fastseg.kernels.__file__).parents[1]
ONE = torch.ones(1)


@pytest.fixture
def fresh(monkeypatch):
    """The module as a new process would see it; ``None`` removes a variable."""

    def load(**environment):
        for name, value in environment.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        spec = importlib.util.spec_from_file_location("fresh_launch", switch.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_interpreter_is_on_in_this_process_or_there_is_a_gpu():
    if not switch.HAS_TRITON or os.environ.get("TRITON_INTERPRET") == "0":
        pytest.skip("no Triton, or its interpreter was turned off by hand")
    assert torch.cuda.is_available() or switch.INTERPRET
    assert switch.UP is switch.INTERPRET
    assert ("cpu" in switch.DEVICES) is switch.INTERPRET


def test_an_ordinary_tensor_of_the_cpu_gets_the_reference():
    assert not switch.runs_on(torch.ones(1))


@pytest.mark.usefixtures("kernels")
def test_a_test_that_asks_gets_the_kernels(device):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert switch.runs_on(torch.ones(1, dtype=dtype, device=device))


def test_the_modes_nest_and_end_with_their_blocks(device):
    x = torch.ones(1, device=device)
    before = switch.runs_on(x)
    with switch.force_kernels():
        assert switch.runs_on(x)
        with pytest.raises(KeyError), switch.force_reference():  # noqa: PT012
            assert not switch.runs_on(x)
            raise KeyError
        assert switch.runs_on(x)
    assert switch.runs_on(x) is before


@pytest.mark.parametrize(
    "tensor", [torch.ones(1, device="meta"), torch.ones(1).double()], ids=["device", "dtype"]
)
def test_a_missing_kernel_is_an_error_when_kernels_are_asked_for(tensor):
    assert not switch.runs_on(tensor)
    with switch.force_kernels(), pytest.raises(RuntimeError, match="no kernel for a torch"):
        switch.runs_on(tensor)


def test_a_compiled_function_follows_the_mode(device):
    @torch.compile(backend="eager", fullgraph=True)
    def choose(x):
        return x + 1 if switch.runs_on(x) else x - 1

    x = torch.zeros(1, device=device)
    with switch.force_reference():
        assert choose(x) == -1
    with switch.force_kernels():
        assert choose(x) == 1


@pytest.mark.parametrize("make", [torch.empty, lambda n: torch.ones(n).new_empty(n)])
def test_fresh_memory_is_poisoned(make):
    assert make(7).isnan().all()


@pytest.mark.parametrize(
    ("interpreter", "mode", "devices", "served"),
    [
        (None, None, ("cuda",), False),
        ("1", None, ("cuda", "cpu"), False),
        ("1", "reference", ("cuda", "cpu"), False),
        ("1", "strict", ("cuda", "cpu"), True),
    ],
    ids=["plain", "interpreter", "reference", "strict"],
)
@pytest.mark.skipif(not switch.HAS_TRITON, reason="Triton is missing")
def test_the_environment_decides(fresh, interpreter, mode, devices, served):
    launch = fresh(TRITON_INTERPRET=interpreter, FASTSEG_KERNELS=mode)
    assert tuple(launch.DEVICES) == devices
    assert launch.runs_on(ONE) is served


def test_without_an_interpreter_strict_is_an_error_on_the_cpu(fresh):
    launch = fresh(TRITON_INTERPRET=None, FASTSEG_KERNELS="strict")
    with pytest.raises(RuntimeError, match="float32 tensor on 'cpu'"):
        launch.runs_on(ONE)


def test_an_unknown_mode_is_an_error(fresh):
    with pytest.raises(ValueError, match="'fast' is none of auto, reference, strict"):
        fresh(FASTSEG_KERNELS="fast")


@pytest.mark.fault("F37")
def test_without_triton_the_room_imports_and_the_reference_serves():
    program = """
import sys
sys.modules["triton"] = None
import torch
import fastseg.kernels
from fastseg.kernels.common import switch
assert not switch.HAS_TRITON and not switch.INTERPRET and not switch.runs_on(torch.ones(1))
features, labels = torch.ones(1, 1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
assert fastseg.kernels.masked_prototype_pool(features, labels, 1)[1].item() == 16
"""
    environment = {k: v for k, v in os.environ.items() if k != "FASTSEG_KERNELS"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
