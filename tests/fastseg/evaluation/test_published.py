"""The released metric code's numbers to the last printed digit, its defects on and off."""

import glob
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastseg import kernels
from fastseg.engine.context import RunContext
from fastseg.errors import ConfigError
from fastseg.evaluate import check_protocols
from fastseg.evaluation.from_weights import EvaluateConfig
from fastseg.evaluation.protocols.missing_modalities import subset_weights
from fastseg.evaluation.protocols.registry import run_protocols
from fastseg.evaluation.scoring.counts import Counts
from fastseg.evaluation.scoring.measures import in_float32, measure, rounded, whole
from fastseg.evaluation.scoring.published import PublishedConfig
from fastseg.evaluation.scoring.scorer import Scorer, ScoringConfig
from fastseg.evaluation.subsets import all_subsets
from fastseg.pipelines import build_loader
from fastseg.pipelines.datasets.lookup import get_dataset

IMAGE = get_dataset("deliver").modalities[0].files[0]


class ReleasedMetrics:
    """``semseg/metrics.py`` as it is described: one float32 matrix, NaN to 0, two decimals."""

    def __init__(self, classes):
        self.classes, self.hist = classes, torch.zeros(classes, classes)

    def update(self, predictions, target):
        keep = target != 255
        cells = target[keep] * self.classes + predictions[keep]
        self.hist += torch.bincount(cells, minlength=self.classes**2).view(self.classes, -1)

    def printed(self):
        """Per class, then their mean: IoU, F1, class accuracy."""
        hits, gt, found = self.hist.diag(), self.hist.sum(1), self.hist.sum(0)
        for ratio in (hits / (found + gt - hits), 2 * hits / (found + gt), hits / gt):
            ratio = torch.where(ratio.isnan(), torch.zeros_like(ratio), ratio)
            yield (100 * ratio).numpy().round(2).tolist(), round(100 * ratio.mean().item(), 2)


def maps(batches, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        labels = torch.randint(0, classes - 1, (2, 24, 24), generator=generator)
        wrong = torch.rand(labels.shape, generator=generator) < 0.3
        found = labels.where(~wrong, (labels + 1) % (classes - 1))
        labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
        yield found, labels


@pytest.mark.parametrize("start", [0, 2**24 + 2])
@pytest.mark.parametrize("seed", range(4))
def test_numbers_equal_the_released_ones_to_the_last_digit(seed, start):
    classes = 6  # the last one is nowhere
    released, counts = ReleasedMetrics(classes), Counts(1, classes)
    # as after many images: the matrix then drops odd counts
    released.hist[:2, :2] += start
    counts.single[:2, :2] += start
    counts.confusion[:, :2, :2] += start
    for found, labels in maps(30, classes, seed):
        released.update(found, labels)
        counts.add(found, labels, [0, 0])
    assert torch.equal(released.hist, counts.single)
    exact = measure(counts, whole([True]))
    shown = rounded(in_float32(exact, counts))
    (iou, miou), (f1, mf1), (_, macc) = released.printed()
    values = [(v.score, v.value) for v in shown.values() if v.number is not None]
    for score, printed in (("iou", iou), ("f1", f1)):
        ours = [round(100 * np.nan_to_num(value), 2) for name, value in values if name == score]
        assert ours == [pytest.approx(p, abs=1e-5) for p in printed]
    for score, printed in (("miou_all", miou), ("mf1_all", mf1), ("macc_all", macc)):
        assert f"{100 * shown[score]:.2f}" == f"{printed:.2f}"
    # the defect is one, and it is off by default
    assert torch.equal(counts.single.long(), counts.confusion[0]) == (start == 0)
    assert exact["miou_all"] != shown["miou_all"]


def test_means_over_subsets_are_of_rounded_scores(tiny_context, networks):
    student = {"student": networks["student"]}
    plain, released = (
        run_protocols(Scorer(tiny_context, student, ScoringConfig(published=defects)), ["subsets"])
        for defects in (PublishedConfig(), PublishedConfig(rounded=True))
    )
    for exact, shown in zip(plain.tables, released.tables, strict=True):
        assert "as the released code: rounded before averaging" in shown.title
        (*scores, mean), (*cut, mean_of_cut) = exact.rows["student"], shown.rows["student"]
        assert cut == pytest.approx([round(score, 2) for score in scores], abs=1e-9)
        assert mean_of_cut == pytest.approx(sum(cut) / 15, abs=1e-9)
        assert mean == pytest.approx(sum(scores) / 15, abs=1e-9)


@pytest.mark.parametrize("letters", ["FEL", "RDEL"])
def test_four_fixed_modalities_cancel_in_the_expectation(letters):
    subsets, p = all_subsets(letters), 0.2
    ours = np.array(subset_weights(subsets, p))
    gone = [len(letters) - len(subset.positions) for subset in subsets]
    theirs = np.array([p**k * (1 - p) ** (4 - k) for k in gone])
    assert ours / ours.sum() == pytest.approx(theirs / theirs.sum(), abs=1e-15)


def test_float32_needs_one_process(tiny_context, networks, monkeypatch):
    monkeypatch.setattr(tiny_context.ranks, "world", 2)
    config = ScoringConfig(published=PublishedConfig(float32=True))
    with pytest.raises(ConfigError, match="adds one batch after the other, but there are 2"):
        Scorer(tiny_context, networks, config)


def released_selection(mious, zero_padding):
    """``tools/train_deliver_mad50_proto_cur_reg.py``, and its variant with zeros."""
    r, rd, el, rdel = (round(100 * mious[name], 2) for name in ("R", "RD", "EL", "RDEL"))
    return (r + rd + el + rdel) / 4 if zero_padding else (r + rd + el + rdel) / 3


def test_the_selection_score_is_the_released_one(tiny_context, networks):
    student = {"student": networks["student"]}
    defects = PublishedConfig(rounded=True, selection=True)
    scorer = Scorer(tiny_context, student, ScoringConfig(published=defects))
    outcome = run_protocols(scorer, ["subsets"])
    plain = Scorer(tiny_context, student)
    for missing, table in zip(("drop", "zero"), outcome.tables, strict=True):
        mious = {
            subset.name: plain.score("student", plain.case(subset, missing=missing))["miou_all"]
            for subset in plain.subsets
        }
        assert table.columns[-2:] == ("Mean", "Selection")
        expected = released_selection(mious, missing == "zero")
        assert f"{table.rows['student'][-1]:.2f}" == f"{expected:.2f}"
        (row,) = (r for r in outcome.rows if (r.subset, r.missing) == ("Selection", missing))
        assert 100 * row.value == pytest.approx(expected, abs=1e-6)
    assert run_protocols(plain, ["subsets"]).tables[0].columns[-1] == "Mean"


def released_files(root, split, case):
    """The filter of ``semseg/datasets/deliver.py``."""
    files = sorted(glob.glob(str(root / "img" / "*" / split / "*" / "*.png")))
    return [file for file in files if case in file]


@pytest.mark.parametrize("split", ["val", "train"])
def test_conditions_by_substring_are_those_of_the_released_loader(tiny, networks, split):
    """In the split ``train`` every sample is of ``rain``."""
    config = replace(tiny, data=replace(tiny.data, eval_split=split))
    defects = ScoringConfig(published=PublishedConfig(substring=True))
    scorer = Scorer(RunContext(config), {"student": networks["student"]}, defects)
    outcome = run_protocols(scorer, ["conditions"])
    counts = {row.setting: row.samples for row in outcome.rows}
    found = {row.setting: row.value for row in outcome.rows if row.score == "miou_all"}
    loader = build_loader(replace(config.data, eval_batch_size=1), train=False)
    batches = list(loader.batches())
    loader.close()
    for case in ("cloud", "fog", "night", "rain", "sun", "motionblur"):
        released = ReleasedMetrics(25)
        chosen = released_files(config.data.root, split, case)
        names = ["/".join(Path(file).parts[-4:]) for file in chosen]
        assert counts.get(case, 0) == len(names)
        for batch in batches:
            path = str(scorer.files.path(scorer.files.sample_ids.index(*batch.sample_ids), IMAGE))
            if "/".join(Path(path).parts[-4:]) in names:
                with torch.no_grad():
                    logits = networks["student"].eval()(batch.images).logits
                classes = kernels.upsample_argmax(logits, batch.labels.shape[-2:])
                released.update(classes.long(), batch.labels.long())
        if names:
            (_, miou), *_ = released.printed()
            assert 100 * found[case] == pytest.approx(miou, abs=0.006)
    assert counts["rain"] == (12 if split == "train" else counts["rain"])
    assert "conditions by substring" in outcome.tables[0].title


def test_what_has_no_meaning_is_refused_at_the_door():
    with pytest.raises(ConfigError, match="the modalities of the run are F E L: leave it out"):
        PublishedConfig(selection=True).check(1, ["F", "E", "L"])
    options = EvaluateConfig(
        Path("run"), protocols=("full",), published=PublishedConfig(selection=True)
    )
    with pytest.raises(ConfigError, match=r"selection plays a part in --protocols subsets"):
        check_protocols(options)
