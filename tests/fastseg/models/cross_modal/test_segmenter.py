"""CMNeXt and CMX as models of the house: subsets, gradients, dtypes, compilation, training."""

from dataclasses import replace

import pytest
import torch

from fastseg.errors import ConfigError
from fastseg.methods.baseline import BaselineWeights, OhemOptions
from fastseg.methods.robustseg import RobustSegWeights
from fastseg.models import build_segmenter

NAMES = ["img", "depth", "event", "lidar"]
KINDS = {"cmnext_nano": NAMES, "cmx_nano": NAMES[:2]}


def build(kind="cmnext_nano", names=None, **options):
    torch.manual_seed(0)
    options = {"embed_dim": 16, "dropout": 0.0, "drop_path": 0.0} | options
    return build_segmenter(kind, 5, names or KINDS[kind], **options)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize(
    ("name", "modalities", "millions"),
    [
        *(("cmnext_b2", m, x) for m, x in enumerate((25.785, 58.694, 58.719, 58.732), start=1)),
        *(("cmnext_b4", m, x) for m, x in ((1, 62.43), (4, 116.61))),
        *(("cmnext_b5", m, x) for m, x in ((1, 83.03), (4, 149.02))),
    ],
)
def test_published_numbers_of_parameters(name, modalities, millions):
    with torch.device("meta"):
        network = build_segmenter(name, 25, NAMES[:modalities])
    count = sum(x.numel() for x in network.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.006)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"hub_selection": "mean"}, {"hub": "event"}])
def test_a_sample_of_a_batch_may_have_its_own_subset(options):
    network, images = build(**options).eval(), torch.randn(4, 4, 3, 64, 32)
    marks = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1], [1, 0, 1, 1]]).bool()
    marks[0, 1], marks[2, 1] = True, False  # one sample has the first sensor alone
    seen = images.masked_fill(~marks[..., None, None, None], torch.nan)
    together = network.logits_of_marks(seen, marks)
    for b in range(4):
        present = marks[:, b].nonzero().flatten().tolist()
        alone = network(images[present][:, b : b + 1], present).logits
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-5)
    fused = torch.stack([marks, torch.ones_like(marks)])
    both = network(images, fused=fused).logits
    torch.testing.assert_close(both[:4], together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[4:], network(images).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_subset_has_an_answer_of_its_own(kind):
    network = build(kind).eval()
    count = len(network.modalities)
    images = torch.randn(count, 2, 3, 64, 64)
    subsets = [[m for m in range(count) if i >> m & 1] for i in range(1, 2**count)]
    found = list(network.logits_of_subsets(images, subsets))
    assert all(x.shape == (2, 5, 16, 16) and x.isfinite().all() for x in found)
    assert all(not torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])
    # without the hub modality: as with an image of zeros, and the others are selected as ever
    blank = images.clone()
    blank[0] = 0
    torch.testing.assert_close(found[-2], network(blank).logits)


@pytest.mark.parametrize("blank", [(), (0,), (1, 2, 3), (0, 1, 2, 3)])
def test_every_parameter_has_a_finite_gradient(kind, blank):
    network = build(kind)
    images = torch.randn(len(network.modalities), 2, 3, 64, 64)
    for m in blank:
        images[m : m + 1] = 0
    logits = network(images).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    wrong = [n for n, p in network.named_parameters() if p.grad is None or p.grad.isnan().any()]
    assert wrong == []
    norm = torch.stack([p.grad.norm() for p in network.parameters()]).norm()
    assert norm.isfinite()
    if not blank:
        assert all(p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_dtypes(kind, dtype):
    network = build(kind).eval()
    images = 4 * torch.randn(len(network.modalities), 2, 3, 128, 128)
    with torch.no_grad():
        exact = network(images).logits
    with torch.autocast("cpu", dtype):
        logits = network(images).logits
    logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    network.freeze(dtype)
    frozen = network(images.to(dtype)).logits
    assert frozen.dtype == dtype
    size = exact.square().mean().sqrt()
    for found in (logits, frozen):
        assert (found - exact).square().mean().sqrt() < 0.05 * size


@torch.no_grad()
def test_a_frozen_network_gives_the_same(kind):
    network = build(kind).eval()
    images = torch.randn(len(network.modalities), 2, 3, 64, 64)
    before = network(images).logits
    torch.testing.assert_close(network.freeze()(images).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", ["block", "rectify", "fuse"])
def test_compiled_parts_give_the_same(part):
    network = build()
    module = {
        "block": network.auxiliary.blocks[0][0],
        "rectify": network.rectify[0],
        "fuse": network.fuse[0],
    }[part]
    assert module in network.regions()
    tokens = [torch.randn(2, 8, 12, 16, requires_grad=True) for _ in range(2)]
    inputs = (tokens[0], None, torch.ones(2, 1, 1, 1)) if part == "block" else tokens
    results = []
    for compiled in (False, True):
        if compiled:
            module.compile(fullgraph=True, dynamic=False, backend="aot_eager")
        module.zero_grad()
        found = module(*inputs)
        found = found if isinstance(found, tuple) else (found,)
        sum(x.square().mean() for x in found).backward()
        results.append([*found, *(p.grad.clone() for p in module.parameters())])
    torch._dynamo.reset()
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


def test_parts_with_statistics_of_several_processes_are_not_compiled():
    network = build()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.group = None
    left = network.regions()
    assert {network.rectify[0], network.decoder} <= set(left)
    assert not {*network.fuse, *network.auxiliary.blocks[0]} & set(left)


def test_computing_blocks_again_changes_nothing(kind):
    results = []
    for on in (False, True):
        network = build(kind, drop_path=0.2)
        network.recompute(on)
        torch.manual_seed(1)
        images = torch.randn(len(network.modalities), 2, 3, 64, 64)
        network(images).logits.square().mean().backward()
        results.append([*(p.grad for p in network.parameters()), *network.buffers()])
    torch.testing.assert_close(*results)


def test_layers_and_units_hold_every_parameter_once(kind):
    network = build(kind)
    held = [p for layer in network.layers() for module in layer for p in module.parameters()]
    assert len(held) == len({id(p) for p in held}) == len(list(network.parameters()))
    units = [p for unit in network.units() for p in unit.parameters()]
    assert len(units) == len({id(p) for p in units})
    own = [len(network.modality_parameters(name)) for name in network.modalities]
    assert own == ([0, 24, 24, 24] if kind == "cmnext_nano" else [0, 0])


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match=r"CMX takes two modalities.*--data.modalities"):
        build("cmx_nano", NAMES)
    with pytest.raises(ConfigError, match=r"hub 'radar' is none.*--model.hub"):
        build(hub="radar")
    with pytest.raises(ConfigError, match=r"cmx_nano has no --model.scramble"):
        build("cmx_nano", scramble=True)
    with pytest.raises(ConfigError, match=r"unknown keyword 'hubs': did you mean 'hub'"):
        build(hubs=1)


def test_both_stages_of_logit_distillation_train(config, fit):
    stages = {name: replace(stage, steps=1) for name, stage in config.stages.items()}
    stages["student"] = replace(stages["student"], losses=BaselineWeights(logit=50))
    stages["teacher"] = replace(stages["teacher"], losses=BaselineWeights())
    stages["student"] = replace(stages["student"], modalities_per="sample")
    model = replace(config.model, backbone="cmnext_nano", embed_dim=16)
    data = replace(config.data, modalities=("img", "depth", "event"))
    path, finished = fit(
        replace(
            config, model=model, stages=stages, data=data, method="baseline", losses=OhemOptions()
        )
    )
    assert finished
    assert sorted(file.stem for file in path.glob("*.safetensors")) == ["student", "teacher"]


def test_a_method_that_compares_features_is_refused_at_the_start(config, fit):
    model = replace(config.model, backbone="cmnext_nano", embed_dim=16)
    losses = RobustSegWeights(ohem=1, logit=50, hpdm=1, rrm=0)
    stages = config.stages | {"student": replace(config.stages["student"], losses=losses)}
    with pytest.raises(ConfigError, match=r"^hpdm of --method robustseg need.*baseline.*full_path"):
        fit(replace(config, model=model, stages=stages))
