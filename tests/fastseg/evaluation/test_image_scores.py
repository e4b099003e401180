"""Scores of single images, scores by condition, and measures of features, for the report."""

import math
from dataclasses import replace

import pytest
import torch

from fastseg import kernels
from fastseg.evaluation.feature_measures import FeatureMeasures
from fastseg.evaluation.image_scores import ImageScores, chosen_samples
from fastseg.evaluation.metrics import ConfusionMatrix
from fastseg.evaluation.protocols.modality_subsets import evaluate_subsets
from fastseg.evaluation.scores import score_networks
from fastseg.pipelines import build_loader


@pytest.fixture(scope="module")
def scored(tiny_context, networks):
    images = {}
    return score_networks(tiny_context, networks, images=images), images


def test_counting_images_leaves_the_sums_as_they_are(tiny_context, networks, scored):
    matrices, _ = scored
    plain = score_networks(tiny_context, networks)
    for name, found in plain.items():
        for subset, matrix in found.items():
            moved = (matrix.counts - matrices[name][subset].counts).abs().sum()
            assert moved <= 2e-4 * matrix.counts.sum()  # ties decided by rounding


def test_an_image_has_the_score_of_a_split_of_it_alone(tiny_context, networks, scored):
    _, images = scored
    loader = build_loader(replace(tiny_context.config.data, eval_batch_size=1), train=False)
    for name, network in networks.items():
        for place, batch in enumerate(loader.batches()):
            alone = list(evaluate_subsets(tiny_context, network, [batch]).values())[-1]
            wanted = alone.scores().miou_present
            assert images[name].scores[place] == pytest.approx(wanted, abs=2e-3)


def test_conditions_are_groups_of_the_split(tiny_context, networks, scored):
    matrices, images = scored
    table = images["student"].by_condition("student")
    assert table.columns == tuple(matrices["student"])
    numbers = {row.rsplit(", ", 1)[0]: int(row.rsplit(", ", 1)[1].split()[0]) for row in table.rows}
    weathers = ("cloud", "fog", "night", "rain", "sun")
    assert sum(numbers.get(weather, 0) for weather in weathers) == 5
    # the counts of all conditions together are those of the split
    loader = build_loader(tiny_context.config.data, train=False)
    found = ImageScores(tiny_context, loader.files)
    counts = evaluate_subsets(tiny_context, networks["student"], loader.batches(), found.count)
    found.gather()
    together = ConfusionMatrix(tiny_context.num_classes)
    together.counts = found._counts[-1].sum(0)
    assert torch.equal(together.counts, list(counts.values())[-1].counts.cpu())


def test_worst_and_best_come_first_and_no_sample_twice():
    scores = {"student": [0.5, 0.1, math.nan, 0.9, 0.3, 0.7]}
    chosen = chosen_samples(scores, total=6, wanted=2)
    assert list(chosen) == [1, 4, 3, 5]  # 1 and 4 would also be of the two that are spread
    assert chosen[1].startswith("worst of 5 samples by the student with all sensors: mIoU 10.00")
    assert chosen[5].startswith("2nd best of 5 samples")
    assert list(chosen_samples({}, total=10, wanted=2)) == [2, 7]
    assert chosen_samples(scores, total=6, wanted=0) == {}
    assert list(chosen_samples({"student": [0.5]}, total=1, wanted=5)) == [0]


def test_features_of_equal_networks_have_equal_prototypes(tiny_context, networks):
    loader = build_loader(replace(tiny_context.config.data, eval_batch_size=1), train=False)
    batch = next(iter(loader.batches()))
    measures = FeatureMeasures(tiny_context)
    network = networks["teacher"]
    measures.add({"teacher": network, "student": network}, batch)
    table = measures.table()
    assert list(table.rows) == [modality.name for modality in tiny_context.modalities]
    columns = dict(zip(table.columns, zip(*table.rows.values(), strict=True), strict=True))
    assert columns["teacher and student prototypes"] == pytest.approx([1.0] * 4, abs=1e-5)
    assert columns["teacher fusion"] == columns["student fusion"]
    assert all(-1 <= value <= 1 for value in columns["teacher fusion"])
    # the definition, on the features themselves
    with torch.no_grad():
        features = network.eval()(batch.images).features
    wanted = torch.zeros(4)
    for level in features:
        size = level[:, 0].float().abs().flatten(2)
        wanted += (
            kernels.functional_entropy(size, dim=2).mean(1) / size.mean((1, 2)) / len(features)
        )
    assert columns["teacher entropy"] == pytest.approx(wanted.tolist(), rel=1e-4)
    assert FeatureMeasures(tiny_context).table() is None
