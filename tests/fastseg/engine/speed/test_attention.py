"""The choice among the attention kernels, with a clock that is given."""

import json
import math

import pytest
import torch
from torch.nn.attention import SDPBackend

from fastseg.distributed.ranks import Ranks
from fastseg.engine.speed import attention
from fastseg.engine.speed.attention import BACKENDS, choose_attention, settle_attention
from fastseg.models import SegFormer
from fastseg.models.backbones.attention import OWN

SIDE, IMAGES = 64, 2


@pytest.fixture
def network():
    return SegFormer("mit_nano", 3, 8)


@pytest.fixture
def tried(monkeypatch):
    """The kernels that were timed; on a CPU none of them could really be."""
    backends = []

    def fake(queries, keys_values, backend):
        backends.append(backend)
        if backend is SDPBackend.FLASH_ATTENTION:
            raise RuntimeError("No available kernel. Aborting execution.")
        return queries + keys_values.mean()

    monkeypatch.setattr(attention, "token_attention", fake)
    return backends


def clock_of(*times):
    """Runs what it is given, and says that it took the next of these times."""
    left = iter(times)

    def clock(call):
        call()
        return next(left)

    return clock


def backends_of(network):
    return [{block.attn.backend for block in blocks} for _, blocks, _ in network.encoder.levels()]


def test_shapes_are_those_of_the_network(network, monkeypatch):
    seen = []
    for _, blocks, _ in network.encoder.levels():
        blocks[0].attn.q.register_forward_hook(lambda _, args, out: seen.append(list(out.shape)))
    network(torch.zeros(1, IMAGES, 3, SIDE, SIDE))
    levels = network.attention_levels(IMAGES, SIDE)
    for level, (n, h, w, c) in zip(levels, seen, strict=True):
        queries, keys = level.queries, level.keys
        assert queries[0] == n
        assert queries[2] == h * w
        assert queries[1] * queries[3] == c
        assert keys == 4  # 64 / 32, squared
    first = network.attention_levels(8, 1024)[0]
    assert (first.queries, first.keys) == ((8, 1, 65536, 16), 1024)


def test_the_fastest_kernel_of_each_level_is_set_on_all_networks(network, tried):
    other = SegFormer("mit_nano", 3, 8)
    # flash never serves: two times per level
    clock = clock_of(1, 2, 2, 1, 0.5, 0.25, 3, 4)
    said = choose_attention([network, other], IMAGES, SIDE, torch.float32, clock)
    cudnn, efficient = BACKENDS["cudnn"], BACKENDS["efficient"]
    assert backends_of(network) == [{cudnn}, {efficient}, {efficient}, {cudnn}]
    assert backends_of(other) == backends_of(network)
    assert said == (
        "levels 1 to 4: cudnn 1.000 ms, efficient 1.000 ms, efficient 0.250 ms, cudnn 3.000 ms"
    )
    # ours serve no CPU
    assert set(tried) == set(BACKENDS.values()) - {OWN}


def test_our_kernels_are_taken_where_they_are_the_fastest(network, tried, monkeypatch):
    monkeypatch.setattr(attention, "serves", lambda queries: queries.shape[3] == 16)
    said = choose_attention([network], IMAGES, SIDE, torch.float32, clock_of(*[3, 2, 1] * 4))
    assert backends_of(network) == [{OWN}] * 4
    assert said == "levels 1 to 4: " + ", ".join(["fastseg 1.000 ms"] * 4)


def test_a_kernel_that_does_not_serve_takes_forever(tried):
    q, kv = torch.randn(1, 4, 1, 16).requires_grad_(), torch.randn(1, 4, 2, 1, 16).requires_grad_()
    flash, cudnn = BACKENDS["flash"], BACKENDS["cudnn"]
    assert math.isinf(attention._ms(flash, q, kv, clock_of(1)))
    assert attention._ms(cudnn, q, kv, clock_of(1)) == 1
    # the definition is none of the kernels
    assert math.isinf(attention._ms(OWN, q, kv, clock_of(1)))


def test_without_any_kernel_the_choice_is_left_to_torch(network, monkeypatch):
    def refuse(*_):
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(attention, "token_attention", refuse)
    said = choose_attention([network], IMAGES, SIDE, torch.float32, clock_of())
    assert said == "levels 1 to 4: " + ", ".join(["torch's choice"] * 4)
    assert backends_of(network) == [{None}] * 4


class Slower:
    """Two processes: the other one needs ten times as long with cuDNN."""

    def __init__(self):
        self.asked = []

    def reduce(self, values, how):
        self.asked.append((list(values), how))
        return [max(ms, 10.0) if i == 0 else ms for i, ms in enumerate(values)]


def test_processes_take_what_is_fastest_for_the_slowest(network, tried):
    ranks = Slower()
    clock = clock_of(*[1, 2] * 4)
    choose_attention([network], IMAGES, SIDE, torch.float32, clock, ranks)
    assert backends_of(network) == [{BACKENDS["efficient"]}] * 4
    assert ranks.asked == [([1, math.inf, 2, math.inf], "max")] * 4


@pytest.fixture
def measured(monkeypatch):
    """Networks whose kernels were measured, instead of a measurement."""
    calls = []

    def choose(networks, *_, ranks):
        calls.append(ranks)
        for network in networks:
            levels = network.attention_levels(IMAGES, SIDE)
            attention._set_kernels(levels, ["cudnn", None, "fastseg", "efficient"])
        return "measured"

    monkeypatch.setattr(attention, "choose_attention", choose)
    return calls


def test_a_resumed_run_takes_the_kernels_it_began_with(network, measured, monkeypatch):
    monkeypatch.setattr(attention, "runs_on", lambda _: True)
    alone = Ranks(torch.device("cpu"))
    record, says = settle_attention([network], IMAGES, SIDE, torch.float32, None, alone)
    assert (says, measured) == ("measured", [alone])
    # as the training state keeps it
    record = json.loads(json.dumps(record))
    resumed = [SegFormer("mit_nano", 3, 8) for _ in range(2)]
    again, says = settle_attention(resumed, IMAGES, SIDE, torch.float32, record, alone)
    assert len(measured) == 1
    assert again == record
    assert says == "levels 1 to 4: cudnn, torch's choice, fastseg, efficient, as this run began"
    assert [backends_of(each) for each in resumed] == [backends_of(network)] * 2


@pytest.mark.parametrize("change", ["torch", "device", "images", "side", "dtype"])
def test_what_was_measured_elsewhere_is_measured_again(network, measured, monkeypatch, change):
    alone = Ranks(torch.device("cpu"))
    setting = {"images": IMAGES, "side": SIDE, "dtype": torch.float32}
    record, _ = settle_attention([network], *setting.values(), None, alone)
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "3.0")
    elif change == "device":
        record["where"] = record["where"].replace("cpu", "Another GPU")
    else:
        setting[change] = torch.bfloat16 if change == "dtype" else 2 * setting[change]
    again, says = settle_attention([network], *setting.values(), record, alone)
    assert (says, len(measured)) == ("measured", 2)
    assert again["where"] != record["where"]


@pytest.mark.parametrize("there", [True, False])
def test_kernels_that_no_longer_serve_are_measured_again(network, measured, monkeypatch, there):
    alone, setting = Ranks(torch.device("cpu")), (IMAGES, SIDE, torch.float32)
    record, _ = settle_attention([network], *setting, None, alone)
    monkeypatch.setattr(attention, "runs_on", lambda _: there)
    settle_attention([network], *setting, record, alone)
    assert len(measured) == (1 if there else 2)
    # of torch's kernels alone, as in states of earlier versions
    before = record | {"levels": ["cudnn", None, "flash", "efficient"]}
    assert settle_attention([network], *setting, before, alone)[0] == before
