"""The accuracy rule."""

import pytest
import torch

from fastseg.kernels.testing import assert_as_accurate


def test_no_worse_than_eager_passes():
    truth = torch.zeros(3)
    eager = torch.tensor([0.5, 0.0, 1.0])
    assert_as_accurate(torch.tensor([-0.5, 0.1, 1.0]), eager, truth, slack=0.11)
    assert_as_accurate(truth.bfloat16(), eager.bfloat16(), truth.double(), slack=0.0)


def test_one_worse_element_fails_and_is_named():
    truth = torch.zeros(2, 2)
    result = torch.tensor([[0.0, 0.2], [0.7, 0.0]])
    with pytest.raises(AssertionError, match=r"2 of 4 .* flat index 2: result 0\.7, truth 0"):
        assert_as_accurate(result, truth, truth, slack=0.1)


@pytest.mark.parametrize("where", ["result", "eager", "truth"])
def test_nan_fails_wherever_it_is(where):
    tensors = {name: torch.zeros(2) for name in ("result", "eager", "truth")}
    tensors[where][1] = torch.nan
    with pytest.raises(AssertionError, match=r"1 of 2 .* flat index 1"):
        assert_as_accurate(**tensors, slack=1.0)


def test_infinity_in_the_result_fails():
    zero = torch.zeros(1)
    with pytest.raises(AssertionError, match="result inf"):
        assert_as_accurate(torch.full((1,), torch.inf), zero, zero, slack=1e9)


def test_shapes_must_agree():
    with pytest.raises(AssertionError, match=r"result \(1,\), eager \(2,\)"):
        assert_as_accurate(torch.zeros(1), torch.zeros(2), torch.zeros(2), slack=0.0)
