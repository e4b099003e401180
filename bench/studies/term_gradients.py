"""Size of every loss term's gradient at the features of the student, beside the cross-entropy's.

    python bench/studies/term_gradients.py

A weight says little about a term: what counts is the gradient that reaches the features. For each
case the terms of RobustSeg are computed with weight 1 on batches of synthetic scenes, and the norm
of their gradients with respect to the features ``[M', B, C_i, h_i, w_i]`` of each level is taken,
through the head for those on logits. Cases with training use the networks of a short run of the
demo; the others have random weights, as at the beginning of a training without ImageNet weights.
Tables go to ``bench/results/term_gradients.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

from fastseg.config.presets.registry import get_preset
from fastseg.config.run import TrainConfig
from fastseg.config.sections import ModelConfig, SyntheticData
from fastseg.engine.context import RunContext
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.trainer import Trainer
from fastseg.evaluation.validation import Validation
from fastseg.methods.robustseg import LossOptions, loss_terms
from fastseg.methods.seeds import Share, derive_seed
from fastseg.methods.step_draws import draw_step
from fastseg.models import Segmenter
from fastseg.pipelines import Batch, build_loader
from fastseg.pipelines.synthetic import SyntheticConfig, generate

RESULT = Path(__file__).parents[1] / "results" / "term_gradients.md"
FORMS = {
    "ohem": LossOptions(),
    "logit": LossOptions(),
    "hpdm, paper": LossOptions(hpdm="paper"),
    "hpdm, code": LossOptions(hpdm="code"),
    "rrm, paper": LossOptions(rrm="paper"),
    "rrm, code": LossOptions(rrm="code"),
    "rrm, code-normalised": LossOptions(rrm="code-normalised"),
}


@dataclass(frozen=True)
class Case:
    """Networks and shapes that are measured."""

    backbone: str
    size: int
    batch: int
    steps: int = 0
    """Steps of each stage before the measurement; 0: random weights."""

    @property
    def label(self) -> str:
        """Heading of the case."""
        state = f"after {self.steps} steps of each stage" if self.steps else "random weights"
        return f"{self.backbone}, {self.size} px, {self.batch} samples, {state}"


CASES = (
    Case("mit_nano", 128, 8),
    Case("mit_nano", 128, 8, steps=600),
    Case("mit_b0", 256, 2),
    Case("mit_b0", 512, 2),
    Case("mit_b0", 1024, 1),
)


@dataclass(frozen=True)
class Options:
    """Cases to measure, and where."""

    batches: int = 4
    """Batches per case, each with other samples, modalities and pairings."""
    only: str = ""
    """Measure the cases whose heading contains this text."""
    folder: Path = Path("runs/term-gradients")
    """Folder of scenes and runs."""
    table: Path = RESULT


def main() -> None:
    """Measure every case and write the tables."""
    options = tyro.cli(Options, description=__doc__)
    torch.manual_seed(0)
    parts = [measure(case, options) for case in CASES if options.only in case.label]
    text = "\n".join(parts)
    print(text)
    options.table.parent.mkdir(parents=True, exist_ok=True)
    options.table.write_text(text, encoding="utf-8")


def measure(case: Case, options: Options) -> str:
    """The table of one case: norms over the levels, and in all as a share of cross-entropy's."""
    context, networks = prepared(case, options)
    found: dict[str, list[list[float]]] = {form: [] for form in FORMS}
    for step, batch in enumerate(batches(context.config, options.batches)):
        for form, norms in norms_of(context, networks, batch, step):
            found[form].append(norms)
    rows = {
        form: [mean(level) for level in zip(*norms, strict=True)] for form, norms in found.items()
    }
    whole = {form: math.hypot(*levels) for form, levels in rows.items()}
    head = "| term, weight 1 | level 1 | level 2 | level 3 | level 4 | all | over ohem |\n"
    lines = [
        f"| {form} | {' | '.join(f'{x:.3g}' for x in levels)} | {whole[form]:.3g} "
        f"| {whole[form] / whole['ohem']:.3g} |\n"
        for form, levels in rows.items()
    ]
    return f"### {case.label}\n\n{head}|---|---|---|---|---|---|---|\n{''.join(lines)}"


def mean(values: tuple[float, ...]) -> float:
    """Root of the mean square, as norms of different samples add."""
    return math.sqrt(sum(x * x for x in values) / len(values))


def prepared(case: Case, options: Options) -> tuple[RunContext, dict[str, Segmenter]]:
    """The context of a case and its teacher and student."""
    base = get_preset("demo_robustseg")
    name = f"{case.backbone}-{case.size}-{case.steps}"
    model = base.model
    if case.backbone != model.backbone:
        model = ModelConfig(backbone=case.backbone)
    data = replace(
        base.data,
        root=options.folder / f"scenes-{case.size}",
        size=case.size,
        batch_size=case.batch,
        cache=False,
    )
    stages = {
        key: replace(stage, modalities_per="batch", steps=case.steps or 1)
        for key, stage in base.stages.items()
    }
    config = replace(
        base, name=name, out=options.folder, data=data, model=model, stages=stages,
        synthetic=SyntheticData(train=40 if case.size > 128 else 600, val=8, size=case.size),
    )  # fmt: skip
    scenes = SyntheticConfig(
        out=data.root, size=case.size, train=config.synthetic.train, val=8, seed=0
    )
    generate(scenes, progress=False)
    if not case.steps:
        context = RunContext(replace(config, precision="fp32"))
        return context, {n: context.new_network(i, n).train() for i, n in enumerate(stages)}
    with RunFolder(config) as run:
        context = RunContext(run.config)
        Trainer(context, run, Validation).fit()
        files = run.network_files()
        return context, {n: context.load_network(path, n).train() for n, path in files.items()}


def batches(config: TrainConfig, count: int) -> Iterator[Batch]:
    """Training batches of a config."""
    loader = build_loader(config.data, train=True, seed=0)
    try:
        yield from loader.batches(0, count)
    finally:
        loader.close()


def norms_of(
    context: RunContext, networks: dict[str, Segmenter], batch: Batch, step: int
) -> Iterator[tuple[str, list[float]]]:
    """Per form the norms of its gradient at the four levels of the student's features."""
    stage, count = context.config.stages["student"], len(context.modalities)

    def seeds(purpose: str) -> int:
        return derive_seed(0, 1, step, purpose)

    draws = draw_step(
        context.method, stage, seeds, modalities=count, batch=len(batch.labels), share=Share(),
        present=context.method.present(stage, count, seeds), sample_ids=batch.sample_ids,
        device=torch.device("cpu"), noise=seeds("noise"), rate=0.0,
    )  # fmt: skip
    with torch.no_grad():
        teacher = networks["teacher"].eval()(batch.images)
    output = networks["student"].train()(draws.of(batch.images), draws.present)
    for form, options in FORMS.items():
        term = form.split(",")[0]
        values = loss_terms({term: 1.0}, options, output, teacher, batch.labels, draws)
        grads = torch.autograd.grad(
            values[term], output.features, retain_graph=True, allow_unused=True
        )
        yield form, [norm(grad) for grad in grads]


def norm(grad: Tensor | None) -> float:
    """Norm of a gradient; 0 of one that is not there."""
    return 0.0 if grad is None else float(torch.linalg.vector_norm(grad.double()))


if __name__ == "__main__":
    main()
