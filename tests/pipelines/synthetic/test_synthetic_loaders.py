"""The synthetic set is read by exactly the code that reads DELIVER, by both loaders alike."""

import pytest
import torch

from fastseg.pipelines import DataConfig, build_loader
from fastseg.pipelines.synthetic import SyntheticConfig, generate


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "data"
    generate(SyntheticConfig(out=out, size=64, train=8, val=10, seed=1, workers=1), progress=False)
    return out


def batches(root, loader, train=False):
    config = DataConfig(root=root, size=64, batch_size=4, eval_batch_size=4, loader=loader)
    opened = build_loader(config, train=train, seed=5)
    try:
        return list(opened.batches(0, 3))
    finally:
        opened.close()


def test_both_loaders_decode_the_same_pixels(root):
    left, right = batches(root, "torch"), batches(root, "dali")
    assert [batch.labels.shape[0] for batch in left] == [4, 4, 2]
    for ours, theirs in zip(left, right, strict=True):
        assert ours.sample_ids == theirs.sample_ids
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def test_labels_are_classes_or_ignored(root):
    labels = torch.cat([batch.labels for batch in batches(root, "torch")])
    values = set(labels.unique().tolist())
    assert values <= {*range(25), 255}
    assert 255 in values  # object rims and the hood are unlabelled
    assert len(values) > 20


def test_training_batches_differ_from_epoch_to_epoch(root):
    first, second, third = batches(root, "torch", train=True)
    assert sorted(first.sample_ids + second.sample_ids) != sorted(third.sample_ids)
    assert set(third.sample_ids) <= set(first.sample_ids + second.sample_ids)  # next epoch
    assert third.sample_ids != first.sample_ids
