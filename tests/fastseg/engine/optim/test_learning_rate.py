"""Schedules of the learning rate against torch's."""

import itertools
import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from fastseg.engine.optim.learning_rate import learning_rate
from fastseg.methods.stage import Stage

EPOCH = 4  # steps


def rates(steps, **options):
    stage = Stage(steps=steps, lr=1e-3, **options)
    return [learning_rate(stage, step, EPOCH) for step in range(steps)]


def torchs(make, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("steps", [10, 11, 100])
def test_one_cycle_is_torchs(steps):
    expected = torchs(lambda o: _OneCycle(o, steps), steps)
    assert rates(steps, schedule="one_cycle") == pytest.approx(expected, rel=1e-9)


class _OneCycle(OneCycleLR):
    """Torch's schedule of ``steps`` steps, silent about the one after the last."""

    def __init__(self, optimizer, steps):
        super().__init__(optimizer, 1e-3, total_steps=steps, cycle_momentum=False)

    def step(self):
        if self.last_epoch + 1 < self.total_steps:
            super().step()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_few_steps_is_a_rate(steps):
    assert all(0 < rate <= 1e-3 for rate in rates(steps, schedule="one_cycle"))


def test_cosine_is_torchs_with_an_epoch_more():
    expected = torchs(lambda o: CosineAnnealingLR(o, T_max=20 + EPOCH), 20)
    assert rates(20, schedule="cosine", warmup_epochs=0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_warm_up_is_a_line_and_meets_the_decay(schedule):
    found = rates(40, schedule=schedule, warmup_epochs=2, warmup_ratio=0.1)
    first = [1e-3 * (0.1 + 0.9 * step / 8) for step in range(8)]
    assert found[:8] == pytest.approx(first)
    assert found[8] == pytest.approx(1e-3)
    assert all(a > b > 0 for a, b in itertools.pairwise(found[8:]))


def test_poly_is_the_published_one():
    found = rates(40, warmup_epochs=0)
    expected = [1e-3 * (1 - step / 44) ** 0.9 for step in range(40)]
    assert found == pytest.approx(expected)
    assert math.isclose(found[0], 1e-3)
