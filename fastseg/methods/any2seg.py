"""A reconstruction of Any2Seg (arXiv:2407.11351): a student learns from a vision-language model.

    loss = ohem + inter + intra + logit

The student learns on a random subset of the modalities, and its embedding of each picture,

    e[m, b] = normalise(W mean_pixels F_4[m, b])     W: C_4 -> d, trained with the student,

learns the similarities that a frozen vision-language model sees between the modalities of a sample
(``inter``) and between pictures and sentences about the scenes (``intra``), see
`fastseg.methods.losses.language`. Language guidance (LSCD) and fusion (MFF, ``--model.fusion mff``,
see `fastseg.models.fusion`) follow the paper's description. **Its equations, loss weights,
temperature and schedule are not public in full, and neither is its code**: those here are choices.
So are the model, CLIP in place of LanguageBind, and the sentences of
`fastseg.vision_language.prompts` in place of captions. Scores of this method are not Any2Seg's. The
distillation of a teacher's logits is there for comparison and off by default.

Embeddings are those of the files, without augmentation, made once before the stage and kept on
disk. Nothing of the model is needed to evaluate a student.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastseg.errors import ConfigError
from fastseg.methods.base import (
    Method,
    MethodOptions,
    NewModel,
    StepInputs,
    StepPlan,
    Surroundings,
    register,
)
from fastseg.methods.baseline import BaselineWeights, OhemOptions, label_terms, must_train_one
from fastseg.methods.losses.language import inter_modal, intra_modal
from fastseg.methods.losses.needs import must_give_features
from fastseg.methods.stage import LossWeights, Stage
from fastseg.models.interface import OutputWithExtras, Segmenter, SegmenterOutput
from fastseg.pipelines.tools.settings import Count, NotNegative, Positive

if TYPE_CHECKING:
    from fastseg.vision_language.interface import VisionLanguageModel
    from fastseg.vision_language.table import EmbeddingTable

COMPANION = "language"
_TERMS = frozenset({"inter", "intra"})


@dataclass(frozen=True)
class Any2SegWeights(BaselineWeights):
    """Weight of every loss term; a term of weight 0 is not computed. The paper's are not known."""

    # these terms compare with the embeddings, so no stage needs another network for them
    supervised: ClassVar[frozenset[str]] = BaselineWeights.supervised | _TERMS

    inter: NotNegative = 0.0
    """Similarities between the modalities of a sample."""
    intra: NotNegative = 0.0
    """Similarities of pictures and sentences of a batch."""


@dataclass(frozen=True)
class Any2SegOptions(OhemOptions):
    """The vision-language model, and forms of the terms."""

    vision_language: Path | None = None
    """Folder of a CLIP model; a stage that trains the student needs it."""
    embed_dim: Count = 512
    """Size d of the model's embeddings; 512 of CLIP ViT-B."""
    embeddings: Path | None = None
    """Folder that keeps the embeddings, which several runs may share; none: in the run's folder."""
    scene: str = "a photo of a street scene"
    """Beginning of the sentence about a scene."""
    temperature: Positive = 0.07
    """Of the similarities; a choice."""


class Projection(nn.Module):
    """``e[m, b] = normalise(W mean_pixels F_4[m, b])``: fp32 ``[M', B, d]``.

    Args:
        width: C_4, channels of the last level.
        dim: d.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, width))
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, output: SegmenterOutput) -> Tensor:
        """``[M', B, d]`` from the features of the last level."""
        pooled = output.features[-1].float().mean((-2, -1))
        with torch.autocast(pooled.device.type, enabled=False):
            return functional.normalize(functional.linear(pooled, self.weight.float()), dim=-1)


@register
class Any2Seg(Method):
    """A student that a vision-language model guides; a reconstruction."""

    name: ClassVar[str] = "any2seg"
    networks: ClassVar[tuple[str, ...]] = ("teacher", "student")
    compared: ClassVar[tuple[str, str] | None] = ("teacher", "student")
    weights: ClassVar[type[LossWeights]] = Any2SegWeights
    options_type: ClassVar[type[MethodOptions]] = Any2SegOptions

    options: Any2SegOptions

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        self._rows: EmbeddingTable | None = None
        self._visual = self._text = torch.empty(0)

    def check(self, name: str, stage: Stage) -> None:
        """One network learns, from one at most; the guidance is the student's, who has to have it.

        A projection without any term would be a part of the network that never gets a gradient.
        """
        must_train_one(self.name, name, stage)
        guided = bool(stage.losses.active().keys() & _TERMS)
        if guided != (stage.learners == ("student",)):
            raise ValueError(
                f"stage {name!r}: any2seg guides the student and no other network; give inter or "
                "intra a positive weight in stages that train the student, and 0 in others"
            )

    def build(self, network: str, new: NewModel) -> Segmenter:
        """The model of the run; the student's with a projection, which is saved with it.

        Raises:
            ConfigError: the model has no features of each modality, or does not say how many
                channels they have.
        """
        model = new()
        if network == "student":
            must_give_features(model, self.name, sorted(_TERMS))
            if not model.widths:
                raise ConfigError(
                    f"any2seg projects the last level of features, and {type(model).__name__} does "
                    "not state its widths: take another --model.backbone, such as mit_b0"
                )
            model.add_companion(COMPANION, Projection(model.widths[-1], self.options.embed_dim))
        return model

    def check_models(self, stage: Stage, models: Mapping[str, Segmenter]) -> None:
        """The vision-language model is there and has the stated size."""
        super().check_models(stage, models)
        if "student" in stage.learners:
            self._load(torch.device("cpu"))

    def first_weights(
        self, stage: Stage, name: str, network: Segmenter, finished: Mapping[str, Segmenter]
    ) -> None:
        """A copy of a finished network; a projection that it lacks stays random."""
        own = {k: x for k, x in network.state_dict().items() if k.startswith("companions.")}
        network.load_state_dict(own | finished[stage.start_of(name)].state_dict())

    def prepare(
        self, stage: Stage, learning: Mapping[str, Segmenter], surroundings: Surroundings
    ) -> None:
        """Put the embeddings of the training samples on the device; zeros in a forecast."""
        # steps are made without the libraries that read files
        from fastseg.vision_language.cache import embed_dataset
        from fastseg.vision_language.prompts import Prompts

        if "student" not in learning:
            return
        device, folder = surroundings.ranks.device, surroundings.folder
        if folder is None:
            count, dim = len(surroundings.modalities), self.options.embed_dim
            self._visual = torch.zeros((1, count, dim), device=device)
            self._text = torch.zeros((1, dim), device=device)
            return
        self._rows = embed_dataset(
            surroundings.data,
            surroundings.modalities,
            partial(self._load, device),
            self.options.embeddings or folder / "embeddings",
            surroundings.ranks,
            prompts=Prompts(of_scene=self.options.scene),
        )
        self._visual, self._text = (x.to(device) for x in (self._rows.visual, self._rows.text))

    def _load(self, device: torch.device) -> VisionLanguageModel:
        from fastseg.vision_language.load import load_model

        path, wanted = self.options.vision_language, self.options.embed_dim
        if path is None:
            raise ConfigError(
                "any2seg learns from a vision-language model: name the folder of one with "
                "--losses.vision-language, see docs/reference/vision-language.md"
            )
        model = load_model(path, device)
        if model.dim != wanted:
            raise ConfigError(
                f"the embeddings of {path} have {model.dim} entries and the student's {wanted}: "
                f"set --losses.embed-dim {model.dim}"
            )
        return model

    def draw(self, plan: StepPlan) -> dict[str, Tensor]:
        """``rows [B]``: the samples' rows of the embeddings; zeros in a rehearsal."""
        if not plan.sample_ids or self._rows is None:
            return {"rows": torch.zeros(plan.batch, dtype=torch.int64)}
        return {"rows": self._rows.find(plan.sample_ids)}

    def reads_dropped(self, stage: Stage) -> bool:
        """No: similarities are of what is left of a sample."""
        return False

    def terms(self, step: StepInputs) -> dict[str, Tensor]:
        """OHEM, logit distillation and both similarities, as far as they are active.

        Modalities that are zeroed or left out of a sample's fusion take no part in similarities.
        """
        active, target = step.stage.losses.active(), None
        if "logit" in active:
            (teacher,) = step.stage.targets
            target = step.networks[teacher](step.images).logits
        (learner,) = step.stage.learners
        output = step.output_of(learner)
        terms = label_terms(active, self.options, output.logits, target, step.labels)
        if active.keys() & _TERMS:
            own = cast(OutputWithExtras, output).extras[COMPANION]
            rows, marks = step.draws["rows"], step.marks_of(own)
            visual = step.draws.of(self._visual.index_select(0, rows).transpose(0, 1))
            if "inter" in active:
                terms["inter"] = inter_modal(own, visual, self.options.temperature, marks)
            if "intra" in active:
                text = self._text.index_select(0, rows)
                terms["intra"] = intra_modal(own, visual, text, self.options.temperature, marks)
        return terms
