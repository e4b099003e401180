import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastseg.engine.optim.weight_average import WeightAverage

YES, NO = torch.tensor(1.0), torch.tensor(0.0)


def test_the_average_follows_its_formula():
    module = nn.Linear(2, 2)
    expected = module.weight.detach().clone()
    average = WeightAverage(module, decay=0.7)
    for step in range(60):
        with torch.no_grad():
            module.weight.add_(1.0)
        average.update(step, NO)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    torch.testing.assert_close(average.tensors()["weight"], expected, rtol=1e-5, atol=1e-5)


def test_a_skipped_step_is_not_averaged():
    module = nn.Linear(2, 2)
    average = WeightAverage(module, decay=0.5)
    before = {k: v.clone() for k, v in average.tensors().items()}
    with torch.no_grad():
        module.weight.add_(1.0)
    average.update(3, YES)
    assert all(torch.equal(before[k], v) for k, v in average.tensors().items())


def test_weights_that_learn_are_not_touched():
    module = nn.Linear(2, 2)
    before = module.weight.detach().clone()
    average = WeightAverage(module, decay=0.5)
    average.update(0, NO)
    assert torch.equal(module.weight, before)
    assert average.tensors()["weight"].data_ptr() != module.weight.data_ptr()


def test_the_average_is_scored_and_kept_while_the_weights_learn_as_without(config, fit, losses):
    plain, _ = fit(replace(config, name="plain"))
    averaged, _ = fit(replace(config, name="averaged", ema=0.9))
    teacher = {key: value for key, value in losses(plain).items() if key[0] == "teacher"}
    assert teacher == {k: v for k, v in losses(averaged).items() if k[0] == "teacher"}
    left, right = (load_file(p / "teacher.safetensors") for p in (plain, averaged))
    assert left.keys() == right.keys()
    differing = {key for key in left if not torch.equal(left[key], right[key])}
    # statistics are those of the weights that learn
    assert not any("running" in key or "num_batches" in key for key in differing)
    assert "decoder.linear_pred.weight" in differing
    scores = [
        next(json.loads(line) for line in (p / "metrics.jsonl").open() if '"eval"' in line)
        for p in (plain, averaged)
    ]
    assert scores[0]["miou_all"] != scores[1]["miou_all"]


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"ema": 0.9, "accumulate": 2}])
def test_it_resumes_to_the_last_bit(config, fit, losses, changes):
    config = replace(config, data=replace(config.data, batch_size=2), **changes)
    whole, _ = fit(replace(config, name="whole"))
    finished = False
    while not finished:
        parts, finished = fit(replace(config, name="parts", stop_after=2))
    assert losses(parts) == losses(whole)
    for name in ("teacher", "student"):
        left, right = (load_file(p / f"{name}.safetensors") for p in (parts, whole))
        assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("bad", [-0.1, 1.0])
def test_impossible_decays_are_refused(config, bad):
    with pytest.raises(ValueError, match="ema must be in"):
        replace(config, ema=bad)
