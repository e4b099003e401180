"""LayerNorm of the tokens of each level, alone and behind the residual sum with its factors.

The sum may have a bias in its branch, whose gradient comes along.

Providers: ``eager`` is the definition, torch's own operators; ``compile`` the definition under
``torch.compile``; ``fused`` are the kernels. The tokens are those of all modalities and samples of
one network, as a block of the encoder meets them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import in_double, largest_error
from fastseg.kernels import layer_norm, reference, residual_layer_norm

EPS = 1e-6
# relative to the largest element: a rounding of the result's dtype
SLACK = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
Results = tuple[Tensor, ...]


class Problem(NamedTuple):
    """x, branch, weight, bias and that of the branch, both gradients, and the images' factors."""

    x: Tensor
    branch: Tensor
    weight: Tensor
    bias: Tensor
    own: Tensor
    above: Tensor
    upstream: Tensor
    factor: Tensor


def alone(inputs: Problem, leaves: list[Tensor]) -> Results:
    """The definition."""
    x, _, weight, bias, _ = leaves
    return (reference.layer_norm(x, weight, bias, EPS),)


def behind_a_sum(inputs: Problem, leaves: list[Tensor]) -> Results:
    """The definition behind the sum."""
    x, branch, weight, bias, _ = leaves
    return reference.residual_layer_norm(x, branch, inputs.factor, weight, bias, EPS)


def with_a_bias(inputs: Problem, leaves: list[Tensor]) -> Results:
    """The definition behind the sum, with the gradient of a bias in the branch."""
    x, branch, weight, bias, own = leaves
    return reference.residual_layer_norm(x, branch, inputs.factor, weight, bias, EPS, own)


def fused_alone(inputs: Problem, leaves: list[Tensor]) -> Results:
    """The kernels."""
    x, _, weight, bias, _ = leaves
    return (layer_norm(x, weight, bias, EPS),)


def fused_behind_a_sum(inputs: Problem, leaves: list[Tensor]) -> Results:
    """The kernels with the sum."""
    x, branch, weight, bias, _ = leaves
    return residual_layer_norm(x, branch, inputs.factor, weight, bias, EPS)


def fused_with_a_bias(inputs: Problem, leaves: list[Tensor]) -> Results:
    """The kernels with the sum and the gradient of the bias."""
    x, branch, weight, bias, own = leaves
    return residual_layer_norm(x, branch, inputs.factor, weight, bias, EPS, own)


Form = Callable[[Problem, list[Tensor]], Results]
FORMS: dict[str, Form] = {
    "alone": alone,
    "behind-a-sum": behind_a_sum,
    "with-a-bias": with_a_bias,
}
FUSED: dict[str, Form] = {
    "alone": fused_alone,
    "behind-a-sum": fused_behind_a_sum,
    "with-a-bias": fused_with_a_bias,
}
# how often forward and backward must go over the tokens: each is read or written once
PASSES = {"alone": (2, 3), "behind-a-sum": (4, 5), "with-a-bias": (4, 5)}


def providers() -> dict[str, dict[str, Form]]:
    """Both forms of the implementations that can run here, by the provider's name."""
    found = {"eager": FORMS}
    if shapes.ON_GPU:
        found["fused"] = FUSED
    found["compile"] = {name: torch.compile(form, dynamic=False) for name, form in FORMS.items()}
    return found


PROVIDERS = providers()
# every level both ways; forward alone where it matters most
CASES = [(level, form, "fwd+bwd") for level in range(4) for form in FORMS]
# a bias changes nothing forward
CASES += [(0, form, "fwd") for form in ("alone", "behind-a-sum")]
ROWS = [
    (setting, *case, provider)
    for setting, provider in shapes.rows(PROVIDERS, ("fused",), shapes.settings(shapes.GRID[:2]))
    for case in (
        CASES if setting == shapes.Setting() and provider != "compile" else CASES[: 4 * len(FORMS)]
    )
    if setting.labels == "blobs"
]


@lru_cache(maxsize=1)
def problem(setting: shapes.Setting, level: int) -> Problem:
    """The inputs of a level; rows that follow each other share them."""
    m, b, c, h, w = setting.shape.levels[level]
    generator = torch.Generator(shapes.DEVICE).manual_seed(level)

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device=shapes.DEVICE)
        return drawn.to(setting.dtype)

    tokens = [normal(m * b, h, w, c) for _ in range(4)]
    factor = (torch.arange(m * b, device=shapes.DEVICE) % 8 != 7).to(setting.dtype) / 0.875
    return Problem(
        tokens[0], tokens[1], normal(c) * 0.2 + 1, normal(c), normal(c), tokens[2], tokens[3],
        factor.view(-1, 1, 1, 1),
    )  # fmt: skip


def run(form: Form, inputs: Problem, backward: bool) -> Results:
    """Results, and the gradients of everything that the form uses."""
    if not backward:
        with torch.no_grad():
            return form(inputs, list(inputs[:5]))
    leaves = [x.detach().requires_grad_() for x in inputs[:5]]
    results = form(inputs, leaves)
    used = leaves if len(results) == 2 else [leaves[0], *leaves[2:]]
    upstream = [inputs.above, inputs.upstream][-len(results) :]
    grads = torch.autograd.grad(results, used, upstream, allow_unused=True)
    return (*(x.detach() for x in results), *(x for x in grads if x is not None))


@pytest.mark.parametrize(("setting", "level", "form", "mode", "provider"), ROWS, ids=str)
def bench_layer_norm(
    measure: Measure, setting: shapes.Setting, level: int, form: str, mode: str, provider: str
) -> None:
    inputs, backward = problem(setting, level), mode == "fwd+bwd"

    def step() -> Results:
        return run(PROVIDERS[provider][form], inputs, backward)

    def check() -> float:
        eager = run(FORMS[form], inputs, backward)
        truth = run(FORMS[form], Problem(*in_double(inputs)), backward)
        return largest_error(step(), eager, truth, SLACK[setting.dtype])

    forward, both = PASSES[form][0], sum(PASSES[form])
    measure(
        step,
        provider=provider,
        case=f"{setting} level {level + 1} {form}",
        mode=mode,
        dtype=setting.dtype,
        bytes_moved=(both if backward else forward) * inputs.x.nbytes,
        check=check,
    )
