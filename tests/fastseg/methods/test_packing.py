"""Steps with a subset per sample: what is left is encoded alone, and all numbers are as before."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastseg.config.presets.methods import RECIPES
from fastseg.config.presets.registry import get_preset
from fastseg.config.sections import SpeedConfig
from fastseg.engine.context import RunContext
from fastseg.engine.optim.optimizer import build_optimizer
from fastseg.engine.stage_setup import StageNetworks, StageSetup
from fastseg.engine.step import TrainStep
from fastseg.methods.robustseg import RobustSegWeights
from fastseg.models.packing import PackingRule
from fastseg.pipelines import Batch
from tests.support.resuming import assert_resumes
from tests.support.tiny_clip import guided_by, write_clip

M, B, SIDE = 4, 3, 32
NAMES = ("img", "depth", "event", "lidar")
DROPPING = [
    (recipe.name, stage)
    for recipe in RECIPES
    for stage, what in get_preset(f"debug_{recipe.name}").stages.items()
    if what.modalities == "drop"
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("models") / "tiny-clip")


def config_of(name, clip, packing="auto", **model):
    """Nothing random in the networks, and all labelled pixels hard."""
    base = get_preset(f"debug_{name}")
    model = {"dropout": 0, "drop_path": 0, **model}
    config = replace(
        base,
        model=replace(base.model, **model),
        losses=replace(base.losses, ohem_threshold=1 - 1e-9),
        speed=SpeedConfig(packing=packing),
    )
    return guided_by(config, clip)


def step_of(config, stage, dtype=torch.float64, losses=None):
    context = RunContext(replace(config, device="cpu"))
    what = replace(config.stages[stage], steps=10, modalities_per="sample")
    what = replace(what, losses=losses or what.losses)
    setup = StageSetup(context.config, stage, 1, what, steps_per_epoch=10)
    learning, frozen = (
        {n: context.new_network(i, n).to(dtype) for i, n in enumerate(names)}
        for names in (what.learners, what.targets)
    )
    for network in learning.values():
        network.train()
    setup.method.hold(what, learning)
    setup.method.prepare(what, learning, replace(context.surroundings, folder=None))
    networks = StageNetworks(learning, frozen)
    optimizer = build_optimizer(networks.together(), config.optim)
    train = TrainStep(setup, networks, optimizer)
    train.dtype = dtype
    return train


def batch_of(dtype=torch.float64, samples=B):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(M, samples, 3, SIDE, SIDE, generator=generator, dtype=dtype)
    labels = torch.randint(0, 25, (samples, SIDE, SIDE), generator=generator)
    return Batch(images, labels, NAMES, ("",) * samples)


def both_passes(train, batch, draws):
    """Values of the terms, and every gradient by name."""
    train.module.zero_grad(set_to_none=True)
    values = train._passes(batch.images, batch.labels, draws)
    grads = {n: p.grad for n, p in train.module.named_parameters() if p.requires_grad}
    return values, {n: None if g is None else g.clone() for n, g in grads.items()}


def assert_equal_steps(whole, packed, batch, kept=None, rtol=1e-10):
    """The draws of the packed step; both steps have the same values and gradients."""
    draws = [t.draw(3, *batch.images.shape[:2], kept=kept) for t in (whole, packed)]
    assert draws[0].groups == ()
    (values, grads), (found, moved) = (
        both_passes(t, batch, d) for t, d in zip((whole, packed), draws, strict=True)
    )
    assert values.keys() == found.keys()
    for name, value in values.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol, msg=name)
    largest = max(float(g.abs().max()) for g in grads.values() if g is not None)
    assert largest > 0
    for name, grad in grads.items():
        assert (moved[name] is None) == (grad is None), name
        if grad is not None:
            torch.testing.assert_close(
                moved[name], grad, rtol=10 * rtol, atol=rtol * largest, msg=name
            )
    return draws[1]


@pytest.mark.parametrize(("name", "stage"), DROPPING, ids=[f"{n}-{s}" for n, s in DROPPING])
def test_every_method_learns_what_it_learnt(name, stage, clip):
    """In float64, where rounding hides nothing; methods that read what is left out encode all."""
    whole, packed = (step_of(config_of(name, clip, way), stage) for way in ("off", "auto"))
    draws = assert_equal_steps(whole, packed, batch_of())
    if whole.method.reads_dropped(whole.stage):
        assert name == "robustseg"
        assert draws.groups == ()
    else:
        assert sum(draws.groups) == int(draws.kept.sum()) < M * B


def test_prototypes_without_the_regulariser(clip):
    losses = RobustSegWeights(ohem=1, logit=50, hpdm=1)
    whole, packed = (
        step_of(config_of("robustseg", clip, way), "student", losses=losses)
        for way in ("off", "auto")
    )
    assert assert_equal_steps(whole, packed, batch_of()).groups


@pytest.mark.parametrize("fusion", ["mean", "mff"])
@pytest.mark.parametrize("encoders", ["shared", "per_modality"])
def test_encoders_and_fusions(encoders, fusion, clip):
    options = {"encoders": encoders, "fusion": fusion}
    whole, packed = (
        step_of(config_of("dropout", clip, way, **options), "student") for way in ("off", "auto")
    )
    draws = assert_equal_steps(whole, packed, batch_of())
    assert len(draws.groups) == (M if encoders == "per_modality" else 1)


@pytest.mark.parametrize("encoders", ["shared", "per_modality"])
@pytest.mark.parametrize("case", ["one-each", "the-same-one", "all", "one-sample"])
def test_extremes(case, encoders, clip):
    """An encoder without an image has gradients of zero, as it had before."""
    whole, packed = (
        step_of(config_of("dropout", clip, way, encoders=encoders), "student")
        for way in ("off", "auto")
    )
    kept = torch.zeros(M, 1 if case == "one-sample" else B, dtype=torch.int64)
    if case == "all":
        kept += 1
    elif case == "one-each":
        kept[:B] = torch.eye(B, dtype=torch.int64)
    else:
        kept[2] = 1
    draws = assert_equal_steps(whole, packed, batch_of(samples=kept.shape[1]), kept)
    blind = int((kept.sum(1) == 0).sum()) if encoders == "per_modality" else 0
    assert sum(draws.groups) == int(kept.sum()) + blind


@pytest.mark.parametrize("lengths", [1, 3, 8])
def test_images_of_the_padding_change_nothing(lengths, clip):
    whole, packed = (step_of(config_of("anyseg", clip, way), "student") for way in ("off", "auto"))
    rule = PackingRule(lengths=lengths)
    packed.paths = replace(packed.paths, packing=replace(packed.paths.packing, value=rule))
    draws = assert_equal_steps(whole, packed, batch_of())
    assert draws.groups[0] in rule.numbers(M, B)
    assert len(rule.numbers(M, B)) <= max(1, lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_dtypes_differ_by_rounding(dtype, clip):
    precision = "bf16" if dtype is torch.bfloat16 else "fp32"
    whole, packed = (
        step_of(replace(config_of("dropout", clip, way), precision=precision), "student",
                torch.float32)
        for way in ("off", "auto")
    )  # fmt: skip
    for train in (whole, packed):
        train.dtype = dtype
    slack = 2e-2 if dtype is torch.bfloat16 else 1e-5
    assert_equal_steps(whole, packed, batch_of(torch.float32), rtol=slack)


def test_a_step_repeats_to_the_last_bit(clip):
    train = step_of(config_of("logit_kd", clip), "student", torch.float32)
    batch = batch_of(torch.float32)
    first, second = (both_passes(train, batch, train.draw(3, M, B)) for _ in range(2))
    assert first[0] == second[0]
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_what_is_left_is_encoded(clip, checkpointing):
    config = config_of("dropout", clip, checkpointing=checkpointing)
    train, seen = step_of(config, "student"), []
    network = train.networks.main
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    images = batch_of().images.requires_grad_()
    draws = train.draw(3, M, B)
    train._passes(images, batch_of().labels, draws)
    assert seen == [int(draws.kept.sum())]
    assert torch.equal(images.grad.flatten(2).any(2), draws.kept.bool())


def test_a_run_resumes_to_the_last_bit(config, fit, losses):
    base = get_preset("demo_logit_kd")
    stages = {name: replace(stage, steps=3, warmup_epochs=0) for name, stage in base.stages.items()}
    assert stages["student"].drops_per_sample
    config = replace(
        config, method=base.method, losses=base.losses, stages=stages, model=base.model
    )
    assert_resumes(config, fit, losses, stop_after=2)


def test_shapes_alone_are_enough_for_a_step(clip):
    """So the number of images is known without a look at the device."""
    train = step_of(config_of("logit_kd", clip), "student", torch.float32)
    draws = train.draw(3, M, B)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(M, B, 3, SIDE, SIDE)
        output = train.networks.main(images, fused=draws.kept[None], **draws.packing_keyword)
    assert output.logits.shape == (B, 25, SIDE // 4, SIDE // 4)
    assert [x.shape[:2] for x in output.features] == [(M, B)] * 4
