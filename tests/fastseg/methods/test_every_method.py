"""What holds for every method that has a recipe: it resumes, repeats, and never waits."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.harness.step_costs import Costs
from fastseg import kernels
from fastseg.config.presets.methods import RECIPES
from fastseg.config.presets.registry import get_preset
from fastseg.engine.context import RunContext
from fastseg.engine.optim.optimizer import build_optimizer
from fastseg.engine.stage_setup import StageNetworks, StageSetup
from fastseg.engine.step import TrainStep
from fastseg.kernels.common import switch
from fastseg.pipelines import Batch
from tests.support.resuming import assert_resumes
from tests.support.tiny_clip import guided_by, write_clip

NAMES = [recipe.name for recipe in RECIPES]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Folder of a tiny CLIP."""
    return write_clip(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture(params=NAMES)
def method_config(request, config, clip):
    """The debug recipe of a method on the tiny data set, three steps per stage."""
    base = get_preset(f"debug_{request.param}")
    stages = {name: replace(stage, steps=3) for name, stage in base.stages.items()}
    config = replace(
        config, method=base.method, losses=base.losses, stages=stages, model=base.model
    )
    return guided_by(config, clip)


def test_a_run_resumes_to_the_last_bit(method_config, fit, losses):
    """Interrupted within stages and between them."""
    assert_resumes(method_config, fit, losses, stop_after=2)


@pytest.mark.skipif(not switch.INTERPRET, reason="TRITON_INTERPRET=1 was not set before Triton")
def test_no_step_waits_for_the_device(method_config):
    """Both passes of every stage with kernels, on tensors that have shapes and no values."""
    context = RunContext(replace(method_config, precision="fp32"))
    count, side, batch = len(context.modalities), 64, 2
    for index, (name, stage) in enumerate(method_config.stages.items()):
        setup = StageSetup(context.config, name, index, stage, steps_per_epoch=6)
        learning, frozen = (
            {n: context.new_network(i, n) for i, n in enumerate(names)}
            for names in (stage.learners, stage.targets)
        )
        networks = StageNetworks(learning, frozen)
        for network in learning.values():
            network.train()
        setup.method.hold(stage, learning)
        setup.method.prepare(stage, learning, replace(context.surroundings, folder=None))
        train = TrainStep(
            setup, networks, build_optimizer(networks.together(), context.config.optim)
        )
        draws = train.draw(0, count, batch)
        with ExitStack() as stack:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(kernels.force_kernels())
            images = torch.empty(count, batch, 3, side, side)
            labels = torch.empty(batch, side, side, dtype=torch.int64)
            with Costs() as costs:
                train.rehearse(Batch(images, labels, ("",) * count, ("",) * batch), draws)
        assert costs.total > 100
