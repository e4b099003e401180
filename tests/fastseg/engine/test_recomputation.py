"""Blocks that are computed again in the backward pass give the same numbers from less memory."""

from contextlib import nullcontext

import pytest
import torch

from fastseg.config.sections import ModelConfig
from fastseg.models.precision import autocast


def both_passes(train, images, seed, precision="fp32"):
    """Loss, gradients, and the bytes that are kept between the passes."""
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    cast = autocast(images.device, precision) if precision != "fp32" else nullcontext()
    torch.manual_seed(seed)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), cast:
        output = train.networks.main(images)
    loss = output.logits.float().square().mean() + output.features[0].float().mean()
    loss.backward()
    grads = [p.grad.clone() for p in train.networks.main.parameters()]
    train.optimizer.zero_grad()
    return loss.detach(), grads, sum(kept.values()), torch.get_rng_state()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_bits_from_less_memory(tiny_step, random_batch, precision):
    """Dropout and stochastic depth included; with bf16 under autocast."""
    train, images = tiny_step(dropout=0.5), random_batch().images
    loss, grads, memory, random = both_passes(train, images, 1, precision)
    train.networks.main.encoder.checkpointing = True
    again, repeated, less, later = both_passes(train, images, 1, precision)
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, repeated, strict=True))
    assert torch.equal(random, later)
    assert less < 0.5 * memory
    other, *_ = both_passes(train, images, 2, precision)
    assert not torch.equal(loss, other)  # so something was dropped


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_does_not_depend_on_it(tiny_step, random_batch, precision):
    runs = []
    for checkpointing in (False, True):
        train = tiny_step("drop", precision=precision, dropout=0.5)
        train.networks.main.encoder.checkpointing = checkpointing
        rows = [
            {k: float(v) for k, v in train(s, random_batch(s, 1, 32)).items()} for s in range(4)
        ]
        runs.append((rows, train.networks.main.state_dict()))
    (rows, state), (again, other) = runs
    assert rows == again
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_the_option_reaches_the_network_that_learns_alone(tiny_step):
    train = tiny_step(model=ModelConfig(checkpointing=True))
    assert train.networks.main.encoder.checkpointing
    assert not train.networks.frozen["teacher"].encoder.checkpointing
    assert not tiny_step().networks.main.encoder.checkpointing


def test_an_evaluation_keeps_nothing(tiny_step, random_batch):
    train = tiny_step()
    train.networks.main.encoder.checkpointing = True
    images = random_batch(side=32).images
    with torch.no_grad():
        assert not train.networks.main.eval()(images).logits.requires_grad
