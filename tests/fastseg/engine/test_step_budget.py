"""What a whole step costs, counted without a GPU: waits of the host, launches, bytes, memory.

The step of stage two runs on tensors that have shapes and no values. Byte and memory budgets are
those of MiT-B0 at 1024 x 1024 with B=2, M=4 in bfloat16: the engine's form of the network moves
11.8 GB in the teacher, 12.5 + 15.6 GB in the student and keeps 3.3 GB for the backward pass.
"""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from bench.harness.step_costs import GB, Costs
from bench.step import launches
from bench.step.launches import MODALITIES, blank, costs_of, make_step
from fastseg import kernels
from fastseg.engine import step as step_module
from fastseg.engine.context import RunContext
from fastseg.engine.memory_forecast import LiveBytes, count_memory
from fastseg.kernels.common import switch
from fastseg.methods import robustseg
from fastseg.methods.robustseg import RobustSegWeights
from fastseg.methods.weighted_sum import weighted_sum
from fastseg.models.interface import Segmenter
from fastseg.pipelines import DataConfig

pytestmark = pytest.mark.skipif(
    not switch.INTERPRET, reason="TRITON_INTERPRET=1 was not set before Triton"
)

MOST_LAUNCHES = 444
"""Of a step with all modalities; to be lowered with every change that leaves fewer."""

# launches of the operators of the losses, which tests/kernels/test_step_budget.py counts, too
OWN = {"segmentation_loss", "hybrid_prototype_distillation", "fisher_regulariser"}


@pytest.fixture(scope="module")
def step_costs():
    return costs_of(make_step())


def test_a_step_keeps_its_budget_of_launches(step_costs):
    both, update = step_costs
    total = both.total + update.total
    assert total <= MOST_LAUNCHES, f"\n{launches.table(both, update)}"
    assert total > 0.8 * MOST_LAUNCHES, f"lower the bound: it is {total} now"
    assert {f"fastseg::{name}" for name in OWN} <= both.calls.keys()


def test_every_launch_belongs_to_a_part_of_the_step(step_costs):
    both, update = step_costs
    assert [*both.parts] == [
        "input", "teacher encoder", "teacher fusion", "teacher head",
        "student encoder", "student fusion", "student head", "losses",
        "backward of the losses", "backward of the head", "backward of the encoder",
    ]  # fmt: skip
    assert sum(count for count, _ in both.parts.values()) == both.total
    assert [*update.parts] == ["optimizer"]
    text = launches.table(both, update)
    assert f"| whole step | {both.total + update.total} |" in text
    assert f"| optimizer | {update.total} |" in text


@pytest.mark.parametrize("step", [0, 1])
def test_a_step_that_drops_modalities_launches_no_more(step, step_costs):
    train = make_step("drop")
    assert len(train.present(step, MODALITIES)) < MODALITIES
    both, update = costs_of(train, step=step)
    # which of the teacher's rows are taught is read on the device
    assert both.total + update.total <= MOST_LAUNCHES + 4


@pytest.mark.parametrize("batch", [1, 4])
def test_launches_do_not_depend_on_the_batch(batch, step_costs):
    both, update = costs_of(make_step(), batch=batch)
    assert both.launches == step_costs[0].launches
    assert update.total == step_costs[1].total


def test_no_gradient_is_filled_that_nobody_reads(step_costs):
    filled = {"zeros", "zeros_like", "new_zeros", "zero_", "fill_"}
    assert not filled & step_costs[0].launches.keys()


def test_one_encoder_call_serves_all_modalities_and_samples(step_costs):
    # four patch embeddings, six spatial reductions, eight depthwise convolutions, two networks
    assert step_costs[0].launches["convolution"] == 2 * (4 + 6)
    assert step_costs[0].launches["_depthwise_conv_gelu_fwd_kernel"] == 2 * 8
    assert step_costs[0].launches["_scaled_dot_product_flash_attention_for_cpu"] == 2 * 8


def test_stochastic_depth_and_dropout_are_each_drawn_once(step_costs):
    assert step_costs[0].launches["bernoulli_"] == 2


def test_tokens_change_between_images_and_rows_without_a_copy(step_costs):
    both, _ = step_costs
    assert both.launches["clone"] == 0
    assert both.launches["copy_"] == 0
    # the images, once for both networks
    assert both.launches["_to_copy"] == 1


def test_bytes_of_both_networks():
    train = make_step()
    draws, inputs = train.draw(0, MODALITIES, 2), None
    kept = {}

    def keep(x):
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = blank(2, 1024)
        images = inputs.images.bfloat16()
        with torch.no_grad(), Costs() as teacher:
            train.networks.frozen["teacher"](images)
        with train._arithmetic(), Costs() as student:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                output = train.networks.main(draws.of(images))
            outputs = [output.logits, *output.features]
            torch.autograd.backward(outputs, [torch.empty_like(x) for x in outputs])
    train.optimizer.zero_grad()
    assert teacher.gigabytes <= 12
    assert student.gigabytes <= 29
    assert sum(kept.values()) <= 3.5 * GB


def test_extra_memory_of_the_losses():
    train = make_step()
    draws, frozen = train.draw(0, MODALITIES, 2), train.networks.frozen["teacher"]
    found = {}
    for name in ("ohem", "hpdm", "rrm"):
        weights = {"ohem": 0.0} | {name: 1.0} | ({"logit": 1.0} if name == "ohem" else {})
        with FakeTensorMode(allow_non_fake_inputs=True), kernels.force_kernels():
            inputs = blank(2, 1024)
            with torch.no_grad():
                outputs = [
                    type(target)(target.logits, target.features)
                    for target in (frozen(inputs.images.bfloat16()) for _ in range(2))
                ]
            student = type(outputs[0])(
                outputs[0].logits.requires_grad_(),
                [x.requires_grad_() for x in outputs[0].features],
            )
            with LiveBytes() as live:
                active = RobustSegWeights(**weights).active()
                terms = robustseg.loss_terms(
                    active, train.config.losses, student, outputs[1], inputs.labels, draws
                )
                weighted_sum(terms, active).backward()
        found[name] = live.peak
    assert found["ohem"] <= 0.25 * GB
    assert found["hpdm"] <= 0.15 * GB
    assert found["rrm"] <= 0.6 * GB


def test_peak_memory_of_a_stage(monkeypatch):
    # of the teacher's constants the shapes alone matter: the interpreter would take half a minute
    monkeypatch.setattr(Segmenter, "freeze", kernels.force_reference()(Segmenter.freeze))
    data = DataConfig(dataset="deliver", size=1024, batch_size=2)
    with kernels.force_kernels():
        whole, again = (
            count_memory(
                RunContext(replace(train.config, data=data)),
                replace(train.setup, config=replace(train.config, data=data)),
            )
            for train in (make_step(), make_step(checkpointing=True))
        )
    assert whole.networks + whole.step <= 6 * GB
    assert again.step < 0.5 * whole.step


@pytest.fixture
def on_device(monkeypatch):
    """A step function whose tensors are on another device than the host's."""

    def make(modalities):
        monkeypatch.setattr(switch, "DEVICES", (*switch.DEVICES, "meta"))
        # the optimizer's multi-tensor kernels do not know this device; they are counted above
        nothing = torch.zeros((), device="meta")
        monkeypatch.setattr(step_module, "guarded_step", lambda *_: (nothing, nothing))
        train = make_step(modalities)
        for network in train.networks:
            network.to("meta")
        train.buffers = list(train.module.buffers())
        head = train.networks.frozen["teacher"].decoder
        weights, bias = head._constant
        head._constant = [w.to("meta") for w in weights], bias.to("meta")
        train.device, train.skipped_in_row = torch.device("meta"), nothing.clone()
        return train

    return make


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("modalities", ["full", "drop", "zero"])
def test_the_host_waits_for_nothing(modalities, step, on_device):
    train, inputs = on_device(modalities), blank(1, 64, "meta")
    with kernels.force_kernels(), Costs() as costs:
        values = train(step, inputs)
    assert set(values) == {"ohem", "logit", "hpdm", "rrm", "loss", "grad_norm", "skipped"}
    assert costs.moved == 1  # all that the host tells the device: one small tensor


def reads_a_value(values):
    return float(values["ohem"].detach())


def branches_on_a_value(values):
    return bool(values["ohem"] > 0)


def selects_by_a_mask(values):
    x = values["ohem"].detach().expand(4)
    return x[x > 0]


def indexes_from_the_host(values):
    x = values["ohem"].detach().expand(4)
    return x[[0, 2]]


def copies_from_the_host(values):
    return values["ohem"] + torch.zeros(1).to(values["ohem"].device)


@pytest.mark.parametrize(
    "mutation",
    [
        reads_a_value,
        branches_on_a_value,
        selects_by_a_mask,
        indexes_from_the_host,
        copies_from_the_host,
    ],
)
def test_a_wait_would_be_found(mutation, on_device, monkeypatch):
    train, losses = on_device("drop"), robustseg.loss_terms

    def waiting(*args):
        values = losses(*args)
        mutation(values)
        return values

    monkeypatch.setattr(robustseg, "loss_terms", waiting)
    with kernels.force_kernels(), Costs(), pytest.raises(AssertionError, match="waits"):
        train(0, blank(1, 64, "meta"))


def test_a_lost_fusion_would_be_found(monkeypatch, step_costs):
    monkeypatch.setattr(kernels, "segmentation_loss", kernels.reference.segmentation_loss)
    both, _ = costs_of(make_step())
    assert both.gigabytes > step_costs[0].gigabytes + 2


def test_an_explicit_attention_matrix_would_be_found(monkeypatch):
    def plain(q, k, v):
        return (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(-1) @ v

    monkeypatch.setattr(functional, "scaled_dot_product_attention", plain)
    both, update = costs_of(make_step())
    assert both.total + update.total > MOST_LAUNCHES
