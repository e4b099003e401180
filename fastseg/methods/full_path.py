"""Full path: every step trains the complete set, a degraded set and single modalities together.

A reconstruction of the training strategy that CHARM (arXiv:2508.03060) describes, on the model of
the run: neither its code nor all of its equations are public. Its window-based interaction between
modalities (MPU) is not part of it. All modalities are encoded once; then fusions of the same
features go through the head in one pass, where BatchNorm sees all of them:

    full  = ohem(logits of all modalities)
    ohem  = ohem(logits of a degraded set, drawn for each sample)
    paths = 1/S sum_m ohem(logits of modality m alone), over S modalities of the step
    logit = mean over the degraded set and those modalities of KL(full || .), full constant
    dice  = mean over all that is decoded (off by default)

Each path keeps its own hard pixels. Fragile modalities, whose single paths have large losses, are
drawn more often into the degraded set of sample b:

    L_m  = bias-corrected exponential average of the loss of path m, one value per step
    s_m  = L_m / mean over m of L_m,  1 before the first value
    key  = temperature s_m + G[m, b],   G = -log(-log u), u uniform in (0, 1)
    kept = the k[b] modalities of the largest keys,  k[b] uniform over 1..M

so the first member is m with probability proportional to exp(temperature s_m), and further ones
are drawn alike from the rest (Gumbel top-k: sampling without replacement). Subsets are computed on
the device from integers that the host draws. The form of s, the temperature, the averages and
``logit`` (off by default) are choices of this reconstruction. Published: MiT-B2 on DELIVER.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fastseg.methods.base import Method, MethodOptions, NewModel, StepInputs, StepPlan, register
from fastseg.methods.baseline import OhemOptions, must_train_one, ohem_and_logit
from fastseg.methods.losses.labels import dice_loss
from fastseg.methods.stage import LossWeights, Stage
from fastseg.models.interface import Segmenter
from fastseg.pipelines.tools.settings import Natural, NotNegative, Range

RECORD = "path_record"
TEACHER = "teacher"
"""A network that learns on complete inputs alone, from which the student may start."""
_STEPS = 2**32


@dataclass(frozen=True)
class FullPathWeights(LossWeights):
    """Weight of every loss term; a term of weight 0 is not computed."""

    # the divergence is from the network's own full path, so no stage needs another network
    supervised: ClassVar[frozenset[str]] = LossWeights.supervised | {"full", "paths", "logit"}

    full: NotNegative = 1.0
    """Cross-entropy on hard pixels of the complete set of modalities."""
    paths: NotNegative = 1.0
    """Mean cross-entropy on hard pixels of single modalities."""
    logit: NotNegative = 0.0
    """Divergence of the other paths from the complete set's logits, which are constant."""


@dataclass(frozen=True)
class FullPathOptions(OhemOptions):
    """Draws of the modalities."""

    temperature: NotNegative = 1.0
    """Preference for modalities of large losses; 0: all alike."""
    score_decay: Annotated[float, Range(0, 0.9999)] = 0.99
    """Share of the earlier steps in the running losses of the single paths."""
    paths_per_step: Natural = 0
    """Modalities that are decoded alone in a step, drawn anew each step; 0: all of them."""


def running_losses(record: Tensor) -> Tensor:
    """``[M]``: average loss of every single path; of one without a value, the mean of the others.

    Args:
        record: ``[4, M]``: decayed sum and decayed number of the losses, then the sum and the
            number of the newest step, which are not in the former yet.
    """
    known = record[1] > 0
    values = torch.where(known, record[0] / record[1].clamp(min=1e-12), 0.0)
    mean = values.sum() / known.sum().clamp(min=1)
    return torch.where(known, values, mean)


def with_newest(record: Tensor, decay: float) -> Tensor:
    """The record with its newest step averaged in, and none that is newest; ``[4, M]``."""
    seen = record[3] > 0
    loss = record[2] / record[3].clamp(min=1e-12)
    total = torch.where(seen, decay * record[0] + (1 - decay) * loss, record[0])
    number = torch.where(seen, decay * record[1] + (1 - decay), record[1])
    return torch.stack([total, number, torch.zeros_like(total), torch.zeros_like(total)])


def fragile_subsets(losses: Tensor, uniform: Tensor, sizes: Tensor, temperature: float) -> Tensor:
    """Modalities of each sample by Gumbel top-k, see the module.

    Args:
        losses: ``[M]``, running losses; all zero before the first one.
        uniform: ``[M, B]`` int64 in ``[0, 2**32)``.
        sizes: ``[B]`` int64, from 1 to M.
        temperature: preference for large losses.

    Returns:
        ``[M, B]`` int64, 1 for a modality that is drawn; ``sizes`` of them for each sample.
    """
    mean = losses.double().mean()
    scores = torch.where(mean > 0, losses / mean.clamp(min=1e-12), 1.0)
    gumbel = -(-((uniform.double() + 0.5) / _STEPS).log()).log()
    keys = temperature * scores.unsqueeze(1) + gumbel
    places = keys.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
    return (places < sizes).long()


@register
class FullPath(Method):
    """One network whose step has a full, a degraded and single paths; a reconstruction."""

    name: ClassVar[str] = "full_path"
    networks: ClassVar[tuple[str, ...]] = (TEACHER, "student")
    weights: ClassVar[type[LossWeights]] = FullPathWeights
    options_type: ClassVar[type[MethodOptions]] = FullPathOptions
    seen: ClassVar[Mapping[str, str]] = {
        "student": "all modalities, random subsets and single ones"
    }

    options: FullPathOptions

    def check(self, name: str, stage: Stage) -> None:
        """One network learns from no other, and the method leaves out modalities itself."""
        must_train_one(self.name, name, stage)
        if stage.targets:
            raise ValueError(
                f"stage {name!r}: full_path learns from the labels and its own complete path, got "
                f"learns_from {stage.learns_from}: set it to nobody"
            )
        if stage.modalities != "full":
            raise ValueError(
                f"stage {name!r}: full_path encodes all modalities and draws the degraded sets "
                f"itself, got modalities {stage.modalities}: set it to full"
            )
        active = stage.losses.active().keys()
        if stage.learners == (TEACHER,) and active != {"full"}:
            raise ValueError(
                f"stage {name!r}: the {TEACHER} of full_path learns on complete inputs alone: give "
                f"the term full a weight and no other, got {', '.join(sorted(active))}"
            )
        if not active & {"ohem", "full", "paths"}:
            raise ValueError(
                f"stage {name!r}: logit compares the network with itself, and dice runs over what "
                "other terms decode: give ohem, full or paths a positive weight, too"
            )

    def check_models(self, stage: Stage, models: Mapping[str, Segmenter]) -> None:
        """Several fusions are decoded of the same features."""
        super().check_models(stage, models)
        for name in stage.learners:
            models[name].must_take("fused", "--method full_path")

    def build(self, network: str, new: NewModel) -> Segmenter:
        """The model of the run with a record of its single paths' losses, which is saved with it.

        As a buffer it is set back with a skipped step, as BatchNorm's statistics are.
        """
        model = new()
        if network != TEACHER:
            model.register_buffer(RECORD, torch.zeros(4, len(new.modalities)))
        return model

    def first_weights(
        self, stage: Stage, name: str, network: Segmenter, finished: Mapping[str, Segmenter]
    ) -> None:
        """Those of the network that the stage starts from; the record begins empty."""
        own = {RECORD: network.state_dict()[RECORD]} if name != TEACHER else {}
        network.load_state_dict(finished[stage.start_of(name)].state_dict() | own)

    def draw(self, plan: StepPlan) -> dict[str, Tensor]:
        """Numbers of the subsets, ``[M, B]`` and ``[B]``, the single paths ``[S]``, ``first [1]``.

        ``first`` is 1 in the first micro-batch of a step: the others draw from the same record.
        """
        generator = torch.Generator().manual_seed(plan.seeds("degraded sets"))
        m, size, rows = plan.modalities, plan.share.size(plan.batch), plan.share.rows(plan.batch)
        sizes = torch.randint(1, m + 1, (size,), generator=generator)
        uniform = torch.randint(0, _STEPS, (size, m), generator=generator)
        count = min(self.options.paths_per_step or m, m)
        generator.manual_seed(plan.seeds("single paths"))
        paths = torch.randperm(m, generator=generator)[:count].sort().values
        return {
            "uniform": uniform[rows].T.contiguous(),
            "sizes": sizes[rows],
            "paths": paths,
            "first": torch.tensor([int(plan.share.micro == 0)]),
        }

    def terms(self, step: StepInputs) -> dict[str, Tensor]:
        """Losses of all paths by name, as far as they are active."""
        active, draws = step.stage.losses.active(), step.draws
        (learner,) = step.stage.learners
        if learner == TEACHER:
            return {
                "full": ohem_and_logit(self.options, step.output_of(learner).logits, step.labels)[0]
            }
        record = step.modules[learner].get_buffer(RECORD)
        with torch.no_grad():
            newer = with_newest(record, self.options.score_decay)
            record.copy_(torch.where(draws["first"] > 0, newer, record))
        decoded = self._fusions(step, record)
        fused = torch.cat([*decoded.values()])
        logits = step.output_of(learner, fused=fused).logits
        logits = logits.view(len(fused), -1, *logits.shape[1:])
        parts = dict(
            zip(decoded, torch.split(logits, [len(x) for x in decoded.values()]), strict=True)
        )
        target = parts["full"][0].detach() if "logit" in active else None
        losses = {
            name: [
                ohem_and_logit(self.options, x, step.labels, None if name == "full" else target)
                for x in part
            ]
            for name, part in parts.items()
        }
        means = {name: torch.stack([x for x, _ in found]).mean() for name, found in losses.items()}
        terms: dict[str, Tensor] = {
            name: means[name] for name in ("ohem", "full", "paths") if name in active
        }
        if "dice" in active:
            distances = [dice_loss(x, step.labels) for part in parts.values() for x in part]
            terms["dice"] = torch.stack(distances).mean()
        if "paths" in losses:
            self._remember(step, record, torch.stack([x for x, _ in losses["paths"]]))
        if "logit" in active:
            others = [kl for name, found in losses.items() if name != "full" for _, kl in found]
            terms["logit"] = torch.stack(others).mean()
        return terms

    def _fusions(self, step: StepInputs, record: Tensor) -> dict[str, Tensor]:
        """Marks ``[P, M, B]`` int64 of the paths that the active terms need."""
        active, draws = step.stage.losses.active(), step.draws
        m, b = step.images.shape[:2]
        marks: dict[str, Tensor] = {}
        if active.keys() & {"ohem", "logit"}:
            marks["ohem"] = fragile_subsets(
                running_losses(record), draws["uniform"], draws["sizes"], self.options.temperature
            ).unsqueeze(0)
        if active.keys() & {"full", "logit"}:
            marks["full"] = torch.ones((1, m, b), dtype=torch.int64, device=step.images.device)
        if "paths" in active:
            alone = torch.arange(m, device=step.images.device) == draws["paths"].unsqueeze(1)
            marks["paths"] = alone.long().unsqueeze(2).expand(-1, m, b)
        return marks

    @torch.no_grad()
    def _remember(self, step: StepInputs, record: Tensor, losses: Tensor) -> None:
        """Add the losses ``[S]`` of all processes to the newest step; none without labels."""
        own = (step.labels.long() >= 0) & (step.labels != 255)
        weight = own.any().to(losses.dtype)
        seen = torch.stack([losses * weight, weight.expand(len(losses))])
        seen = step.mean_over_processes(seen).to(record.dtype)
        record[2:].index_add_(1, step.draws["paths"], seen)
