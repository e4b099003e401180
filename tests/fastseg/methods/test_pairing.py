"""Which student row learns from which teacher modality."""

from collections import Counter
from itertools import permutations

import pytest
import torch

from fastseg.methods.pairing import draw_pairing
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
