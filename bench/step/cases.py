"""Whole training steps to compare: settings, one set of weights and inputs, providers.

Within a setting all providers start from the same weights and see the same images, labels and
subsets. The subset of a step is drawn from its number as the trainer draws it, so a number stands
for a subset, and ``random`` M is the expectation over the four sizes, which are equally likely.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from bench.harness import shapes
from bench.rivals.expert_step import ExpertStep
from bench.rivals.published_step import OfficialStep
from fastseg.config.run import TrainConfig
from fastseg.config.sections import SpeedConfig
from fastseg.engine.optim.optimizer import build_optimizer
from fastseg.engine.speed.attention import choose_attention
from fastseg.engine.stage_setup import StageNetworks, StageSetup
from fastseg.engine.step import TrainStep
from fastseg.methods.robustseg import LossOptions, RobustSegWeights
from fastseg.methods.seeds import derive_seed, draw_modalities
from fastseg.methods.stage import Stage
from fastseg.models import SegFormer
from fastseg.models.precision import best_precision
from fastseg.pipelines import Batch, DataConfig

MODALITIES, CLASSES, SAMPLES = 4, shapes.NUM_CLASSES, 10
SIZES = (4, 3, 2, 1) if shapes.ON_GPU else (4, 1)
SHORT_PAYS = not shapes.ON_GPU and best_precision(shapes.DEVICE).value == "bf16"
LENGTH = 10**6  # steps of the stage: so long that its learning rate is that of its first step
SEED = 3407
STUDENT, TEACHER, IMAGES = 0, 1, 2  # seeds

Values = dict[str, Tensor] | dict[str, float]
StepCall = Callable[[int], Values]  # trains one step, whose number it is given


@dataclass(frozen=True)
class Setting:
    """Training step to measure: stage, network, sizes and options.

    Attributes:
        stage: 1 for the teacher's, 2 for the student's with subsets drawn at random.
        backbone: ``b0`` or ``b2``; another name is a backbone of its own.
        side: height and width of the images, in pixels.
        batch: B, samples of a step.
        rrm: true if the regulariser is on.
        compiled: true for the providers that use ``torch.compile``, false for the others.
        embed_dim: channels of the head.
    """

    stage: Literal[1, 2] = 2
    backbone: str = "b0"
    side: int = 1024
    batch: int = 2
    rrm: bool = True
    compiled: bool = False
    embed_dim: int = 768

    def __str__(self) -> str:
        rrm = "" if self.stage == 1 else " rrm" if self.rrm else " no-rrm"
        compiled = " compile" if self.compiled else ""
        return f"stage{self.stage} {self.backbone} {self.side}px B{self.batch}{rrm}{compiled}"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of modalities that the network sees in this stage."""
        return (MODALITIES,) if self.stage == 1 else SIZES

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the active loss terms; the normalised regulariser has no published one."""
        if self.stage == 1:
            return {"ohem": 1.0}
        return {"ohem": 1.0, "logit": 50.0, "hpdm": 100.0, **({"rrm": 0.01} if self.rrm else {})}

    @property
    def policy(self) -> Literal["full", "drop"]:
        """``full`` for all modalities in stage 1, ``drop`` for random subsets in stage 2."""
        return "full" if self.stage == 1 else "drop"


PAPER = Setting()
ON_A_GPU = (
    PAPER,
    Setting(stage=1),
    Setting(rrm=False),
    Setting(backbone="b2"),
    Setting(side=256, batch=8),
    Setting(batch=4),
    Setting(batch=8),
    Setting(stage=1, backbone="b2"),
    Setting(side=256, batch=2),
)
SMALL = Setting(side=256)
ON_A_CPU = (SMALL, Setting(side=256, stage=1), Setting(side=256, rrm=False))
# compiling takes minutes for a setting: the important ones, and after all others
COMPILED = (
    (Setting(compiled=True), Setting(side=256, batch=8, compiled=True), Setting(1, compiled=True))
    if shapes.ON_GPU
    else ()
)
SETTINGS = (*(ON_A_GPU if shapes.ON_GPU else ON_A_CPU), *COMPILED)
OFFICIAL, BEST_TORCH, FASTSEG = "official", "best_torch", "fastseg"


def providers(setting: Setting) -> tuple[str, ...]:
    """Providers of a setting; on a CPU with instructions for bfloat16 in both precisions."""
    if setting.compiled:
        return (f"{BEST_TORCH} compile", f"{FASTSEG} compile")
    short = (f"{BEST_TORCH} bf16", f"{FASTSEG} bf16") if SHORT_PAYS else ()
    return (OFFICIAL, BEST_TORCH, FASTSEG, *short)


def is_short(provider: str) -> bool:
    """True if a provider computes in bfloat16: on a GPU all but the published step do."""
    return provider != OFFICIAL and (shapes.ON_GPU or "bf16" in provider)


@dataclass(frozen=True)
class FastsegStep:
    """The step function of the trainer, on one batch.

    Attributes:
        train: the step function.
        batch: its batch.
        attention: kernels that were chosen by measurement.
    """

    train: TrainStep
    batch: Batch
    attention: str = ""

    def __call__(self, step: int) -> Values:
        """Train one step."""
        return self.train(step, self.batch)

    @property
    def ways(self) -> str:
        """The ways that its steps have taken so far."""
        return f"{self.train.ways}; {self.attention}" if self.attention else self.train.ways


@dataclass
class Problem:
    """Weights and inputs of a setting, on ``shapes.DEVICE`` and on the host.

    Attributes:
        setting: the training step to measure.
        dropout: rate of the head and of the last block; at 0 all providers compute the same.
        device: device of the networks.
        graphs: true if fastseg may replay its steps as CUDA graphs.
    """

    setting: Setting
    dropout: float = 0.1
    device: torch.device = shapes.DEVICE
    graphs: bool = True

    def network(self, seed: int) -> SegFormer:
        """A network with the weights of a seed, on the device."""
        name = f"mit_{self.setting.backbone}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = SegFormer(name, CLASSES, self.setting.embed_dim, self.dropout, self.dropout)
        return network.to(self.device)

    @cached_property
    def images(self) -> Tensor:
        """``[M, B, 3, H, W]`` float32 on the host: what the published loader hands out."""
        side, generator = self.setting.side, torch.Generator().manual_seed(IMAGES)
        return torch.randn((MODALITIES, self.setting.batch, 3, side, side), generator=generator)

    @cached_property
    def labels(self) -> Tensor:
        """``[B, H, W]`` int64 on the host."""
        setting = self.setting
        shape = shapes.Shape(side=setting.side, batch=setting.batch, num_classes=CLASSES)
        return shapes.make_labels(shape, dtype=torch.int64).cpu()

    @cached_property
    def batch(self) -> Batch:
        """Both on the device: what a loader hands out that copies beside the step."""
        samples = ("",) * self.setting.batch
        images, labels = self.images.to(self.device), self.labels.to(self.device)
        return Batch(images, labels, ("",) * MODALITIES, samples)

    def present(self, step: int) -> list[int]:
        """The modalities that the student sees in a step."""
        stage = self.setting.stage - 1
        return draw_modalities(
            self.setting.policy, MODALITIES, derive_seed(SEED, stage, step, "modalities")
        )

    def steps(self, size: int, count: int) -> list[int]:
        """The first ``count`` steps whose subset has this size."""
        found: list[int] = []
        step = 0
        while len(found) < count:
            if len(self.present(step)) == size:
                found.append(step)
            step += 1
        return found

    def build(self, provider: str) -> StepCall:
        """A provider ready for its first step."""
        name, *options = provider.split()
        short, compiled = is_short(provider), "compile" in options
        student = self.network(STUDENT).train()
        teacher = self.network(TEACHER).eval() if self.setting.stage == 2 else None
        if name == FASTSEG:
            return self._fastseg(student, teacher, short, compiled)
        weights = self.setting.weights
        if name == OFFICIAL:
            official = OfficialStep(student, teacher, weights, SAMPLES, CLASSES)
            return lambda step: official(self.images, self.labels, self.present(step))
        expert = ExpertStep(student, teacher, weights, SAMPLES, CLASSES, short, compiled)
        batch = self.batch
        return lambda step: expert(batch.images, batch.labels, self.present(step))

    def _fastseg(
        self, student: SegFormer, teacher: SegFormer | None, short: bool, compiled: bool
    ) -> StepCall:
        """The step function of the trainer."""
        index = self.setting.stage - 1
        stage = Stage(
            trains="student" if teacher else "teacher",
            learns_from="teacher" if teacher else "nobody",
            start="random",
            modalities=self.setting.policy,
            losses=RobustSegWeights(**self.setting.weights),
            steps=LENGTH,
            warmup_epochs=0,
        )
        config = TrainConfig(
            seed=SEED,
            precision="bf16" if short else "fp32",
            data=DataConfig(size=self.setting.side, batch_size=self.setting.batch),
            # the forms that the published code has, each level of the regulariser made of size one
            losses=LossOptions(hpdm="code", rrm="code-normalised", rrm_samples=SAMPLES),
            speed=SpeedConfig(
                compile="on" if compiled else "off", graphs="auto" if self.graphs else "off"
            ),
        )
        optimizer = build_optimizer(student, config.optim)
        setup = StageSetup(config, stage.trains, index, stage, steps_per_epoch=1)
        frozen = {} if teacher is None else {"teacher": teacher}
        networks = StageNetworks({stage.trains: student}, frozen)
        train = TrainStep(setup, networks, optimizer)
        attention = ""
        if train.paths.attention.value:
            images = MODALITIES * self.setting.batch
            attention = choose_attention(list(networks), images, self.setting.side, train.dtype)
        return FastsegStep(train, self.batch, attention)

    @property
    def resident_mib(self) -> float:
        """MiB that a provider in float32 keeps: networks, two moments of one of them, the batch."""
        network = SegFormer(f"mit_{self.setting.backbone}", CLASSES, self.setting.embed_dim)
        weights = sum(4 * p.numel() for p in network.parameters())
        copies = 3 if self.setting.stage == 1 else 4
        return (copies * weights + self.images.nbytes + self.labels.nbytes) / 2**20
