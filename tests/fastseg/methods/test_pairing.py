"""Which student row learns from which teacher modality."""

from collections import Counter
from itertools import permutations

import pytest
import torch

from fastseg.methods.base import StepPlan
from fastseg.methods.pairing import draw_pairing, pair_kept, pairing_of_step
from fastseg.methods.seeds import Share, draw_modalities_of_samples
from fastseg.methods.stage import Stage
from tests.support.optional_hypothesis import given, settings, st


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(0, 5),
    num_teacher=st.integers(1, 7),
    data=st.data(),
)
def test_every_present_modality_teaches_in_every_sample(seed, batch, num_teacher, data):
    modalities = st.sampled_from(range(num_teacher))
    present = data.draw(st.lists(modalities, min_size=1, max_size=num_teacher, unique=True))
    pairing = draw_pairing(batch, num_teacher, present, generator(seed))
    assert pairing.shape == (batch, num_teacher)
    assert pairing.dtype == torch.int64
    for row in pairing.tolist():
        assert set(row) == set(range(len(present)))  # no modality is left out, none is invented


def test_all_present_is_a_uniform_permutation_of_each_sample():
    count = 6000
    drawn = Counter(map(tuple, draw_pairing(count, 3, range(3), generator()).tolist()))
    assert set(drawn) == set(permutations(range(3)))
    for number in drawn.values():
        assert number == pytest.approx(count / 6, rel=0.15)


def test_dropped_modalities_are_filled_alike_in_every_position():
    # two of four present: each position holds each of the two equally often
    pairing = draw_pairing(8000, 4, [3, 1], generator())
    assert torch.allclose(pairing.double().mean(0), torch.full((4,), 0.5).double(), atol=0.03)
    # and every map that uses both is drawn
    assert len(set(map(tuple, pairing.tolist()))) == 2**4 - 2


def test_the_generator_decides_everything():
    torch.manual_seed(1)
    first = draw_pairing(16, 4, [0, 2], generator(7))
    torch.manual_seed(2)
    assert torch.equal(first, draw_pairing(16, 4, [0, 2], generator(7)))
    assert not torch.equal(first, draw_pairing(16, 4, [0, 2], generator(8)))


@pytest.mark.parametrize("present", [[], [0, 0], [4], [-1, 2]])
def test_wrong_modalities_are_named(present):
    with pytest.raises(ValueError, match=r"modalities 0 to 3.*got \["):
        draw_pairing(2, 4, present, generator())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), batch=st.integers(0, 5), modalities=st.integers(1, 7))
def test_what_is_left_of_a_sample_teaches_in_it_and_nothing_else(seed, batch, modalities):
    kept = draw_modalities_of_samples(modalities, batch, seed)
    uniform = torch.rand((batch, modalities, 2), generator=generator(seed))
    pairing = pair_kept(kept, uniform)
    assert pairing.shape == kept.shape
    assert pairing.dtype == torch.int64
    for row, marks in zip(pairing.tolist(), kept.tolist(), strict=True):
        assert set(row) == {m for m, mark in enumerate(marks) if mark}


def test_samples_of_their_own_are_paired_as_alike_as_those_that_share_a_subset():
    kept = torch.tensor([[0, 1, 0, 1]]).expand(8000, -1)
    pairing = pair_kept(kept, torch.rand((8000, 4, 2), generator=generator()))
    drawn = Counter(map(tuple, pairing.tolist()))
    assert len(drawn) == 2**4 - 2
    assert torch.allclose(
        (pairing == 1).double().mean(0), torch.full((4,), 0.5).double(), atol=0.03
    )
    shared = Counter(map(tuple, (2 * draw_pairing(8000, 4, [1, 3], generator()) + 1).tolist()))
    for pairs, number in drawn.items():
        assert number == pytest.approx(shared[pairs], rel=0.2)


def test_a_share_is_paired_as_its_samples_of_the_whole_step():
    def plan(share, batch):
        whole = draw_modalities_of_samples(4, 6, seed=5)
        kept = whole[share.rows(batch)].T.contiguous()
        stage = Stage(modalities="drop", modalities_per="sample")
        return StepPlan(stage, 4, [0, 1, 2, 3], batch, share, lambda purpose: 9, kept)

    whole = pairing_of_step(plan(Share(), 6))
    for rank in range(2):
        share = Share(rank=rank, world=2)
        assert torch.equal(pairing_of_step(plan(share, 3)), whole[share.rows(3)])
