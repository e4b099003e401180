import math

import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from fastseg.evaluation.metrics import ConfusionMatrix


def test_hand_made_matrix():
    matrix = ConfusionMatrix(4)
    labels = torch.tensor([[0, 0, 1], [1, 255, 2]])
    predictions = torch.tensor([[0, 1, 1], [1, 0, 0]])
    matrix.update(predictions, labels)
    assert matrix.counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    scores = matrix.scores()
    assert scores.iou[:3] == pytest.approx((1 / 3, 2 / 3, 0.0))
    assert math.isnan(scores.iou[3])
    assert scores.miou_all == pytest.approx(1 / 4)  # the absent class counts as 0
    assert scores.miou_present == pytest.approx(1 / 3)


def test_torchmetrics_agrees():
    generator = torch.Generator().manual_seed(3)
    predictions = torch.randint(0, 6, (4, 20, 20), generator=generator)
    labels = torch.randint(0, 6, (4, 20, 20), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    matrix = ConfusionMatrix(6)
    for part in range(4):
        matrix.update(predictions[part], labels[part])
    other = MulticlassJaccardIndex(6, average="none", ignore_index=255)(predictions, labels)
    assert scores_close(matrix.scores().iou, other.tolist())


def scores_close(left, right):
    return all(a == pytest.approx(b, abs=1e-6) for a, b in zip(left, right, strict=True))


def test_counts_stay_exact_beyond_the_range_of_float32():
    matrix = ConfusionMatrix(2)
    matrix.counts += 2**24
    matrix.update(torch.tensor([1]), torch.tensor([1]))
    assert matrix.counts[1, 1] == 2**24 + 1


def test_values_outside_the_classes_are_ignored():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 1, 2]), torch.tensor([255, 3, -1]))
    assert matrix.counts.sum() == 0
    assert math.isnan(matrix.scores().miou_present)
    assert matrix.scores().miou_all == 0


def test_uint8_labels_do_not_wrap():
    matrix = ConfusionMatrix(25)
    matrix.update(torch.tensor([24]), torch.tensor([24], dtype=torch.uint8))
    assert matrix.counts[24, 24] == 1


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        ConfusionMatrix(2).update(torch.zeros(2), torch.zeros(3))
