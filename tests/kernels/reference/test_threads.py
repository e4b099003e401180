"""Noise samples that are shared out to threads: the same sums, and nothing left behind."""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastseg.kernels import reference
from fastseg.kernels.reference import threads
from fastseg.kernels.reference.threads import sum_over_samples

LIKE = torch.zeros(1).expand(threads._SMALLEST + 1)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def small_work_is_shared(monkeypatch):
    monkeypatch.setattr(threads, "_SMALLEST", 0)


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


class Work:
    """Adds up the squares of the samples, and notes who did."""

    def __init__(self):
        self.shares = []

    def __call__(self, chosen):
        chosen = list(chosen)
        self.shares.append((chosen, threading.get_ident(), torch.get_num_threads()))
        return (torch.tensor([float(s * s) for s in chosen]).sum(), torch.tensor(len(chosen)))


@pytest.mark.parametrize(
    ("count", "samples", "number_of_lanes", "each"),
    [(1, 10, 1, 1), (2, 10, 2, 1), (8, 10, 4, 2), (8, 3, 3, 2), (2, 1, 1, 2)],
)
def test_every_sample_is_in_one_lane(count, samples, number_of_lanes, each, set_threads):
    set_threads(count)
    work = Work()
    total, number = sum_over_samples(work, samples, LIKE)
    assert total.item() == sum(s * s for s in range(samples))
    assert number.item() == samples
    assert sorted(s for chosen, _, _ in work.shares for s in chosen) == list(range(samples))
    assert len(work.shares) == number_of_lanes
    assert {own for _, _, own in work.shares} == {each}
    here = {who == threading.get_ident() for _, who, _ in work.shares}
    assert here == {number_of_lanes == 1}
    assert torch.get_num_threads() == count


def test_an_error_is_raised_here_and_the_threads_are_as_before(set_threads):
    set_threads(2)

    def work(chosen):
        raise ValueError("of a lane")

    with pytest.raises(ValueError, match="of a lane"):
        sum_over_samples(work, 4, LIKE)
    assert torch.get_num_threads() == 2


def test_lanes_have_no_gradients(set_threads):
    set_threads(2)
    x = torch.ones(3, requires_grad=True)
    (total,) = sum_over_samples(lambda chosen: (len(list(chosen)) * x.sum(),), 4, LIKE)
    assert total.item() == 12
    assert not total.requires_grad


def test_little_work_stays_here(set_threads):
    set_threads(2)
    work = Work()
    sum_over_samples(work, 6, LIKE[1:])
    assert [(chosen, who) for chosen, who, _ in work.shares] == [
        (list(range(6)), threading.get_ident())
    ]


@pytest.mark.usefixtures("small_work_is_shared")
def test_who_watches_operators_sees_them_all(set_threads):
    set_threads(2)
    x, t = (torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(i)) for i in b"ab")
    with Watch() as watch:
        reference.profile_regulariser(x, t, seed=1, samples=6)
    assert watch.names.count("aten::normal_") == 6


@pytest.mark.usefixtures("small_work_is_shared")
@pytest.mark.parametrize("name", ["profile_regulariser", "fisher_regulariser"])
def test_threads_change_the_regularisers_by_rounding_alone(name, set_threads):
    generator = torch.Generator().manual_seed(3)
    x, t = (torch.randn(2, 3, 8, 6, 5, generator=generator) for _ in "xt")
    found = []
    for count in (1, 2, 2, 3):
        set_threads(count)
        student = x.clone().requires_grad_()
        value = getattr(reference, name)(student, t, seed=5, samples=7)
        value.backward()
        found.append((value.detach(), student.grad))
    (one, slope), *others = found
    for value, gradient in others:
        torch.testing.assert_close(value, one, rtol=1e-5, atol=0)
        assert (gradient - slope).norm() <= 1e-5 * slope.norm()
    assert torch.equal(found[1][1], found[2][1])
