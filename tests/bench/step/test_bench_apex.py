"""The benchmark of NVIDIA apex, which has a stand-in here: providers pass their checks.

It needs no package of the engine's beyond torch, so that it runs before the benchmark does.
"""

import functools
import importlib
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
from bench import gpu_record
from bench.harness import report, shapes
from bench.harness.rows import read_rows, speed_up
from bench.step import bench_apex
from fastseg.engine.optim import nvidia_apex

TOKENS = shapes.Shape(side=64, batch=1, modalities=2)
# and the largest error: torch on a CPU adds up a weight's gradient in bfloat16
DTYPES = {"fp32": (torch.float32, 1e-4), "bf16": (torch.bfloat16, 0.1)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small network, on the CPU, which is where the stand-in computes."""
    monkeypatch.setattr(shapes, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(bench_apex, "EMBED_DIM", 16)
    monkeypatch.setattr(bench_apex, "weights", functools.cache(bench_apex.weights.__wrapped__))


def calls(bench, *args):
    """What a benchmark hands to ``measure``."""
    found = []
    bench(lambda fn, **about: found.append({"fn": fn, **about}), *args)
    (call,) = found
    assert call["bytes_moved"] > 0
    return call


def step(method, provider):
    return calls(bench_apex.bench_optimizer_step, method, "nano", provider)


def norm(provider, dtype=torch.float32, level=0):
    return calls(bench_apex.bench_layer_norm, shapes.Setting(TOKENS, dtype), level, provider)


@pytest.mark.parametrize(("method", "provider"), [(m, p) for m in bench_apex.METHODS
                                                  for p in bench_apex.METHODS[m]])  # fmt: skip
def test_three_steps_are_those_of_torch(apex, method, provider):
    call = step(method, provider)
    assert call["missing"] is None
    assert 0 <= call["check"]() < bench_apex.SLACK_STEP
    call["fn"]()


def of_torch(kind, **changes):
    def build(groups, **options):
        return kind([{**group, **changes} for group in groups], **options)

    return build


@pytest.mark.parametrize(
    ("method", "wrong"),
    {
        "no decay": ("adam", of_torch(torch.optim.AdamW, weight_decay=0.0)),
        "decay of all": ("adam", of_torch(torch.optim.AdamW, weight_decay=0.1)),
        "decay in the gradient": ("adam", of_torch(torch.optim.Adam)),
        "other moments": ("adam", of_torch(torch.optim.AdamW, betas=(0.9, 0.99))),
        "not scaled to the norm": ("lamb", of_torch(torch.optim.AdamW)),
        "vectors scaled, too": ("lamb", of_torch(bench_apex.Lamb, weight_decay=0.1)),
    }.values(),
)
def test_a_step_of_another_formula_is_seen(monkeypatch, method, wrong):
    monkeypatch.setitem(bench_apex.METHODS[method], "wrong", wrong)
    with pytest.raises(AssertionError, match="further from the truth"):
        step(method, "wrong")["check"]()


def test_a_tensor_of_zeros_is_not_scaled():
    p = torch.nn.Parameter(torch.zeros(2, 3))
    p.grad = torch.ones(2, 3)
    optimizer = bench_apex.Lamb([{"params": [p], "weight_decay": 0.1}], (0.9, 0.999), 1e-8)
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2, 3), -0.5))


def test_every_tensor_of_the_network_is_updated(apex):
    for provider in bench_apex.METHODS["adam"]:
        call = step("adam", provider)
        before = [p.detach().clone() for p in call["fn"].params]
        call["fn"]()
        after = call["fn"].params
        assert len(after) == len(bench_apex.weights("nano")) > 100
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("dtype", "largest"), DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("provider", ["eager", "apex"])
def test_layer_norm(apex, provider, dtype, largest):
    for level in range(4):
        call = norm(provider, dtype, level)
        assert call["missing"] is None
        assert 0 <= call["check"]() < largest
    used = importlib.import_module("apex.normalization").FusedLayerNorm.calls
    assert (used > 0) == (provider == "apex")


def test_a_wrong_layer_norm_is_seen(apex, monkeypatch):
    fused = importlib.import_module("apex.normalization").FusedLayerNorm
    right = fused.forward
    monkeypatch.setattr(fused, "forward", lambda self, x: 1.001 * right(self, x))
    with pytest.raises(AssertionError, match="further from the truth"):
        norm("apex")["check"]()


def test_the_most_important_rows_come_first():
    assert bench_apex.steps_of()[0] == ("adam", "b0", "eager")
    rows = bench_apex.norms()
    assert len(set(map(str, rows))) == len(rows)
    assert {provider for _, _, provider in rows[:3]} == {"eager", "apex", "compile"}
    assert sum(provider == "compile" for _, _, provider in rows) == 4


# a machine without apex


def test_without_apex_its_rows_say_so_and_nothing_of_it_is_built(monkeypatch):
    monkeypatch.setattr(nvidia_apex, "why_unusable", lambda: "not installed")
    for call in (step("adam", "apex"), step("lamb", "apex"), norm("apex")):
        assert call["missing"] == "NVIDIA apex is not installed"
    for call in (step("adam", "torch_fused"), step("lamb", "eager"), norm("eager")):
        assert call["missing"] is None


def test_another_package_of_the_name_is_a_row_that_is_not_run(tmp_path):
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    rows = tmp_path / "rows.jsonl"
    command = ["-m", "pytest", "bench/step/bench_apex.py", "-k", "norm and 0-apex and b0"]
    done = subprocess.run(
        [sys.executable, *command, "--rows", rows, "--benchmark-disable"],
        cwd=gpu_record.ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = {row.status for row in read_rows(rows, report.OperatorRow)}
    assert statuses == {"not run: apex: not NVIDIA apex but another package of that name"}
    assert all(status.startswith(gpu_record.FINE) for status in statuses)


def test_torch_is_compared_with_torch_and_apex_with_torch():
    about = ("apex", "adam mit_b0", "step", "float32")
    times = {"eager": 4.0, "torch_fused": 2.0, "apex": 1.0}
    rows = [report.OperatorRow(*about, p, "ok", ms, noise=0.01) for p, ms in times.items()]
    assert [speed_up(row, rows, "torch") for row in rows] == [0.5, 2, 2]
