from __future__ import annotations

import numpy as np
import pytest

from fastseg.pipelines import DataError
from fastseg.pipelines.loaders.order import EvalOrder, TrainOrder
from fastseg.pipelines.tools.keyed_random import sample_uniforms
from tests.support.optional_hypothesis import given, settings, st

SHAPES = [(25, 4, 1), (25, 4, 2), (24, 4, 3), (7, 1, 3)]  # samples, batch, processes
FIRST_ORDER = (0, 3, 7, 5, 1, 2, 6, 4)
FIRST_UNIFORMS = [0.6073659924129827, 0.5037305356300301, 0.429156247209297]


@pytest.mark.parametrize(("n", "batch", "world"), SHAPES)
def test_an_epoch_takes_each_sample_at_most_once(n: int, batch: int, world: int) -> None:
    orders = [TrainOrder(n, batch, 5, rank, world) for rank in range(world)]
    steps = orders[0].steps_per_epoch
    assert steps == n // (batch * world)
    for epoch in range(3):
        seen = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            for order in orders:
                got_epoch, indices = order.at(step)
                assert (got_epoch, len(indices)) == (epoch, batch)
                seen += indices
        assert len(seen) == len(set(seen)) == steps * batch * world
        assert set(seen) <= set(range(n))


def test_global_batches_do_not_depend_on_the_number_of_processes() -> None:
    one = TrainOrder(50, 12, seed=3)
    for world in (2, 3, 4):
        ranks = [TrainOrder(50, 12 // world, 3, rank, world) for rank in range(world)]
        for step in range(9):
            together = [index for rank in ranks for index in rank.at(step)[1]]
            assert sorted(together) == sorted(one.at(step)[1])


def test_order_changes_with_seed_and_epoch_only() -> None:
    order = TrainOrder(100, 100, seed=1)
    assert order.at(0) == TrainOrder(100, 100, seed=1).at(0)
    assert order.at(0)[1] != order.at(1)[1]
    assert order.at(0)[1] != TrainOrder(100, 100, seed=2).at(0)[1]


def test_every_sample_gets_its_turn_over_the_epochs() -> None:
    order = TrainOrder(10, 4, seed=0)  # two of ten are left out each epoch
    seen = {index for step in range(2 * 12) for index in order.at(step)[1]}
    assert seen == set(range(10))


def test_first_numbers_are_frozen() -> None:
    # a change here changes every published run
    assert TrainOrder(8, 8, seed=0).at(0)[1] == FIRST_ORDER
    np.testing.assert_array_equal(sample_uniforms(0, 0, 0, 3), FIRST_UNIFORMS)


@pytest.mark.parametrize(("n", "world", "remedy"), [(5, 2, "at most 2"), (1, 2, "at most 1 proc")])
def test_too_few_samples(n: int, world: int, remedy: str) -> None:
    with pytest.raises(DataError, match=f"{n} training samples are fewer.*{remedy}"):
        TrainOrder(n, 4, 0, 0, world)


@pytest.mark.parametrize(("n", "batch", "world"), [*SHAPES, (2, 4, 3)])
def test_evaluation_takes_each_sample_once_in_order(n: int, batch: int, world: int) -> None:
    seen = []
    for rank in range(world):
        order = EvalOrder(n, batch, rank, world)
        own = [index for step in range(order.steps_per_epoch) for index in order.at(step)[1]]
        assert own == sorted(own)
        assert all(order.at(step)[1] for step in range(order.steps_per_epoch))
        seen += own
    assert sorted(seen) == list(range(n))


def test_evaluation_batches_have_samples_of_one_size() -> None:
    sizes = [(32, 64), (32, 64), (64, 64), (64, 64), (64, 64), (32, 64)]
    order = EvalOrder(6, 2, sizes=sizes)
    assert [order.at(step)[1] for step in range(order.steps_per_epoch)] == [
        (0, 1),
        (2, 3),
        (4,),
        (5,),
    ]
    # a process looks at its own samples only, and takes the same ones whatever the sizes
    ranks = [EvalOrder(6, 2, rank, 2, sizes) for rank in range(2)]
    assert [rank.at(step)[1] for rank in ranks for step in range(3)] == [
        *[(0,), (2, 4), ()],
        *[(1,), (3,), (5,)],
    ]


def test_senseless_settings() -> None:
    with pytest.raises(ValueError, match="rank 2 of 2"):
        EvalOrder(5, 1, 2, 2)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        TrainOrder(5, 1, -1)


def test_uniforms_are_uniform_and_separate() -> None:
    many = np.stack([sample_uniforms(0, 0, index, 2) for index in range(2000)])
    assert many.min() >= 0
    assert many.max() < 1
    assert np.abs(many.mean(0) - 0.5).max() < 0.03
    assert abs(np.corrcoef(many.T)[0, 1]) < 0.07
    assert len(np.unique(many)) == many.size


@pytest.mark.parametrize(("batch", "world", "accumulate"), [(2, 1, 3), (1, 3, 2), (3, 2, 1)])
def test_an_epoch_depends_on_the_samples_per_step_alone(
    batch: int, world: int, accumulate: int
) -> None:
    one = TrainOrder(50, 6, seed=3)
    ranks = [TrainOrder(50, batch, 3, rank, world, accumulate) for rank in range(world)]
    assert ranks[0].steps_per_epoch == one.steps_per_epoch * accumulate
    for step in range(20):
        micro = range(step * accumulate, (step + 1) * accumulate)
        together = [index for m in micro for rank in ranks for index in rank.at(m)[1]]
        assert sorted(together) == sorted(one.at(step)[1])


def test_too_few_samples_for_all_micro_batches_are_refused() -> None:
    said = r"10 training samples .* 16 \(4 x 2 .* x 2 micro-batches\)"
    with pytest.raises(DataError, match=said):
        TrainOrder(10, 4, 0, world=2, accumulate=2)


sizes = st.integers(1, 200)
seeds = st.integers(0, 2**40)


@pytest.mark.fault("F25")
@settings(deadline=None)
@given(n=sizes, width=st.integers(1, 24), seed=seeds, first=st.integers(0, 50))
def test_any_number_of_ranks_sees_the_same_global_batches(
    n: int, width: int, seed: int, first: int
) -> None:
    if width > n:
        with pytest.raises(DataError, match="fewer than one global batch"):
            TrainOrder(n, width, seed)
        return
    one = TrainOrder(n, width, seed)
    for world in (world for world in range(1, width + 1) if width % world == 0):
        ranks = [TrainOrder(n, width // world, seed, rank, world) for rank in range(world)]
        assert {rank.steps_per_epoch for rank in ranks} == {n // width}
        for step in range(first, first + 3):
            epoch, wanted = one.at(step)
            assert epoch == step // one.steps_per_epoch
            shares = [rank.at(step) for rank in ranks]
            assert {share[0] for share in shares} == {epoch}
            # sample i of the global batch is number i // world of rank i % world
            assert tuple(shares[i % world][1][i // world] for i in range(width)) == wanted


@settings(deadline=None)
@given(
    n=sizes, batch=st.integers(1, 9), world=st.integers(1, 9), seed=seeds, epoch=st.integers(0, 9)
)
def test_no_epoch_repeats_a_sample(n: int, batch: int, world: int, seed: int, epoch: int) -> None:
    if batch * world > n:
        return
    ranks = [TrainOrder(n, batch, seed, rank, world) for rank in range(world)]
    steps = ranks[0].steps_per_epoch
    seen = [
        index
        for step in range(epoch * steps, (epoch + 1) * steps)
        for rank in ranks
        for index in rank.at(step)[1]
    ]
    assert len(seen) == len(set(seen)) == steps * batch * world > n - batch * world
    assert set(seen) <= set(range(n))


@pytest.mark.fault("F27")
@settings(deadline=None)
@given(n=sizes, batch=st.integers(1, 9), world=st.integers(1, 9))
def test_evaluation_is_exact_for_any_size(n: int, batch: int, world: int) -> None:
    ranks = [EvalOrder(n, batch, rank, world) for rank in range(world)]
    seen = [rank.at(step)[1] for rank in ranks for step in range(rank.steps_per_epoch)]
    assert sorted(index for indices in seen for index in indices) == list(range(n))
    assert all(0 < len(indices) <= batch for indices in seen)
    counts = [rank.steps_per_epoch for rank in ranks]
    assert max(counts) - min(counts) <= 1
