"""How the room is imported."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastseg.kernels
from fastseg.kernels import reference

CHECKOUT = Path(fastseg.kernels.__file__).parents[1]


in_a_checkout = pytest.mark.skipif(
    not (CHECKOUT / "setup.py").exists(), reason="installed: there is no folder to import"
)


@in_a_checkout
def test_the_short_name_imported_first_gives_the_same_modules():
    program = """
import kernels
import fastseg.kernels
import kernels.reference.pooling
from kernels import reference, testing
assert kernels is fastseg.kernels
assert reference is fastseg.kernels.reference
assert kernels.reference.pooling is fastseg.kernels.reference.pooling
assert testing.assert_as_accurate is fastseg.kernels.testing.assert_as_accurate
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@in_a_checkout
def test_the_short_name_imported_second_gives_the_same_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(CHECKOUT))
    before = dict(sys.modules)
    try:
        assert importlib.import_module("kernels") is fastseg.kernels
        pooling = importlib.import_module("kernels.reference.pooling")
        assert pooling is fastseg.kernels.reference.pooling
    finally:
        for name in sys.modules.keys() - before.keys():
            del sys.modules[name]


def test_every_export_exists():
    for module in (fastseg.kernels, fastseg.kernels.reference):
        assert all(hasattr(module, name) for name in module.__all__)
        assert sorted(set(module.__all__)) == sorted(module.__all__)


def test_the_losses_compile_to_one_graph():
    features = torch.randn(2, 2, 4, 8, 8, requires_grad=True)
    logits = torch.randn(2, 5, 32, 32, requires_grad=True)
    labels = torch.randint(0, 5, (2, 32, 32))
    pairing = torch.tensor([[0, 1], [1, 0]])
    noise = torch.randn(2, 2, 2, 4, 8, 8)

    def losses():
        other = features.detach() * 0.5
        return (
            reference.hybrid_prototype_distillation([features], [other], labels, 5, pairing),
            reference.fisher_regulariser(features, other, noise=noise),
            reference.logit_distillation(logits, logits.detach() * 0.5),
            reference.ohem_cross_entropy(logits, labels),
        )

    compiled = torch.compile(losses, backend="eager", fullgraph=True)()
    torch.testing.assert_close(compiled, losses())
