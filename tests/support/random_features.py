"""Features in double precision and errors of gradients, for the tests of regularisers."""

import torch


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make_pair(m=2, b=2, c=5, h=4, w=3, seed=0, scale=1.0):
    student = (normal(m, b, c, h, w, seed=seed) * scale).requires_grad_()
    return student, normal(m, b, c, h, w, seed=seed + 1) * scale


def relative(got, wanted):
    """Error of a gradient, relative to its norm."""
    return ((got - wanted).norm() / wanted.norm()).item()
