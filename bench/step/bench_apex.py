"""NVIDIA apex against PyTorch: steps of Adam and of LAMB, and LayerNorm in both passes.

A step updates all tensors of M-SegFormer on MiT-B0 or B2, in float32, in the engine's two groups.
Of Adam, ``eager`` is torch's AdamW tensor by tensor, ``foreach`` the same over lists of tensors,
``torch_fused`` its fused form and ``apex`` FusedAdam, these two as the engine runs them, with the
decision to skip the step read on the device. Of LAMB, which torch does not have, ``eager`` is the
definition tensor by tensor and ``apex`` FusedMixedPrecisionLamb. Before one is timed, three of its
steps are compared with those of ``eager`` in float64.

LayerNorm is that of the tokens of a level, all images and modalities of a step at once, weights in
the dtype of the tokens: ``eager`` is torch's, ``compile`` the same under ``torch.compile``,
``apex`` FusedLayerNorm.

Where NVIDIA apex is not installed its rows say so; `docs/howto/make-it-fast.md` has the commands.
`pip install apex` is another project.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import in_double, largest_error
from bench.harness.report import APEX
from fastseg.config.sections import OptimConfig
from fastseg.engine.optim import nvidia_apex
from fastseg.engine.optim.nvidia_apex import ApexOptimizer
from fastseg.engine.optim.optimizer import build_optimizer, set_learning_rate
from fastseg.models import model_builder

TESTS = ["test_bench_apex.py"]
# so large that a step without the decay, or with it on other tensors, fails the check
LR, CONFIG = 1e-2, OptimConfig(weight_decay=0.1)
CHECKED_STEPS = 3
EMBED_DIM = 768  # of the published head
# relative: apex corrects the bias of the second moment in float32, where 1 - 0.999 has five digits
SLACK_STEP = 1e-4


class Lamb(torch.optim.Optimizer):
    """LAMB tensor by tensor: AdamW's direction, scaled to the norm of the tensor where it decays.

    Source: arXiv:1904.00962, algorithm 2. As in apex, tensors without weight decay, and steps where
    one of the norms is zero, are not scaled.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(list(groups), {"lr": 0.0, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step of all tensors."""
        for group in self.param_groups:
            for p in group["params"]:
                direction = self._direction(p, group)
                if group["weight_decay"]:
                    ratio = p.norm() / direction.norm()
                    direction *= ratio.where(ratio.isfinite() & (ratio > 0), 1.0)
                p.sub_(direction, alpha=group["lr"])

    def _direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        state["step"] += 1
        state["mean"].lerp_(p.grad, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        mean = state["mean"] / (1 - beta1 ** state["step"])
        square = state["square"] / (1 - beta2 ** state["step"])
        return mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * p


# one of torch.optim's kind, or what the engine calls it
Kind = str | Callable[..., torch.optim.Optimizer]
METHODS: dict[str, dict[str, Kind]] = {
    "adam": {
        "eager": partial(torch.optim.AdamW, foreach=False, fused=False),
        "foreach": partial(torch.optim.AdamW, foreach=True),
        "torch_fused": "adamw",
        APEX: "apex_adam",
    },
    "lamb": {"eager": Lamb, APEX: "apex_lamb"},
}


def why_not(provider: str) -> str | None:
    """Reason why a provider cannot run here, or None if it can."""
    reason = nvidia_apex.why_not_on(shapes.DEVICE) if provider == APEX else None
    if reason == "not installed":
        return "NVIDIA apex is not installed"
    return reason and f"apex: {reason}"


class Steps:
    """The steps of one optimizer on copies of some weights.

    Attributes:
        params: the copies.
    """

    def __init__(self, kind: Kind, weights: Iterable[Tensor]) -> None:
        self.params = [nn.Parameter(weight.clone()) for weight in weights]
        self.skipped = torch.zeros((), device=self.params[0].device)
        module = nn.ParameterList(self.params)
        if isinstance(kind, str):
            self.optimizer = build_optimizer(module, CONFIG, kind)
        else:
            groups = [
                {name: group[name] for name in ("params", "weight_decay")}
                for group in build_optimizer(module, CONFIG).param_groups
            ]
            self.optimizer = kind(groups, betas=(CONFIG.beta1, CONFIG.beta2), eps=CONFIG.eps)
        if kind == "adamw":
            self.optimizer.found_inf = self.skipped  # type: ignore[attr-defined]
        set_learning_rate(self.optimizer, LR)
        self.set_gradients(0)

    def set_gradients(self, step: int) -> None:
        """Those of a step; apex's LAMB leaves its direction in their place."""
        device = self.skipped.device
        generator = torch.Generator(device).manual_seed(step)
        for p in self.params:
            # the same numbers for every dtype
            p.grad = torch.randn(p.shape, generator=generator, device=device).to(p.dtype)

    def __call__(self) -> None:
        """One step with the gradients as they are."""
        if isinstance(self.optimizer, ApexOptimizer):
            self.optimizer.step(self.skipped)
        else:
            self.optimizer.step()

    def checked(self) -> list[Tensor]:
        """The weights after a few steps with gradients of their own."""
        for step in range(CHECKED_STEPS):
            self.set_gradients(step)
            self()
        return [p.detach() for p in self.params]


@functools.cache
def weights(backbone: str) -> list[Tensor]:
    """Every tensor of a network at its start, on ``shapes.DEVICE``."""
    name = f"mit_{backbone}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = model_builder(name)(
            name, shapes.NUM_CLASSES, (), embed_dim=EMBED_DIM, dropout=0.1, drop_path=0.1,
            norm_momentum=0.1,
        )  # fmt: skip
    return [p.detach().to(shapes.DEVICE) for p in network.parameters()]


def steps_of() -> list[tuple[str, str, str]]:
    """Method, backbone and provider of each row."""
    return [(m, b, p) for m in METHODS for b in ("b0", "b2") for p in METHODS[m]]


@pytest.mark.parametrize(("method", "backbone", "provider"), steps_of())
def bench_optimizer_step(measure: Measure, method: str, backbone: str, provider: str) -> None:
    kinds, start, missing = METHODS[method], weights(backbone), why_not(provider)

    def check() -> float:
        truth = Steps(kinds["eager"], in_double(start)).checked()
        eager = Steps(kinds["eager"], start).checked()
        return largest_error(Steps(kinds[provider], start).checked(), eager, truth, SLACK_STEP)

    measure(
        # what is not timed is not built
        Steps(kinds["eager" if missing else provider], start),
        provider=provider,
        case=f"{method} mit_{backbone} {len(start)} tensors",
        mode="step",
        dtype=torch.float32,
        # reads weight, gradient and two moments; writes all but the gradient
        bytes_moved=7 * sum(x.nbytes for x in start),
        check=check,
        missing=missing,
    )


TOKENS = shapes.PAPER if shapes.ON_GPU else shapes.Shape(side=256)
SLACK_NORM = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
EPS = 1e-6  # of the network's blocks


def norm_of(provider: str, channels: int, dtype: torch.dtype) -> nn.Module:
    """A LayerNorm over the last axis, its weights and biases drawn around 1 and 0."""
    network = nn.Sequential(nn.LayerNorm(channels, eps=EPS))
    generator = torch.Generator().manual_seed(0)
    for p, mean in zip(network.parameters(), (1.0, 0.0), strict=True):
        # numbers that bfloat16 has, so that all dtypes compute the same
        drawn = torch.randn(channels, generator=generator).bfloat16()
        p.data = (mean + drawn / 8).bfloat16().to(shapes.DEVICE, dtype)
    if provider == APEX:
        nvidia_apex.use_layer_norm(network)
    return torch.compile(network, dynamic=False) if provider == "compile" else network


def both_ways(norm: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The result, and the gradients of tokens, weight and bias."""
    x = x.detach().requires_grad_()
    y = norm(x)
    return y.detach(), *torch.autograd.grad(y, (x, *norm.parameters()), grad)


def norms() -> list[tuple[shapes.Setting, int, str]]:
    """Setting, level and provider of each row; compiled anew for every level, so at one setting."""
    first = shapes.Setting(TOKENS)
    others = [shapes.Setting(TOKENS, dtype) for dtype in shapes.DTYPES[1:]]
    others.append(shapes.Setting(replace(TOKENS, backbone="b2")))
    found = [(first, level, p) for level in range(4) for p in ("eager", APEX, "compile")]
    return found + [(s, level, p) for s in others for level in range(4) for p in ("eager", APEX)]


@pytest.mark.parametrize(("setting", "level", "provider"), norms(), ids=str)
def bench_layer_norm(measure: Measure, setting: shapes.Setting, level: int, provider: str) -> None:
    dtype, missing = setting.dtype, why_not(provider)
    m, b, c, h, w = setting.shape.levels[level]
    generator = torch.Generator(shapes.DEVICE).manual_seed(level)
    x, grad = torch.randn((2, m * b, h, w, c), generator=generator, device=shapes.DEVICE).to(dtype)
    step = partial(both_ways, norm_of("eager" if missing else provider, c, dtype), x, grad)

    def check() -> float:
        truth = both_ways(norm_of("eager", c, torch.float64), x.double(), grad.double())
        eager = both_ways(norm_of("eager", c, dtype), x, grad)
        return largest_error(step(), eager, truth, SLACK_NORM[dtype])

    measure(
        step,
        provider=provider,
        case=f"norm mit_{setting.shape.backbone} {m * b}x{h}x{w}x{c}",
        mode="fwd+bwd",
        dtype=dtype,
        # x and the gradient are read, x again for the gradient, two of the size are written
        bytes_moved=5 * x.nbytes,
        check=check,
        missing=missing,
    )
