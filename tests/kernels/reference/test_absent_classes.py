"""Classes that a sample lacks: prototypes are compared as if K counted only those that it has."""

import pytest
import torch

from fastseg.kernels import reference
from tests.support.optional_hypothesis import given, settings, st


def divergence_of(features, labels, num_classes):
    """Divergence of pooled prototypes, times K, and the student's gradient."""
    student, teacher = (x.clone().requires_grad_() for x in features)
    rows, counts = reference.masked_prototype_pool(student, labels, num_classes)
    targets, _ = reference.masked_prototype_pool(teacher, labels, num_classes)
    pairing = torch.arange(len(student)).expand(labels.shape[0], -1)
    loss = reference.prototype_divergence(rows, targets, counts, pairing) * num_classes
    (grad,) = torch.autograd.grad(loss, student)
    return rows.detach(), loss.detach(), grad


@pytest.mark.fault("F11")
@settings(deadline=None, max_examples=60)
@given(k=st.integers(1, 254), there=st.integers(0, 5), seed=st.integers(0, 2**31))
def test_what_is_absent_changes_nothing(k, there, seed):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randperm(k, generator=generator)[:there].sort().values
    features = torch.randn(2, 2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    # every present class has a pixel in both samples; without any all are ignored
    few = torch.full((2, 16), 255)
    if len(classes):
        few = torch.arange(32).reshape(2, 16) % len(classes)
    labels = torch.cat([classes, torch.full((256 - len(classes),), 255)])[few].reshape(2, 4, 4)
    rows, loss, grad = divergence_of(features, labels, k)
    assert torch.isfinite(rows).all()
    assert torch.isfinite(grad).all()
    absent = torch.ones(k, dtype=torch.bool)
    absent[classes] = False
    assert (rows[:, :, absent] == 0).all()
    if len(classes) < 2:  # one class alone has nothing to be compared with
        assert loss == 0
        assert (grad == 0).all()
        return
    dense = divergence_of(features, few.reshape(2, 4, 4), len(classes))
    assert loss > 0
    for found, wanted in zip((rows[:, :, classes], loss, grad), dense, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
