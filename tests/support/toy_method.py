"""A method that is not RobustSeg: two networks learn together, and from a third one.

``coach`` learns alone; then ``left`` and ``right`` learn from each other (the term ``agree``) and,
each sample with a weight that is drawn for it, from the coach (``guide``).
"""

from dataclasses import dataclass, replace

import torch

from fastseg import kernels
from fastseg.methods import LossWeights, Method, MethodOptions, Stage, register
from fastseg.pipelines.tools.settings import NotNegative, Positive, check_fields

NAME = "toy_mutual"


@dataclass(frozen=True)
class ToyWeights(LossWeights):
    """Weights of the terms."""

    agree: NotNegative = 0.0
    """How far the two networks are from their mean."""
    guide: NotNegative = 0.0
    """How far they are from the coach."""


@dataclass(frozen=True)
class ToyOptions(MethodOptions):
    """Options of the terms."""

    temperature: Positive = 2.0
    """Of the softmax."""

    def __post_init__(self):
        check_fields(self)


@register
class ToyMutual(Method):
    """See the module."""

    name = NAME
    networks = ("coach", "left", "right")
    compared = ("coach", "left")
    weights = ToyWeights
    options_type = ToyOptions

    def rate_factor(self, stage, network):
        return 0.5 if network == "right" else 1.0

    def draw(self, plan):
        generator = torch.Generator().manual_seed(plan.seeds("weight of a sample"))
        everyone = torch.randint(1, 9, (plan.share.size(plan.batch),), generator=generator)
        return {"weight": everyone[plan.share.rows(plan.batch)]}

    def terms(self, step):
        active, present = step.stage.losses.active(), step.draws.present
        outputs = [step.networks[n](step.seen(), present) for n in step.stage.learners]
        terms = {"ohem": sum(self._ohem(x.logits, step.labels) for x in outputs) / len(outputs)}
        shares = [(x.logits.float() / self.options.temperature).softmax(1) for x in outputs]
        if "agree" in active:
            mean = (shares[0] + shares[1]) / 2
            terms["agree"] = sum((share - mean).square().mean() for share in shares)
        if "guide" in active:
            (coach,) = step.stage.targets
            target = step.networks[coach](step.images).logits.float()
            target = (target / self.options.temperature).softmax(1)
            weight = step.draws["weight"].view(-1, 1, 1, 1) / 8
            far = [(weight * (share - target).square()).mean() for share in shares]
            terms["guide"] = far[0] + far[1]
        return terms

    def _ohem(self, logits, labels):
        return kernels.segmentation_loss(logits, labels, None, threshold=0.7, min_kept=1 / 16)[0]


def stages(steps, policy="drop"):
    """Both stages."""
    coach = Stage(
        trains="coach", start="random", losses=ToyWeights(), steps=steps, lr=1e-3, warmup_epochs=0
    )
    pair = replace(
        coach, trains="left+right", learns_from="coach", start="coach+random", modalities=policy,
        losses=ToyWeights(agree=1.0, guide=2.0),
    )  # fmt: skip
    return {"coach": coach, "pair": pair}
