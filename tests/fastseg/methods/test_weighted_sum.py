import torch

from fastseg.methods.weighted_sum import weighted_sum


def test_the_sum_and_its_gradients_have_the_bits_of_separate_products():
    generator = torch.Generator().manual_seed(0)
    names, weights = "abcde", dict(zip("abcde", (1.0, 50.0, 0.01, 1 / 3, 0.1), strict=True))
    terms = {name: torch.rand((), generator=generator).requires_grad_() for name in names}
    terms["b"] = terms["b"].detach()  # does not learn
    got = weighted_sum(terms, weights)
    wanted = torch.stack([weights[name] * x for name, x in terms.items()]).sum()
    assert torch.equal(got, wanted)
    leaves = [x for x in terms.values() if x.requires_grad]
    found, plain = (torch.autograd.grad(3 * x, leaves) for x in (got, wanted))
    assert all(map(torch.equal, found, plain))
