from dataclasses import replace

import pytest
import torch

from fastseg.engine.optim import loss_scale
from fastseg.engine.optim.loss_scale import LossScale
from fastseg.models.precision import autocast, best_precision, reduced_dtype

CPU = torch.device("cpu")
YES, NO = torch.tensor(1.0), torch.tensor(0.0)


def test_a_skip_halves_the_scale_and_good_steps_double_it():
    scale = LossScale(CPU, interval=3)
    seen = []
    for skipped in (NO, NO, YES, NO, NO, NO, NO, NO, NO, YES, YES):
        scale.update(skipped)
        seen.append(float(scale.scale) / 2**16)
    assert seen == [1, 1, 0.5, 0.5, 0.5, 1, 1, 1, 2, 1, 0.5]


def test_scaling_and_unscaling_change_no_bit():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (plain,) = torch.autograd.grad(x.exp().mean(), x)
    scale = LossScale(CPU)
    (scaled,) = torch.autograd.grad(scale(x.exp().mean()), x)
    assert not torch.equal(scaled, plain)
    scale.unscale([scaled])
    assert torch.equal(scaled, plain)


def test_the_state_of_a_scale_survives():
    scale = LossScale(CPU, interval=5)
    for skipped in (YES, NO, NO):
        scale.update(skipped)
    other = LossScale(CPU, interval=5)
    other.restore(scale.state())
    assert other.state() == scale.state() == {"scale": 2.0**15, "good_steps": 2.0}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_networks_compute_in_the_dtype_of_the_run(name, dtype):
    x = torch.randn(4, 4)
    with autocast(CPU, name):
        assert (x @ x).dtype == dtype


@pytest.mark.parametrize(
    ("instructions", "wanted"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32")],
)
def test_a_cpu_gets_bf16_where_it_has_instructions_for_it(monkeypatch, instructions, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    best = best_precision(CPU)
    precision, why = best.value, best.why
    assert precision == wanted
    assert "this CPU" in why


@pytest.mark.parametrize(
    ("capability", "wanted"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp32")]
)
def test_a_gpu_gets_bf16_where_it_has_tensor_cores_for_it(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    best = best_precision(torch.device("cuda"))
    precision, why = best.value, best.why
    assert precision == wanted
    assert ("--precision fp16" in why) == (wanted == "fp32")


def test_an_open_choice_is_never_taken_for_full_precision():
    with pytest.raises(KeyError):
        reduced_dtype("auto")


def test_fp16_trains_close_to_fp32_and_resumes_to_the_last_bit(config, fit, losses, monkeypatch):
    # blank sensors and random weights: gradients of 10^4, which take a dozen halvings to fit
    monkeypatch.setattr(loss_scale, "_FIRST_SCALE", 4.0)
    config = replace(config, precision="fp16")
    whole, _ = fit(replace(config, name="whole"))
    exact, _ = fit(replace(config, name="exact", precision="fp32"))
    finished = False
    while not finished:
        parts, finished = fit(replace(config, name="parts", stop_after=2))
    assert losses(parts) == losses(whole)
    rough, reference = losses(whole), losses(exact)
    assert float.fromhex(rough["teacher", 1, "loss_scale"]) == 4.0
    for step in range(1, 6):
        found, wanted = (float.fromhex(r["teacher", step, "loss"]) for r in (rough, reference))
        assert found == pytest.approx(wanted, rel=0.02)
