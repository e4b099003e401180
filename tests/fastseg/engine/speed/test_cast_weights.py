"""Copies of the weights in a short dtype, against autocast and against full precision."""

from contextlib import nullcontext

import pytest
import torch

from fastseg.engine.speed.calls import calls_of
from fastseg.engine.speed.cast_weights import ShortWeights
from fastseg.models.casting import cast_together
from fastseg.models.precision import autocast

SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16}
CPU = torch.device("cpu")
LOSS_SCALE = 2.0**6


def test_copies_and_gradients_have_their_dtypes():
    torch.manual_seed(0)
    tensors = [torch.randn(shape, requires_grad=True) for shape in [(3,), (2, 4), (), (5, 1, 2)]]
    frozen = torch.randn(3)
    copies = cast_together([*tensors, frozen], torch.bfloat16)
    for copy, x in zip(copies, [*tensors, frozen], strict=True):
        assert torch.equal(copy, x.to(torch.bfloat16))
    copies[0].sum().mul(3).add(copies[1].square().sum()).backward()
    assert tensors[0].grad.dtype == tensors[1].grad.dtype == torch.float32
    assert torch.equal(tensors[0].grad, torch.full((3,), 3.0))
    assert torch.equal(tensors[1].grad, (2 * copies[1].detach()).float())
    assert tensors[2].grad is None
    assert tensors[3].grad is None


def test_tensors_that_have_the_dtype_stay_what_they_are():
    tensors = [torch.zeros(2), torch.zeros(3)]
    assert cast_together(tensors, torch.float32) is tensors


def parameters_of(network):
    return {name: id(p) for name, p in network.named_parameters()}


def test_the_network_has_copies_inside_the_block_alone(tiny_step):
    network = tiny_step().networks.main
    before = parameters_of(network)
    weights = ShortWeights([network], torch.bfloat16)
    with weights.in_use():
        kept = {name for name, p in network.named_parameters() if p.dtype == torch.float32}
        assert all(name.startswith("decoder.linear_") for name in kept)
        assert not any("linear_pred" in name for name in kept)
        assert network.encoder.patch_embed1.proj.weight.dtype == torch.bfloat16
    assert parameters_of(network) == before


def test_an_error_gives_the_parameters_back(tiny_step, random_batch):
    train = tiny_step(precision="bf16")
    before = parameters_of(train.networks.main)
    batch = random_batch()
    with pytest.raises(ValueError, match="expected images"):
        train(0, type(batch)(batch.images[0], batch.labels, batch.modalities, batch.sample_ids))
    assert parameters_of(train.networks.main) == before
    assert all(p.is_leaf and p.dtype == torch.float32 for p in train.networks.main.parameters())
    assert train(0, batch)["loss"].isfinite()


def gradients(train, batch, arithmetic, cast=None):
    """The loss and all gradients, of the loss times a constant that keeps fp16 in range."""
    dtype = next(train.networks.frozen["teacher"].encoder.parameters()).dtype
    torch.manual_seed(3)
    with arithmetic:
        with cast or nullcontext():
            output = train.networks.main(batch.images.to(dtype if cast is None else torch.float32))
        loss = torch.nn.functional.cross_entropy(output.logits.float(), batch.labels[:, ::4, ::4])
        (LOSS_SCALE * loss).backward()
    grads = [p.grad / LOSS_SCALE for p in train.networks.main.parameters()]
    assert all(g.dtype == torch.float32 for g in grads)
    assert all(p.is_leaf for p in train.networks.main.parameters())
    train.optimizer.zero_grad()
    return loss.detach(), grads


def distance(left, right):
    total = sum((a - b).double().square().sum() for a, b in zip(left, right, strict=True))
    return float(total.sqrt() / sum(b.double().square().sum() for b in right).sqrt())


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_less_accurate_than_autocast(tiny_step, random_batch, name, checkpointing):
    batch = random_batch()
    exact_loss, exact = gradients(tiny_step(dropout=0.0), batch, nullcontext())
    train = tiny_step(dropout=0.0, precision=name)
    train.networks.main.encoder.checkpointing = checkpointing
    short_loss, short = gradients(train, batch, train._short.in_use())
    cast_loss, cast = gradients(train, batch, nullcontext(), autocast(CPU, name))
    assert 0 < distance(short, exact) <= 1.5 * distance(cast, exact)
    rounding = torch.finfo(SHORT[name]).eps
    errors = [abs(float(loss - exact_loss)) for loss in (short_loss, cast_loss)]
    assert errors[0] <= 1.5 * errors[1] + rounding * float(exact_loss) / 4


def test_recomputation_changes_no_bit(tiny_step, random_batch):
    batch, found = random_batch(), []
    for checkpointing in (False, True):
        train = tiny_step(precision="bf16")
        train.networks.main.encoder.checkpointing = checkpointing
        found.append(gradients(train, batch, train._short.in_use()))
    (loss, grads), (again, repeated) = found
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, repeated, strict=True))


@pytest.mark.parametrize("name", SHORT)
def test_a_whole_step_is_close_to_full_precision(tiny_step, random_batch, name):
    """Every term and the gradient norm, over a few steps; also no farther than with autocast."""
    steps, batch = range(3), random_batch()

    def run(precision, copies=True):
        train = tiny_step(precision=precision, dropout=0.0)
        if not copies:
            train._short, parts = None, (train.networks, train.parallel.forwards)
            train._calls = calls_of(*parts, train.device, train.config.precision)
        if train.scale is not None:
            train.scale.scale.fill_(4.0)
        rows = [{k: float(v) for k, v in train(step, batch).items()} for step in steps]
        assert not any(row["skipped"] for row in rows)
        return rows

    exact, short, cast = run("fp32"), run(name), run(name, copies=False)
    rounding = torch.finfo(SHORT[name]).eps
    for term in ("ohem", "logit", "hpdm", "loss", "grad_norm"):
        errors = [
            max(abs(row[term] - wanted[term]) for row, wanted in zip(rows, exact, strict=True))
            for rows in (short, cast)
        ]
        size = max(row[term] for row in exact)
        assert errors[0] <= 1.5 * errors[1] + rounding * size
    assert short != exact


def test_the_loss_scale_of_fp16_survives_an_overflow(tiny_step, random_batch):
    train, batch = tiny_step(precision="fp16"), random_batch()
    train.scale.scale.fill_(2.0**40)
    weights = {name: p.clone() for name, p in train.networks.main.state_dict().items()}
    values = train(0, batch)
    assert float(values["skipped"]) == 1
    assert float(train.scale.scale) == 2.0**39
    now = train.networks.main.state_dict()
    assert all(torch.equal(weights[name], now[name]) for name in weights)
    train.scale.scale.fill_(4.0)
    assert float(train(1, batch)["skipped"]) == 0
    assert any(
        not torch.equal(weights[name], p) for name, p in train.networks.main.state_dict().items()
    )
