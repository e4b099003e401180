from dataclasses import replace

import pytest
import torch

from fastseg import kernels
from fastseg.engine.context import RunContext
from fastseg.evaluation.protocols.modality_subsets import evaluate_subsets
from fastseg.evaluation.subsets import run_subsets
from fastseg.models import in_parts
from fastseg.pipelines import Batch, build_loader


@pytest.fixture
def context(config):
    return RunContext(config)


def random_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 2, 3, 64, 64, generator=generator)
    labels = torch.randint(0, 25, (2, 64, 64), generator=generator)
    return Batch(images, labels, ("img", "depth", "event", "lidar"), ("a", "b"))


@torch.no_grad()
def predict(network, images):
    logits = network(images).logits
    full = torch.nn.functional.interpolate(logits, size=(64, 64), mode="bilinear")
    return full.argmax(1)


def predictions(context, network, images, missing):
    positions = [subset.positions for subset in run_subsets(context)]
    logits = network.logits_of_subsets(images, positions, missing)
    for subset, one in zip(run_subsets(context), logits, strict=True):
        yield subset, kernels.upsample_argmax(one, images.shape[-2:])


@torch.no_grad()
def test_every_subset_equals_a_forward_pass_of_its_own(context):
    network, batch = context.new_network(0).eval(), random_batch()
    for subset, found in predictions(context, network, batch.images, "drop"):
        wanted = predict(network, batch.images[list(subset.positions)])
        assert (found == wanted).float().mean() > 0.999, subset.name


@torch.no_grad()
def test_zeroing_equals_zeroed_images(context):
    network, batch = context.new_network(0).eval(), random_batch()
    for subset, found in predictions(context, network, batch.images, "zero"):
        images = torch.zeros_like(batch.images)
        images[list(subset.positions)] = batch.images[list(subset.positions)]
        assert (found == predict(network, images)).float().mean() > 0.999


def test_both_conventions_agree_on_the_full_set_only(context, config):
    network, batch = context.new_network(0), random_batch()
    dropped = evaluate_subsets(context, network, [batch])
    evaluation = replace(config.evaluation, missing="zero")
    zeroed = evaluate_subsets(RunContext(replace(config, evaluation=evaluation)), network, [batch])
    assert torch.equal(dropped["RDEL"].counts, zeroed["RDEL"].counts)
    assert not torch.equal(dropped["E"].counts, zeroed["E"].counts)
    assert list(dropped) == [subset.name for subset in run_subsets(context)]


def test_every_pixel_of_every_sample_is_counted_once(context, config):
    loader = build_loader(config.data, train=False)
    labelled = sum(int((batch.labels != 255).sum()) for batch in loader.batches())
    assert sum(batch.labels.shape[0] for batch in loader.batches()) == loader.num_samples == 5
    matrices = evaluate_subsets(context, context.new_network(0), loader.batches())
    assert all(int(matrix.counts.sum()) == labelled for matrix in matrices.values())


def test_batch_size_does_not_change_the_scores(context, config):
    network = context.new_network(0)
    small = build_loader(replace(config.data, eval_batch_size=1), train=False)
    large = build_loader(config.data, train=False)
    left = evaluate_subsets(context, network, small.batches())
    right = evaluate_subsets(context, network, large.batches())
    for name in left:
        moved = (left[name].counts - right[name].counts).abs().sum()
        assert moved <= 2e-4 * left[name].counts.sum(), name  # ties decided by rounding


@torch.no_grad()
@pytest.mark.parametrize("encoders", ["shared", "per_modality"])
@pytest.mark.parametrize("missing", ["drop", "zero"])
def test_maps_of_means_are_means_of_maps(config, monkeypatch, encoders, missing):
    """To rounding, with statistics of a training, frozen or not."""
    context = RunContext(replace(config, model=replace(config.model, encoders=encoders)))
    network, batch = context.new_network(0).eval(), random_batch()
    norm = network.decoder.linear_fuse["bn"]
    generator = torch.Generator().manual_seed(1)
    for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        values.copy_(torch.rand(values.shape, generator=generator) + 0.1)
    positions = [subset.positions for subset in run_subsets(context)]
    fast = list(network.logits_of_subsets(batch.images, positions, missing))
    monkeypatch.setattr(in_parts, "maps_are_cheap", lambda *_: False)
    plain = list(network.logits_of_subsets(batch.images, positions, missing))
    monkeypatch.undo()
    frozen = list(network.freeze().logits_of_subsets(batch.images, positions, missing))
    for one, other, constant in zip(fast, plain, frozen, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 2e-6 * other.abs().max()
        assert torch.equal(one, constant)
