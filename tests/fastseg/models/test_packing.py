"""Images that are encoded where each sample has modalities of its own, and their logits."""

import pytest
import torch

from fastseg.models import SegFormer
from fastseg.models.packing import PackingRule, subsets_of
from tests.support.toy_backbone import ToySegmenter

NAMES = ["img", "depth", "event", "lidar"]
MARKS = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 0, 1]])


@pytest.fixture(params=["shared", "per_modality", "toy"])
def model(request):
    """Two that pack, and one that knows nothing of it."""
    torch.manual_seed(0)
    if request.param == "toy":
        return ToySegmenter(NAMES, 5, 0.1).double().eval()
    own = NAMES if request.param == "per_modality" else ()
    return SegFormer("mit_nano", 5, 16, own_encoders=own).double().eval()


@pytest.fixture
def images():
    return torch.randn(4, 3, 3, 32, 64, dtype=torch.float64)


def test_each_sample_has_modalities_of_its_own(model, images):
    wanted = [
        model(images[rows, b : b + 1], rows).logits[0]
        for b, rows in enumerate(MARKS[:, b].nonzero().flatten().tolist() for b in range(3))
    ]
    # what is not there is not read
    images = images.masked_fill(MARKS.view(4, 3, 1, 1, 1) == 0, torch.nan)
    for marks in (MARKS, MARKS.bool(), MARKS.double()):
        torch.testing.assert_close(model.logits_of_marks(images, marks), torch.stack(wanted))


def test_marks_that_do_not_fit_are_refused(model, images):
    with pytest.raises(ValueError, match=r"expected marks \[M, B\] = \[4, 3\], got \[3, 4\]"):
        model.logits_of_marks(images, MARKS.T)
    with pytest.raises(ValueError, match=r"samples \[0, 2\] have no modality left"):
        model.logits_of_marks(images, torch.tensor([[0, 1, 0]] * 4))


def test_places_are_those_of_the_marks_modality_by_modality():
    places, groups = PackingRule().pack(MARKS)
    assert groups == (6,)
    assert places.tolist() == [[0, 2, 4, 5, 9, 11]] * 2
    assert torch.equal(MARKS.flatten()[places[0]], torch.ones(6, dtype=torch.int64))


def test_an_encoder_of_its_own_gets_one_image_at_least():
    places, groups = PackingRule(apart=True).pack(MARKS)
    assert groups == (2, 2, 1, 2)
    # the blind one is the modality's first, and goes where nobody reads
    assert places.tolist() == [[0, 2, 4, 5, 6, 9, 11], [0, 2, 4, 5, 12, 9, 11]]


@pytest.mark.parametrize(
    ("lengths", "numbers"),
    [(0, [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]), (8, [4, 6, 8, 10, 12]), (5, [3, 6, 9, 12]), (1, [12])],
)
def test_a_limit_of_the_numbers_pads_to_the_next_one(lengths, numbers):
    rule = PackingRule(lengths=lengths)
    assert rule.numbers(4, 3) == numbers
    places, groups = rule.pack(MARKS)
    length = min(n for n in numbers if n >= 6)
    assert groups == (length,)
    assert places[:, 6:].tolist() == [[0] * (length - 6), [12] * (length - 6)]


def test_samples_of_one_subset_stand_together():
    marks = torch.tensor([[1, 0, 1], [1, 1, 1]]).bool()
    assert subsets_of(marks) == [([0, 1], [0, 2]), ([1], [1])]


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels-last"])
def test_the_order_of_memory_of_features_is_kept(last):
    network = SegFormer("mit_nano", 5, 16).eval()
    images = torch.randn(4, 3, 3, 32, 32)
    if last:
        images = images.movedim(2, -1).contiguous().movedim(-1, 2)
    packed = network(images, fused=MARKS[None], packing=PackingRule().pack(MARKS)).features
    whole = network(images).features
    for x, y in zip(packed, whole, strict=True):
        assert x.movedim(2, -1).is_contiguous()
        there = MARKS.view(4, 3, 1, 1, 1)
        torch.testing.assert_close(x, y * there, rtol=1e-4, atol=1e-5)
