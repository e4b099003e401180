"""The segmentation losses read and write logits as they lie in memory."""

import pytest
import torch

from fastseg.kernels.segmentation.loss import layout, segmentation_loss
from tests.kernels.segmentation.test_segmentation_loss import check, make_inputs, run

pytestmark = pytest.mark.usefixtures("kernels")

LAST = torch.channels_last
LAYOUTS = {"both": (True, True), "student": (True, False), "teacher": (False, True)}


def arranged(x, channels_last):
    """The same logits, the classes side by side or apart."""
    return x.to(memory_format=LAST) if channels_last else x.contiguous()


@pytest.mark.parametrize("last", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize(
    ("classes", "dtype", "temperature", "chunk"),
    [
        (5, torch.bfloat16, 1.0, 4),
        (4, torch.float16, 1.0, 4),
        (7, torch.float32, 1.0, 2),
        (3, torch.bfloat16, 2.0, 2),
    ],
)
def test_every_layout_gives_the_same_bits(classes, dtype, temperature, chunk, last, device):
    logits, labels, teacher = make_inputs((2, classes, 2, 3, 2), device, dtype)
    wanted = run(segmentation_loss, logits, labels, teacher, temperature=temperature)
    x, t = arranged(logits, last[0]), arranged(teacher, last[1])
    assert layout(x, t, temperature)["CHUNK"] == chunk
    got = run(segmentation_loss, x, labels, t, temperature=temperature)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert got[2].stride() == x.stride()


@pytest.mark.parametrize("classes", [19, 25])
def test_the_classes_of_the_data_sets_side_by_side(classes, device):
    logits, labels, teacher = make_inputs((1, classes, 2, 3, 4), device, torch.bfloat16)
    check(arranged(logits, True), labels, arranged(teacher, True))


def test_side_by_side_at_the_size_of_the_labels_without_a_teacher(device):
    logits, labels, _ = make_inputs((1, 6, 2, 3, 1), device)
    check(arranged(logits, True), labels, None)


def test_the_exact_maximum_serves_side_by_side(device):
    logits, labels, teacher = make_inputs((1, 5, 2, 2, 2), device)
    logits[:, 0, 0], logits[:, 0, 1] = 500.0, -500.0
    logits[:, 1, 0], logits[:, 1, 1] = -500.0, 500.0
    wanted = run(segmentation_loss, logits, labels, teacher)
    got = run(segmentation_loss, arranged(logits, True), labels, arranged(teacher, True))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("last", [(False, False), *LAYOUTS.values()], ids=str)
def test_logits_are_not_copied(last, device, monkeypatch):
    logits, labels, teacher = make_inputs((1, 3, 2, 2, 1), device)
    x, t = arranged(logits, last[0]), arranged(teacher, last[1])
    contiguous, copied = torch.Tensor.contiguous, []

    def watched(self, *args, **kwargs):
        made = contiguous(self, *args, **kwargs)
        copied.extend([tuple(self.shape)] * (made.data_ptr() != self.data_ptr()))
        return made

    monkeypatch.setattr(torch.Tensor, "contiguous", watched)
    run(segmentation_loss, x, labels, t)
    assert copied == []
    run(segmentation_loss, x[..., :1], labels[..., :1], t[..., :1])
    assert len(copied) >= 2  # what is neither contiguous nor channels-last is, in each pass
