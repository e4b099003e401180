import itertools
from collections import Counter
from dataclasses import replace

import pytest

from fastseg.engine.optim.learning_rate import learning_rate
from fastseg.evaluation.subsets import all_subsets
from fastseg.methods.robustseg import RobustSegWeights
from fastseg.methods.seeds import Share, derive_seed, draw_modalities, draw_modalities_of_samples
from fastseg.methods.stage import Stage
from tests.support.optional_hypothesis import given, st

PUBLISHED = Stage(epochs=200, warmup_epochs=10, lr=6e-5)


def test_learning_rate_follows_the_published_schedule():
    per_epoch = 100
    assert learning_rate(PUBLISHED, 0, per_epoch) == pytest.approx(6e-6)
    assert learning_rate(PUBLISHED, 500, per_epoch) == pytest.approx(6e-5 * 0.55)
    assert learning_rate(PUBLISHED, 1000, per_epoch) == pytest.approx(6e-5)
    # the decay would reach zero one epoch behind the end: T_max = 201 epochs
    expected = 6e-5 * (1 - (19_999 - 1000) / (20_100 - 1000)) ** 0.9
    assert learning_rate(PUBLISHED, 19_999, per_epoch) == pytest.approx(expected)
    rates = [learning_rate(PUBLISHED, step, per_epoch) for step in range(0, 20_000, 50)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_short_stage_still_reaches_its_learning_rate():
    stage = replace(PUBLISHED, steps=10)
    rates = [learning_rate(stage, step, 100) for step in range(10)]
    assert max(rates) == pytest.approx(stage.lr)
    assert min(rates) > 0


def test_stage_length_is_in_epochs_unless_steps_are_given():
    assert PUBLISHED.num_steps(497) == 99_400
    assert replace(PUBLISHED, epochs=0.5).num_steps(7) == 4
    assert replace(PUBLISHED, steps=20).num_steps(497) == 20


@pytest.mark.fault("F31")
def test_dropout_draws_every_size_equally_often_and_never_nothing():
    draws = [draw_modalities("drop", 4, derive_seed(1, 1, s, "modalities")) for s in range(4000)]
    sizes = Counter(len(d) for d in draws)
    assert set(sizes) == {1, 2, 3, 4}
    assert all(abs(count - 1000) < 130 for count in sizes.values())  # 4.7 sigma
    kept = Counter(itertools.chain.from_iterable(draws))
    assert all(abs(kept[m] / 4000 - 0.625) < 0.04 for m in range(4))  # (M + 1) / (2 M)
    assert all(d == sorted(set(d)) for d in draws)


@pytest.mark.fault("F31")
@given(
    policy=st.sampled_from(["full", "drop", "zero"]),
    modalities=st.integers(1, 8),
    samples=st.integers(1, 9),
    seed=st.integers(0, 2**60),
)
def test_no_draw_and_no_score_is_without_every_modality(policy, modalities, samples, seed):
    assert draw_modalities(policy, modalities, seed)
    assert (draw_modalities_of_samples(modalities, samples, seed).sum(1) > 0).all()
    subsets = all_subsets("ABCDEFGH"[:modalities])
    assert len(subsets) == 2**modalities - 1
    assert all(subset.positions for subset in subsets)


def test_dropout_depends_on_seed_stage_and_step_alone():
    def drawn(*place):
        seeds = [derive_seed(*place, step, "modalities") for step in range(50)]
        return [draw_modalities("drop", 4, seed) for seed in seeds]

    assert drawn(7, 1) == drawn(7, 1)
    assert drawn(7, 1) != drawn(8, 1)
    assert drawn(7, 1) != drawn(7, 0)
    assert draw_modalities("full", 3, derive_seed(7, 0, 5, "modalities")) == [0, 1, 2]


def test_derived_seeds_do_not_collide():
    seeds = {
        derive_seed(seed, stage, step, purpose)
        for seed in range(3)
        for stage in range(2)
        for step in range(20)
        for purpose in ("dropout", "pairing", "noise", "weights", "of a method")
    }
    assert len(seeds) == 3 * 2 * 20 * 5
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be above 0"),
        ({"lr": -1e-3}, "lr must be between 0 and 1"),
        ({"losses": RobustSegWeights(hpdm=1)}, "hpdm need another network.*learns_from"),
        ({"learns_from": "teacher"}, "trains the teacher cannot learn from it"),
        ({"trains": "a+"}, r"trains must be one name or several, joined by \+"),
        ({"learns_from": "a+a"}, "learns_from must be one name or several.*each once"),
        ({"trains": "a+b+c", "start": "random+encoder"}, "2 first weights for 3 networks"),
        ({"warmup_ratio": 2}, "warmup_ratio"),
    ],
)
def test_impossible_stage_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(PUBLISHED, **change)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_impossible_loss_weight_is_refused(weight):
    with pytest.raises(ValueError, match="rrm must be at"):
        RobustSegWeights(rrm=weight)
    with pytest.raises(ValueError, match="all loss weights are 0"):
        RobustSegWeights(ohem=0)


def test_shares_deal_every_sample_of_the_step_once():
    batch, world, accumulate = 3, 2, 4
    shares = [
        Share(rank, world, micro, accumulate)
        for micro in range(accumulate)
        for rank in range(world)
    ]
    assert [share.part for share in shares] == list(range(8))
    everyone = list(range(shares[0].size(batch)))
    dealt = [everyone[share.rows(batch)] for share in shares]
    assert all(len(rows) == batch for rows in dealt)
    assert sorted(itertools.chain(*dealt)) == everyone
    # micro-batch after micro-batch, round robin over the ranks, as the loaders do
    assert dealt[:3] == [[0, 2, 4], [1, 3, 5], [6, 8, 10]]
    assert everyone[Share().rows(24)] == everyone


def test_parts_of_a_step_draw_other_numbers_and_the_first_is_the_whole():
    seeds = [derive_seed(1, 0, 7, "dropout", part) for part in range(16)]
    assert len(set(seeds)) == 16
    assert seeds[0] == derive_seed(1, 0, 7, "dropout")
