"""All numbers of a step in one small tensor."""

from dataclasses import replace

import pytest
import torch

from fastseg.engine.optim.learning_rate import learning_rate
from fastseg.evaluation.subsets import all_subsets
from fastseg.methods.draws import pack
from fastseg.methods.pairing import draw_pairing
from fastseg.methods.seeds import Share

CPU = torch.device("cpu")
MODALITIES = 4
SUBSETS = [subset.positions for subset in all_subsets("RDEL")]
# no slice takes these out of four
UNEVEN = {(0, 1, 3), (0, 2, 3)}


def draw(present=(0, 1, 2, 3), batch=3, **options):
    pairing = draw_pairing(batch, MODALITIES, present, torch.Generator().manual_seed(0))
    own = {"pairing": pairing}
    return pairing, pack(CPU, own, modalities=MODALITIES, present=present, **options)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**62 + 1, 2**63 - 1])
def test_the_tensor_holds_what_was_drawn(seed):
    pairing, draws = draw((1, 3), kept=[3], seed=seed, rate=6.25e-5)
    assert (draws.present, draws.modalities, draws.seed) == ((1, 3), MODALITIES, seed)
    assert torch.equal(draws["pairing"], pairing)
    assert draws.kept.flatten().tolist() == [0, 0, 0, 1]
    assert draws.learning_rate.dtype == torch.float32
    assert draws.learning_rate.ndim == 0
    assert float(draws.learning_rate) == pytest.approx(6.25e-5, rel=1e-7)
    assert draws.noise_seed == seed


@pytest.mark.parametrize("seed", [1, 2**63 - 1])
def test_replayed_code_reads_the_tensor_alone(seed):
    _, draws = draw((0, 2), seed=5, rate=1.0)
    late = replace(draws, packed=draws.packed.clone(), replayed=True)
    pairing, other = draw((1, 3), kept=[1], seed=seed, rate=0.25)
    late.packed.copy_(other.packed)
    assert late.noise_seed.tolist() == [seed]
    assert float(late.learning_rate) == 0.25
    assert late.kept.flatten().tolist() == [0, 1, 0, 0]
    assert torch.equal(late["pairing"], pairing)
    x = torch.arange(8.0).view(4, 2)
    assert torch.equal(late.of(x), x[[1, 3]])


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("present", SUBSETS)
def test_of_is_indexing_and_a_view_where_it_can_be(present, replayed):
    _, draws = draw(present)
    draws = replace(draws, replayed=replayed)
    x = torch.randn(MODALITIES, 2, 3)
    found = draws.of(x)
    assert torch.equal(found, x[list(present)])
    view = found.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert view == (len(present) == MODALITIES or (not replayed and present not in UNEVEN))


@pytest.mark.parametrize("replayed", [False, True], ids=["once", "replayed"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (0, 1, 3, 4, 2)], ids=["planes", "last"])
@pytest.mark.parametrize("present", [(1, 2), (0, 1, 3)], ids=["even", "uneven"])
def test_of_keeps_the_order_of_memory(present, order, replayed):
    _, draws = draw(present)
    draws = replace(draws, replayed=replayed)
    x = torch.randn(MODALITIES, 2, 5, 6, 7)
    x = x.permute(order).contiguous().permute([order.index(i) for i in range(5)])
    found = draws.of(x)
    assert torch.equal(found, x[list(present)])
    assert found.permute(order).is_contiguous()


def test_everything_is_kept_unless_said_otherwise():
    assert draw((2,))[1].kept.flatten().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("policy", ["full", "drop", "zero"])
def test_shares_are_dealt_the_pairing_of_the_whole_step(tiny_step, policy):
    train, batch, world, accumulate = tiny_step(policy), 2, 3, 2
    whole = train.draw(5, MODALITIES, batch * world * accumulate)
    rows = torch.full_like(whole["pairing"], -1)
    seeds = set()
    for micro in range(accumulate):
        for rank in range(world):
            share = Share(rank, world, micro, accumulate)
            draws = train.draw(5, MODALITIES, batch, share)
            rows[share.rows(batch)] = draws["pairing"]
            seeds.add(draws.seed)
            assert draws.present == whole.present
            assert torch.equal(draws.kept, whole.kept)
    assert torch.equal(rows, whole["pairing"])
    assert len(seeds) == world * accumulate  # the noise is of a share alone
    rate = learning_rate(train.stage, 5, train.setup.steps_per_epoch)
    assert float(whole.learning_rate) == pytest.approx(rate, rel=1e-7)


def test_zeroed_modalities_are_present_and_dropped_ones_are_not(tiny_step):
    dropped, zeroed, full = (tiny_step(policy) for policy in ("drop", "zero", "full"))
    for step in range(20):
        kept = dropped.present(step, MODALITIES)
        assert dropped.draw(step, MODALITIES, 1).present == tuple(kept)
        draws = zeroed.draw(step, MODALITIES, 1)
        assert draws.present == (0, 1, 2, 3)
        assert draws.kept.flatten().nonzero().flatten().tolist() == kept
        assert full.draw(step, MODALITIES, 1).present == (0, 1, 2, 3)
