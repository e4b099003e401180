import pytest
import torch

from fastseg.engine.optim.kept_buffers import KeptBuffers


def make_buffers():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(3, generator=generator),
        torch.tensor(7),
        torch.randn(2, 2, generator=generator).bfloat16(),
        torch.tensor([True, False]),
        torch.empty(0),
    ]


@pytest.mark.parametrize("decision", [True, False, None])
def test_buffers_of_any_dtype_are_put_back_where_the_device_says_so(decision):
    buffers = make_buffers()
    before = [x.clone() for x in buffers]
    kept = KeptBuffers(buffers)
    for x in buffers:
        x.copy_(torch.full_like(x, float("nan") if x.is_floating_point() else 1))
    after = [x.clone() for x in buffers]
    kept.put_back(None if decision is None else torch.tensor(decision))
    wanted = after if decision is False else before
    for x, y in zip(buffers, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def test_no_buffers_are_nothing_to_put_back():
    KeptBuffers([]).put_back(torch.tensor(True))
