"""The paths of a step, the record of their losses, and the degraded sets drawn from it."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from fastseg.config.run import TrainConfig
from fastseg.engine.optim.optimizer import build_optimizer
from fastseg.engine.stage_setup import StageNetworks, StageSetup
from fastseg.engine.step import TrainStep
from fastseg.methods.base import NewModel, StepInputs, StepPlan
from fastseg.methods.draws import pack
from fastseg.methods.full_path import (
    RECORD,
    FullPath,
    FullPathOptions,
    FullPathWeights,
    fragile_subsets,
    running_losses,
    with_newest,
)
from fastseg.methods.seeds import Share, derive_seed
from fastseg.methods.stage import Stage
from fastseg.models import SegFormer
from fastseg.pipelines import Batch

CLASSES, NAMES = 5, ("img", "depth", "event", "lidar")
EVERY = FullPathWeights(ohem=1.0, full=0.5, paths=2.0, logit=3.0)


def stage_of(losses=EVERY, **changes):
    start = {"trains": "student", "start": "random", "steps": 4, "lr": 1e-3, "warmup_epochs": 0}
    return Stage(losses=losses, **(start | changes))


def network_of(modalities=4, dtype=torch.float64):
    torch.manual_seed(3)
    new = partial(SegFormer, "mit_nano", CLASSES, 16, dropout=0, drop_path=0)
    network = FullPath(FullPathOptions()).build("student", NewModel(new, NAMES[:modalities]))
    return network.to(dtype).eval()


def inputs_of(method, network, images, labels, stage, share=Share(), mean=lambda x: x):  # noqa: B008
    m, b = images.shape[:2]
    plan = StepPlan(stage, m, list(range(m)), b, share, partial(derive_seed, 0, 0, 0))
    draws = pack(torch.device("cpu"), method.draw(plan), modalities=m, present=range(m))
    return StepInputs(
        stage, images, labels, draws, {"student": network}, {}, {"student": network}, mean
    )


def data_of(modalities=4, batch=2):
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(modalities, batch, 3, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (batch, 32, 32), generator=generator)
    labels[:, :3] = 255
    return images, labels


def definition(network, images, labels, kept, paths, options):
    """All terms by loops over paths and pixels, in double precision."""
    m, b = images.shape[:2]

    def logits_of(subsets):
        """``subsets[b]``: the modalities of each sample, one forward pass each."""
        out = [network(images[rows, i : i + 1]).logits for i, rows in enumerate(subsets)]
        return functional.interpolate(torch.cat(out), size=labels.shape[1:], mode="bilinear")

    def ohem(logits):
        log_p, losses = logits.log_softmax(1), []
        for i, y, x in itertools.product(*map(range, labels.shape)):
            if labels[i, y, x] != 255:
                losses.append(-log_p[i, labels[i, y, x], y, x])
        hard = [x for x in losses if x > -math.log(options.ohem_threshold)]
        least = math.floor(options.ohem_min_kept * len(losses))
        chosen = hard if len(hard) >= least else sorted(losses, reverse=True)[:least]
        return torch.stack(chosen).mean() if chosen else logits.sum() * 0

    def divergence(logits, target):
        p, log_q = target.detach().softmax(1), logits.log_softmax(1)
        return (p * (target.detach().log_softmax(1) - log_q)).sum() / logits.numel()

    full = logits_of([list(range(m))] * b)
    degraded = logits_of([[i for i in range(m) if kept[i, j]] for j in range(b)])
    single = [logits_of([[p]] * b) for p in paths]
    kl = [divergence(x, full) for x in (degraded, *single)]
    return {
        "ohem": ohem(degraded),
        "full": ohem(full),
        "paths": sum(map(ohem, single)) / len(single),
        "logit": sum(kl) / len(kl),
    }


@pytest.mark.parametrize(
    ("modalities", "batch", "count"), [(4, 2, 0), (4, 1, 2), (1, 2, 0)], ids=str
)
def test_every_term_is_its_definition(modalities, batch, count):
    method = FullPath(FullPathOptions(paths_per_step=count))
    network = network_of(modalities)
    images, labels = data_of(modalities, batch)
    step = inputs_of(method, network, images, labels, stage_of())
    kept = fragile_subsets(torch.zeros(modalities), step.draws["uniform"], step.draws["sizes"], 1.0)
    paths = step.draws["paths"].tolist()
    assert len(paths) == (count or modalities)
    wanted = definition(network, images, labels, kept, paths, method.options)
    found = method.terms(step)
    assert list(found) == ["ohem", "full", "paths", "logit"]
    parameters = list(network.parameters())
    for name, value in found.items():
        assert value.ndim == 0
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-7, check_dtype=False)
        if not wanted[name].requires_grad or (modalities == 1 and name == "logit"):
            continue  # one modality is the complete set: the divergence is zero
        one, two = (
            torch.autograd.grad(x, parameters, retain_graph=True, materialize_grads=True)
            for x in (value, wanted[name])
        )
        one, two = (torch.cat([x.flatten() for x in each]) for each in (one, two))
        assert (one - two).norm() < 1e-4 * two.norm()


def test_a_term_of_weight_zero_is_not_computed_and_its_path_not_decoded():
    images, labels = data_of()
    names = ("ohem", "full", "paths")
    for name in names:
        stage = stage_of(FullPathWeights(**{x: float(x == name) for x in names}))
        method, network, decode = FullPath(FullPathOptions()), network_of(), []
        network.decoder.register_forward_pre_hook(
            lambda _, x, seen=decode: seen.append(len(x[0][0]))
        )
        terms = method.terms(inputs_of(method, network, images, labels, stage))
        assert list(terms) == [name]
        assert decode == [2 * (4 if name == "paths" else 1)]


def test_without_labels_nothing_is_learnt_from_them_or_recorded():
    method, network = FullPath(FullPathOptions()), network_of()
    images, labels = data_of()
    stage = stage_of(FullPathWeights())
    terms = method.terms(inputs_of(method, network, images, torch.full_like(labels, 255), stage))
    assert all(value == 0 for value in terms.values())
    sum(terms.values()).backward()
    assert not any(p.grad.any() for p in network.parameters() if p.grad is not None)
    assert not network.get_buffer(RECORD).any()


def test_running_losses_are_bias_corrected_averages():
    series = torch.tensor([[1.0, 4.0], [3.0, 2.0], [2.0, 8.0]])
    record, decay = torch.zeros(4, 3), 0.75
    for row in series:
        record[2, :2] += 2 * row  # two micro-batches of the same loss
        record[3, :2] += 2
        record = with_newest(record, decay)
    weights = torch.tensor([decay**2, decay, 1.0])
    wanted = (weights[:, None] * series).sum(0) / weights.sum()
    torch.testing.assert_close(running_losses(record)[:2], wanted)
    # one that was never seen stands in the middle, and a step without news changes nothing
    torch.testing.assert_close(running_losses(record)[2], wanted.mean())
    assert torch.equal(with_newest(record, decay), record)


def test_degraded_sets_have_uniform_sizes_and_weighted_members():
    samples, temperature = 40_000, 1.5
    losses = torch.tensor([1.0, 2.0, 0.5, 0.5])
    generator = torch.Generator().manual_seed(0)
    uniform = torch.randint(0, 2**32, (4, samples), generator=generator)
    sizes = torch.randint(1, 5, (samples,), generator=generator)
    kept = fragile_subsets(losses, uniform, sizes, temperature)
    assert torch.equal(kept.sum(0), sizes)
    weights = [math.exp(temperature * x) for x in losses.tolist()]  # their mean is 1
    for size in (1, 2):
        chosen = kept[:, sizes == size].double().mean(1)
        wanted = [0.0] * 4
        for order in itertools.permutations(range(4), size):
            probability, left = 1.0, sum(weights)
            for member in order:
                probability *= weights[member] / left
                left -= weights[member]
            for member in order:
                wanted[member] += probability
        assert chosen.tolist() == pytest.approx(wanted, abs=0.02)  # 4 sigma
    # at the start, and without a preference, all are alike
    for values, preference in ((torch.zeros(4), temperature), (losses, 0.0)):
        kept = fragile_subsets(values, uniform, sizes, preference).double().mean(1)
        assert kept.tolist() == pytest.approx([0.625] * 4, abs=0.01)
    extreme = torch.tensor([[0], [2**32 - 1]])
    assert fragile_subsets(torch.ones(2), extreme, torch.tensor([1]), 1.0).sum() == 1


def test_shares_of_a_step_draw_what_one_process_draws():
    method, stage = FullPath(FullPathOptions(paths_per_step=2)), stage_of()
    seeds = partial(derive_seed, 0, 0, 7)
    whole = method.draw(StepPlan(stage, 4, [0, 1, 2, 3], 8, Share(), seeds))
    for rank, micro in itertools.product(range(2), range(2)):
        share = Share(rank, 2, micro, 2)
        part = method.draw(StepPlan(stage, 4, [0, 1, 2, 3], 2, share, seeds))
        for name in ("uniform", "sizes"):
            assert torch.equal(part[name], whole[name][..., share.rows(2)])
        assert torch.equal(part["paths"], whole["paths"])
        assert part["first"].tolist() == [int(micro == 0)]


def test_micro_batches_draw_from_the_record_of_the_last_step():
    """The record that subsets are drawn from changes at the first micro-batch of a step alone."""
    method, network = FullPath(FullPathOptions()), network_of()
    images, labels = data_of()
    drawn_from, newest = [], []
    for micro in (0, 1, 0):
        share = Share(micro=micro, accumulate=2)
        method.terms(inputs_of(method, network, images, labels, stage_of(), share))
        drawn_from.append(running_losses(network.get_buffer(RECORD)))
        newest.append(network.get_buffer(RECORD)[3].tolist())
    assert torch.equal(drawn_from[0], drawn_from[1])
    assert not drawn_from[0].any()
    assert drawn_from[2].all()
    assert newest == [[1.0] * 4, [2.0] * 4, [1.0] * 4]


def test_the_record_is_averaged_over_processes():
    method, network = FullPath(FullPathOptions()), network_of()
    images, labels = data_of()
    # the other process has no labels: the loss of this one counts alone
    method.terms(inputs_of(method, network, images, labels, stage_of(), mean=lambda x: x / 2))
    halved = with_newest(network.get_buffer(RECORD), 0.9)
    other = network_of()
    method.terms(inputs_of(method, other, images, labels, stage_of()))
    torch.testing.assert_close(
        running_losses(halved), running_losses(with_newest(other.get_buffer(RECORD), 0.9))
    )


def step_of(**options):
    stage = stage_of(FullPathWeights())
    config = TrainConfig(method="full_path", losses=FullPathOptions(**options))
    network = network_of(dtype=torch.float32).train()
    optimizer = build_optimizer(network, config.optim)
    setup = StageSetup(config, "student", 0, stage, steps_per_epoch=4)
    return TrainStep(setup, StageNetworks({"student": network}), optimizer), network


def test_a_skipped_step_leaves_the_record_as_it_was(random_batch):
    train, network = step_of()
    train(0, random_batch())
    train(1, random_batch())
    before = network.get_buffer(RECORD).clone()
    assert before[:, 0].all()
    batch = random_batch()
    ids = batch.sample_ids
    values = train(2, Batch(batch.images * math.nan, batch.labels, batch.modalities, ids))
    assert values["skipped"] == 1
    assert torch.equal(network.get_buffer(RECORD), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": "drop"}, "full_path encodes all.*got modalities drop: set it to full"),
        ({"learns_from": "teacher"}, "got learns_from teacher: set it to nobody"),
        ({"trains": "a+b"}, "trains one network at a time"),
        ({"losses": FullPathWeights(ohem=0, full=0, paths=0, logit=1)}, "give ohem, full or paths"),
    ],
)
def test_stages_without_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FullPath(FullPathOptions()).check("student", stage_of(**changes))


def test_a_run_resumes_with_its_record_to_the_last_bit(config, fit, losses):
    config = replace(
        config, method="full_path", losses=FullPathOptions(paths_per_step=2),
        stages={"student": stage_of(FullPathWeights(logit=1.0))},
    )  # fmt: skip
    path, _ = fit(replace(config, name="whole"))
    broken, finished = fit(replace(config, name="broken", stop_after=3))
    assert not finished
    broken, finished = fit(replace(config, name="broken"))
    assert finished
    assert losses(broken) == losses(path)
    one, two = (load_file(x / "student.safetensors") for x in (path, broken))
    assert one[RECORD].any()
    assert all(torch.equal(one[name], two[name]) for name in one)
