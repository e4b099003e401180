"""Scores of counts and their intervals."""

import math

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from fastseg.evaluation.metrics import ConfusionMatrix
from fastseg.evaluation.scoring.counts import Counts, confusion_per_image
from fastseg.evaluation.scoring.measures import measure, resampled, weighted, whole


def random_maps(images=6, classes=5, side=20):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, (images, side, side), generator=generator)
    found = torch.where(
        torch.rand(labels.shape, generator=generator) < 0.6,
        labels,
        torch.randint(0, classes, labels.shape, generator=generator),
    )
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return found, labels


def counted(found, labels, bins, classes=5):
    counts = Counts(max(bins) + 1, classes)
    counts.add(found, labels, bins)
    return counts


def test_every_score_is_that_of_the_field():
    found, labels = random_maps()
    measures = measure(counted(found, labels, [0] * 6), whole([True]))
    kinds = {"num_classes": 5, "ignore_index": 255}
    assert measures["pixel_accuracy"] == pytest.approx(
        float(MulticlassAccuracy(average="micro", **kinds)(found, labels)), abs=1e-6
    )
    assert measures["macc_all"] == pytest.approx(
        float(MulticlassAccuracy(average="macro", **kinds)(found, labels)), abs=1e-6
    )
    assert measures["mf1_all"] == pytest.approx(
        float(MulticlassF1Score(average="macro", **kinds)(found, labels)), abs=1e-6
    )
    matrix = ConfusionMatrix(5)
    matrix.update(found, labels)
    scores = matrix.scores()
    assert (measures["miou_all"], measures["miou_present"]) == (
        pytest.approx(scores.miou_all, abs=1e-15),
        pytest.approx(scores.miou_present, abs=1e-15),
    )
    iou = [value.value for value in measures.values() if value.score == "iou"]
    assert iou == pytest.approx(scores.iou, abs=1e-15)


def test_a_class_that_is_nowhere_counts_as_nothing_or_not_at_all():
    found, labels = random_maps(classes=3)
    measures = measure(counted(found, labels, [0] * 6, classes=4), whole([True]))
    assert measures["miou_all"] == pytest.approx(0.75 * measures["miou_present"])
    last = {v.score: v.value for v in measures.values() if v.number == 3}
    assert all(math.isnan(value) for value in last.values())


def test_images_are_counted_apart_and_bins_add_them():
    found, labels = random_maps()
    apart = confusion_per_image(found, labels, 5)
    for image in range(6):
        matrix = ConfusionMatrix(5)
        matrix.update(found[image], labels[image])
        assert torch.equal(apart[image], matrix.counts)
    counts = counted(found, labels, [0, 1, 0, 1, 1, 0])
    assert torch.equal(counts.confusion[0], apart[[0, 2, 5]].sum(0))
    chosen = measure(counts, whole([False, True]))
    alone = measure(counted(found[[1, 3, 4]], labels[[1, 3, 4]], [0, 0, 0]), whole([True]))
    assert torch.equal(chosen.table.nan_to_num(-1), alone.table.nan_to_num(-1))


def test_resamples_draw_images_with_replacement():
    weights = resampled([True, True, False, True, True], 200, seed=3)
    assert weights.shape == (201, 5)
    assert weights[0].tolist() == [1, 1, 0, 1, 1]
    assert (weights.sum(1) == 4).all()
    assert (weights[:, 2] == 0).all()
    assert float(weights[1:].mean(0)[0]) == pytest.approx(1, abs=0.2)
    assert (weights[1:] == 2).any()
    again = resampled([True, True, False, True, True], 100, seed=3)
    assert torch.equal(weights[:101], again)
    assert not torch.equal(again, resampled([True, True, False, True, True], 100, seed=4))


def test_the_interval_holds_95_percent_of_the_resamples():
    found, labels = random_maps(images=40, side=8)
    counts, weights = counted(found, labels, list(range(40))), resampled([True] * 40, 400, 0)
    measures = measure(counts, weights)
    low, high = measures.interval("pixel_accuracy")
    assert low < measures["pixel_accuracy"] < high
    matrices = confusion_per_image(found, labels, 5).double()
    drawn = []
    for row in weights[1:]:
        matrix = (row.view(-1, 1, 1) * matrices).sum(0)
        drawn.append(float(matrix.trace() / matrix.sum()))
    inside = sum(low <= value <= high for value in drawn)
    assert 378 <= inside <= 382
    # the spread of a share of n pixels in clusters of equal size is near that of images
    shares = torch.stack([m.trace() / m.sum() for m in matrices])
    assert (high - low) / 2 == pytest.approx(1.96 * float(shares.std()) / 40**0.5, rel=0.2)
    assert all(math.isnan(x) for x in measure(counts, whole([True] * 40)).interval("miou_all"))


def test_a_mean_over_cases_pairs_their_resamples():
    found, labels = random_maps()
    weights = resampled([True] * 6, 50, 0)
    one = measure(counted(found, labels, list(range(6))), weights)
    mean = weighted([one, one], [1.0, 3.0])
    assert mean.interval("miou_all") == pytest.approx(one.interval("miou_all"), abs=1e-12)
    other = measure(counted(labels.clamp(max=4), labels, list(range(6))), weights)
    mixed = weighted([one, other], [1.0, 3.0])
    expected = (one["miou_all"] + 3 * other["miou_all"]) / 4
    assert mixed["miou_all"] == pytest.approx(expected, abs=1e-12)
