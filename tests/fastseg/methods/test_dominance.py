"""Dominance: scores against a loop in float64, ranks, ties, and one ranking for a whole batch."""

import pytest
import torch

from fastseg.methods.dominance import Dominance, agreement_with_fusion, ranked


def features_of(modalities, batch=2, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(modalities, batch, 3 + i, 4 >> i, 8 >> i, dtype=dtype) for i in range(3)]


def loop(features):
    m, b = features[0].shape[:2]
    scores = torch.zeros(m, b, dtype=torch.float64)
    for i in range(m):
        for j in range(b):
            for level in features:
                own = level[i, j].double().reshape(-1)
                mean = sum(level[n, j].double().reshape(-1) for n in range(m)) / m
                scores[i, j] += own @ mean / own.norm() / mean.norm() / len(features)
    return scores


@pytest.mark.parametrize("modalities", [1, 3, 4])
def test_scores_are_cosines_with_the_fused_features(modalities):
    features = features_of(modalities)
    expected = loop(features)
    torch.testing.assert_close(agreement_with_fusion(features), expected)
    # the order of the memory makes no difference, and short floats are compared in float32
    last = [x.movedim(2, -1).contiguous().movedim(-1, 2) for x in features]
    torch.testing.assert_close(agreement_with_fusion(last), expected)
    short = [x.bfloat16() for x in features]
    found = agreement_with_fusion(short)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), loop(short), rtol=1e-5, atol=1e-6)


def test_scores_do_not_depend_on_scale_and_have_no_gradient():
    features = [x.requires_grad_() for x in features_of(4)]
    scores = agreement_with_fusion(features)
    assert not scores.requires_grad
    torch.testing.assert_close(agreement_with_fusion([7 * x for x in features]), scores)


def test_features_of_zeros_have_a_score_of_zero():
    features = features_of(3)
    for level in features:
        level[1, 0] = 0
    assert agreement_with_fusion(features)[1, 0] == 0
    assert agreement_with_fusion([torch.zeros_like(x) for x in features]).eq(0).all()


@pytest.mark.parametrize("modalities", [1, 2, 3, 4, 5])
def test_the_upper_half_is_dominant(modalities):
    torch.manual_seed(1)
    scores = torch.rand(modalities, 6)
    dominant, weak = ranked(scores)
    assert weak.shape == (modalities // 2, 6)
    for b in range(6):
        order = sorted(range(modalities), key=lambda m: (-scores[m, b].item(), m))
        count = -(-modalities // 2)
        assert dominant[:, b].nonzero().flatten().tolist() == sorted(order[:count])
        assert sorted(weak[:, b].tolist()) == sorted(order[count:])


def test_of_equal_modalities_the_first_are_dominant():
    for modalities in (3, 4):
        features = [x[:1].expand(modalities, -1, -1, -1, -1) for x in features_of(4)]
        dominant, weak = ranked(agreement_with_fusion(features))
        first = (modalities + 1) // 2
        assert dominant[:first].all()
        assert not dominant[first:].any()
        assert weak[:, 0].tolist() == list(range(first, modalities))


def test_one_ranking_for_all_samples_of_all_processes():
    features, asked = features_of(4, batch=3), []
    shift = torch.tensor([[0.0], [9.0], [0.0], [5.0]])  # what another process may add

    def mean(x):
        asked.append(x)
        return x + shift

    dominance = Dominance(per_batch=True, mean_over_processes=mean)
    weak = dominance.rank(features)
    torch.testing.assert_close(asked, [loop(features).mean(1, keepdim=True)])
    assert dominance.dominant.tolist() == [[False] * 3, [True] * 3, [False] * 3, [True] * 3]
    assert weak is dominance.weak
    assert sorted(weak[:, 0].tolist()) == [0, 2]
