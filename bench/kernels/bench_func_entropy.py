"""Representation regularisation of all levels, in both forms, and functional entropy of values.

Providers: ``official`` are the published loops (:mod:`bench.rivals.published_losses`), which
differentiate a gradient; ``eager`` is the definition, in closed form; ``compile`` the definition
under ``torch.compile``, a level at a time; ``fused`` are the kernels. The published loops exist for
the code form with ten samples only.

Each provider draws noise of its own. ``eager`` and ``fused`` are checked on given noise, one sample
and modality at the timed size, ``fused`` and ``compile`` on what they return for theirs: the value
and the norms of the gradients have to be the definition's up to the scatter of the draws. The
published loops are checked in float64 on given noise, at a quarter of a large size. The error is of
given noise, and the relative difference of the value where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.linalg import vector_norm as norm

from bench.conftest import Measure
from bench.harness import shapes
from bench.harness.accuracy import in_double, largest_error, value_and_gradients
from bench.rivals import published_losses
from fastseg.kernels import reference

TESTS = ["test_functional_entropy.py", "test_functional_entropy_noise.py"]
# relative to the largest element
SLACK, SLACK_DOUBLE = 1e-3, 1e-9
# of the value and of the norm of a gradient, for two draws of the noise: several times what other
# seeds give; the paper form divides by divergences near zero, and small maps scatter more
SCATTER = {"code": (0.02, 0.05), "paper": (0.05, 0.3) if shapes.ON_GPU else (0.2, 1.0)}
SEED = 5
GROUPS = 1 << 20 if shapes.ON_GPU else 1 << 12  # of the values
Regulariser = Callable[..., Tensor]


class Case(NamedTuple):
    """A form with a number of samples."""

    form: str
    samples: int

    def __str__(self) -> str:
        return f"{self.form} S={self.samples}"

    @property
    def options(self) -> dict[str, Any]:
        """Of the public operator; the published value of the code form."""
        return {"form": self.form, "samples": self.samples, "normalise": self.form == "paper"}

    def noise(self, x: Tensor) -> tuple[int, ...]:
        """Shape of a level's noise."""
        return (self.samples, *([2] if self.form == "code" else []), *x.shape)


CODE = Case("code", 10)


class Draws:
    """Noise that is drawn when a sample of it is asked for, where a compiler can see it."""

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        self.shape, self.device = torch.Size(shape), device

    def __getitem__(self, sample: int) -> Tensor:
        return torch.randn(self.shape[1:], device=self.device)


def official(student: list[Tensor], teacher: list[Tensor], case: Case, noise: Any = None) -> Tensor:
    """The published loops."""
    return published_losses.representation_regularisation(student, teacher, case.samples, noise)


def eager(student: list[Tensor], teacher: list[Tensor], case: Case, noise: Any = None) -> Tensor:
    """The definition."""
    return reference.representation_regularisation(
        student, teacher, seed=SEED, noise=noise, **case.options
    )


@partial(torch.compile, dynamic=False)
def _compiled_level(student: Tensor, teacher: Tensor, case: Case) -> Tensor:
    draws: Any = [Draws(case.noise(student), student.device)]
    return reference.representation_regularisation(
        [student], [teacher], noise=draws, **case.options
    )


def compiled(student: list[Tensor], teacher: list[Tensor], case: Case) -> Tensor:
    """The definition, compiled for each level."""
    levels = zip(student, teacher, strict=True)
    return torch.stack([_compiled_level(x, t, case) for x, t in levels]).sum()


def providers() -> dict[str, Regulariser]:
    """Implementations that can run here, by the provider's name."""
    found: dict[str, Regulariser] = {"official": official, "eager": eager}
    if shapes.ON_GPU:
        from fastseg.kernels.entropy.regularisation import representation_regularisation

        seed = torch.tensor([SEED], device=shapes.DEVICE)
        found["fused"] = lambda student, teacher, case, noise=None: representation_regularisation(
            student, teacher, seed=seed, noise=noise, **case.options
        )
    return {**found, "compile": compiled}


def rows() -> list[tuple[Case, shapes.Setting, str]]:
    """Case, setting and provider of every row.

    A compiler for the CPU takes a minute for the code form, in vain, so it is left out there.
    """
    # there are no labels here
    settings = [setting for setting in shapes.settings() if setting.labels == "blobs"]
    kept = [name for name in PROVIDERS if shapes.ON_GPU or name != "compile"]
    ours = [name for name in PROVIDERS if name != "official"]
    found = [(CODE, *row) for row in shapes.rows(kept, ("fused",), settings)]
    found += [(Case("paper", 2), *row) for row in shapes.rows(ours, ("fused",), settings[:3])]
    return found + [(Case("paper", 10), settings[0], name) for name in ours if name != "compile"]


PROVIDERS = providers()
ROWS = rows()


@lru_cache(maxsize=1)
def features(setting: shapes.Setting) -> tuple[list[Tensor], list[Tensor]]:
    """Both networks' features, channels last; rows that follow each other share them."""
    student, teacher = (shapes.make_features(setting.shape, setting.dtype, i, True) for i in (1, 2))
    return student, teacher


def run(loss: Regulariser, student: list[Tensor], *others: Any) -> tuple[Tensor, ...]:
    """Value and gradients."""
    return value_and_gradients(lambda leaves: loss(leaves, *others), student)


@pytest.mark.parametrize(("case", "setting", "provider"), ROWS, ids=str)
def bench_func_entropy(
    measure: Measure, case: Case, setting: shapes.Setting, provider: str
) -> None:
    student, teacher = features(setting)
    step = partial(run, PROVIDERS[provider], student, teacher, case)

    def check() -> float:
        if provider == "official":
            return error_of_loops(case, setting)
        apart = 0.0 if provider == "eager" else scatter(step(), case, setting)
        return apart if provider == "compile" else error_on_given_noise(provider, case, setting)

    measure(
        step,
        provider=provider,
        case=f"{case} {setting}",
        mode="fwd+bwd",
        dtype=setting.dtype,
        bytes_moved=3 * sum(x.nbytes for x in student),
        check=check,
    )


def given(case: Case, setting: shapes.Setting) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Features and noise in float32."""
    student, teacher = features(setting)
    generator = torch.Generator(shapes.DEVICE).manual_seed(6)
    noise = [torch.randn(case.noise(x), generator=generator, device=shapes.DEVICE) for x in student]
    return student, teacher, noise


def error_on_given_noise(provider: str, case: Case, setting: shapes.Setting) -> float:
    """Hold a provider to the definition in float64 on one sample and modality."""
    one = replace(setting, shape=replace(setting.shape, batch=1, modalities=1))
    student, teacher, noise = given(case, one)
    plain = run(eager, student, teacher, case, noise)
    exact = run(eager, *map(in_double, (student, teacher)), case, in_double(noise))
    return largest_error(
        run(PROVIDERS[provider], student, teacher, case, noise), plain, exact, SLACK
    )


def error_of_loops(case: Case, setting: shapes.Setting) -> float:
    """Hold the loops to the definition in float64; the error of their float32 results."""
    side = max(128, setting.shape.side // 4)
    quarter = replace(setting, shape=replace(setting.shape, side=side))
    student, teacher, noise = given(case, quarter)
    double = [in_double(x) for x in (student, teacher, noise)]
    exact = run(eager, *double[:2], case, double[2])
    largest_error(run(official, *double[:2], case, double[2]), exact, exact, SLACK_DOUBLE)
    return largest_error(run(official, student, teacher, case, noise), exact, exact, 0.1)


def scatter(results: Sequence[Tensor], case: Case, setting: shapes.Setting) -> float:
    """Hold results to those of the definition's noise; the relative difference of the value."""
    wanted = run(eager, *features(setting), case)
    norms = [torch.stack([norm(x, dtype=torch.float32) for x in xs]) for xs in (results, wanted)]
    apart: list[float] = (norms[0] / norms[1] - 1).abs().tolist()
    of_value, of_gradient = SCATTER[case.form]
    assert apart[0] <= of_value, f"the value is {apart[0]:.1%} from that of other noise"
    assert max(apart) <= of_gradient, f"a gradient's norm is {max(apart):.1%} from another's"
    return apart[0]


def entropies() -> dict[str, Callable[[Tensor], Tensor]]:
    """Functional entropy of values, by the name of the provider."""
    found = {"eager": reference.functional_entropy}
    if shapes.ON_GPU:
        from fastseg.kernels.entropy.regularisation import functional_entropy

        found["fused"] = functional_entropy
    found["compile"] = torch.compile(reference.functional_entropy, dynamic=False)
    return found


ENTROPIES = entropies()


@pytest.mark.parametrize("provider", ENTROPIES)
def bench_entropy_of_values(measure: Measure, provider: str) -> None:
    generator = torch.Generator(shapes.DEVICE).manual_seed(7)
    values = [torch.rand((10, GROUPS), generator=generator, device=shapes.DEVICE)]

    def through(entropy: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return value_and_gradients(lambda leaves: entropy(leaves[0]).sum(), inputs)

    step = partial(through, ENTROPIES[provider], values)

    def check() -> float:
        exact = through(ENTROPIES["eager"], in_double(values))
        return largest_error(step(), through(ENTROPIES["eager"], values), exact, SLACK)

    measure(
        step,
        provider=provider,
        case=f"values 10x{GROUPS}",
        mode="fwd+bwd",
        dtype=torch.float32,
        bytes_moved=2 * values[0].nbytes,
        check=check,
    )
