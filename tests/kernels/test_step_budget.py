"""What the operators cost a step: launches, and no wait of the host."""

import pytest
import torch

from fastseg import kernels

pytestmark = pytest.mark.usefixtures("kernels")

K, B, M = 5, 2, 3
WIDTHS = (8, 16)


@pytest.fixture
def inputs(device):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device)

    def levels(modalities):
        return [normal(modalities, B, c, 8 >> i, 8 >> i) for i, c in enumerate(WIDTHS)]

    labels = torch.randint(0, K, (B, 32, 32), generator=generator).to(torch.uint8).to(device)
    pairing = torch.stack([torch.randperm(M, generator=generator) for _ in range(B)]).to(device)
    student = [x.requires_grad_() for x in levels(M)]
    logits = normal(B, K, 8, 8).requires_grad_()
    seed = torch.ones(1, dtype=torch.int64, device=device)
    return student, levels(M), logits, normal(B, K, 8, 8), labels, pairing, seed


def pooling(student, teacher, logits, target, labels, pairing, seed):
    return kernels.masked_prototype_pool(student[0], labels, K)[0].sum()


def hybrid(student, teacher, logits, target, labels, pairing, seed):
    return kernels.hybrid_prototype_distillation(student, teacher, labels, K, pairing)


def ifv(student, teacher, logits, target, labels, pairing, seed):
    return kernels.ifv_distillation(student, teacher, labels, K)


def segmentation(student, teacher, logits, target, labels, pairing, seed):
    return sum(kernels.segmentation_loss(logits, labels, target))


def paper_regulariser(student, teacher, logits, target, labels, pairing, seed):
    return kernels.representation_regularisation(student, teacher, samples=2, seed=seed)


def code_regulariser(student, teacher, logits, target, labels, pairing, seed):
    return kernels.representation_regularisation(
        student, teacher, samples=2, seed=seed, form="code"
    )


def tokens(operator):
    """The operator with the channels of a pixel next to each other, as encoders leave them."""

    def call(student, teacher, *others):
        sides = (
            [x.movedim(2, 4).contiguous().movedim(4, 2) for x in y] for y in (student, teacher)
        )
        return operator(*sides, *others)

    call.__name__ = f"{operator.__name__}_of_tokens"
    return call


# for all levels together: a copy of both sides into rows, which tokens are already for paper, and
# for paper two launches for the noise scale, two for the value, one for the gradient; for code one
# for the scale, three for the value, one for the gradient
@pytest.mark.parametrize(
    ("operator", "budget"),
    [
        (pooling, 3),
        (hybrid, 4),
        (ifv, 7),
        (segmentation, 9),
        (paper_regulariser, 6),
        (tokens(paper_regulariser), 5),
        (code_regulariser, 6),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_launches_and_waits(operator, budget, inputs, launched, monkeypatch):
    def wait(self, *_):
        raise AssertionError("the host waits for a value on the device")

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, wait)
    operator(*inputs).backward()
    monkeypatch.undo()
    assert len(launched) == budget, launched
