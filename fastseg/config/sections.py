"""The sections of a run's config, each a checked dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from fastseg.models import MODELS
from fastseg.models.foundation.folder import check_folder
from fastseg.models.foundation.sizes import NAMES as FOUNDATIONS
from fastseg.models.registry import optional_keywords
from fastseg.pipelines.tools.settings import (
    Natural,
    NotNegative,
    Positive,
    Range,
    SceneSide,
    Seed,
    binding,
    check_fields,
    harmless,
)
from fastseg.pipelines.tools.unknown import unknown

BelowOne = Annotated[float, Range(0, 1, below=True)]
Tracker = Literal["tensorboard", "wandb", "mlflow"]
"""Whom a run may also send its numbers to; `fastseg.report.trackers.registry` has each."""


@dataclass(frozen=True)
class ModelConfig:
    """The network; of M-SegFormer one encoder for all modalities, mean fusion and an MLP head."""

    backbone: str = binding("mit_b0")
    """M-SegFormer: mit_nano (for a CPU) or mit_b0 to mit_b5; CMNeXt: cmnext_nano, cmnext_b0 to
    cmnext_b5; CMX, of two modalities: cmx_nano, cmx_b0 to cmx_b5; foundation encoders:
    dinov2_small, dinov2_base, dinov2_large, dinov2_giant, dinov3_small, dinov3_base, dinov3_large,
    or dinov2 and dinov3 of the size that their folder has."""
    teacher_backbone: str | None = binding(None)
    """Encoder of the network called teacher, such as a deeper one; none: the same."""
    encoders: Literal["shared", "per_modality"] = binding("shared")
    """One encoder for all modalities, or one for each (as the CVPR 2026 text of RobustSeg says)."""
    fusion: Literal["mean", "mff"] = binding("mean")
    """Mean of the modalities, or maximum and mean of features that are reweighted by their
    agreement (a reconstruction of the MFF of Any2Seg)."""
    hub: str | None = binding(None)
    """Of CMNeXt and CMX: the modality with a branch of its own; none: the first one."""
    hub_selection: Literal["self_query", "mean"] = binding("self_query")
    """Of CMNeXt: how the other modalities become one: largest response, weighted by scores (as
    published), or mean."""
    scramble: bool = binding(False)
    """Of CMNeXt: mix up channels and pixels between levels as the released code does; its released
    weights need it."""
    foundation: Path | None = harmless(None)
    """Of foundation encoders: folder of the backbone as transformers writes it (config.json,
    model.safetensors). Nothing is downloaded; another folder with the same content serves, too."""
    train_foundation: bool = binding(False)
    """Of foundation encoders: the backbone itself learns; by default it is frozen, and only
    adapters, pyramid and head are trained and saved."""
    adapter_rank: Annotated[int, Range(0, 2**12)] = binding(8)
    """Of foundation encoders: rank of the LoRA adapter of each modality; 0: none."""
    pyramid_width: Annotated[int, Range(1, 2**12)] = binding(256)
    """Of foundation encoders: channels of the four levels of features."""
    embed_dim: Annotated[int, Range(1, 2**16)] = binding(768)
    """Width of the head. AnySeg and RobustSeg have 768 with every backbone; CMNeXt and CMX 512, and
    256 with B0 and B1."""
    dropout: BelowOne = binding(0.1)
    """Channel dropout before the classifier."""
    drop_path: BelowOne = binding(0.1)
    """Stochastic depth of the encoder's last block; it rises linearly from 0."""
    norm_momentum: Annotated[float, Range(0, 1, above=True)] = binding(0.1)
    """Share of the newest batch in the head's BatchNorm statistics. With dropped modalities 0.1 (as
    published) remembers little more than the subsets of the last ten steps; 0.01 averages more."""
    checkpointing: bool = harmless(False)
    """Keep only the inputs of the encoder's blocks and compute the rest again in the backward pass:
    less memory, more time, the same numbers."""
    norm: Literal["torch", "apex"] = binding("torch")
    """LayerNorm of torch, or the fused one of NVIDIA apex (a GPU; apex must be installed)."""
    weights: Path | None = binding(None)
    """Encoder weights (ImageNet) for stages that start from the encoder; none: random."""

    def __post_init__(self) -> None:
        check_fields(self)
        for backbone in filter(None, (self.backbone, self.teacher_backbone)):
            if backbone not in MODELS:
                raise ValueError(unknown("backbone", backbone, MODELS))
            optional_keywords(backbone, vars(self))

    def check_files(self) -> None:
        """See that the folder of a foundation encoder is there and holds what is named.

        Raises:
            ConfigError: it does not.
        """
        for backbone in filter(None, (self.backbone, self.teacher_backbone)):
            if backbone in FOUNDATIONS:
                check_folder(backbone, self.foundation)


@dataclass(frozen=True)
class EvaluationConfig:
    """Scoring of the networks, during training and after it."""

    missing: Literal["drop", "zero"] = "drop"
    """A missing modality is left out of the mean (drop) or set to 0 after normalisation (zero)."""
    every: Natural = 0
    """Validate during training every so many steps; 0: ten times per stage."""
    samples: Natural = 0
    """Samples of a validation during training; 0: all. The final table always uses all."""
    best: Literal["none", "mean", "full"] = "none"
    """Also keep the network with the best mean over subsets, or the best score with all modalities,
    of the validations of a stage, as <network>-best.safetensors."""
    patience: Natural = 0
    """End a stage after so many validations without a better score, that of ``best`` or the mean;
    0: never."""
    pictures: Natural = 5
    """Samples shown in the report, from all parts of the split; the two worst and the two best come
    before them. 0: none."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class SyntheticData:
    """Make the synthetic data set at data.root before training if it is not there."""

    train: Natural = 0
    """Training frames; 0: never make data."""
    val: Natural = 0
    """Validation frames."""
    size: SceneSide = 128
    """Height and width in pixels."""
    seed: Seed = 0
    """Seed of the scenes (not of the training)."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.train > 0 and self.val == 0:
            raise ValueError("give at least one validation frame")


Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class SpeedConfig:
    """Ways of running a step; none changes what is learnt. An ``on`` that cannot be is warned."""

    compile: Switch = "auto"
    """torch.compile of the encoder's blocks and the head. It takes minutes once; auto: on a GPU,
    for stages of 2000 steps and more."""
    graphs: Switch = "auto"
    """Replay whole steps as CUDA graphs, one per number of modalities; auto: on a GPU."""
    attention: Literal["auto", "torch"] = "auto"
    """Kernel of the attention: auto times torch's and ours at the network's shapes on a GPU,
    torch leaves the choice to torch."""
    packing: Literal["auto", "off"] = "auto"
    """Where each sample has its own modalities, auto encodes these alone, as far as the loss terms
    and the model allow; off encodes all."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW."""

    kind: Literal["auto", "adamw", "apex_adam", "apex_lamb"] = "auto"
    """adamw: torch's fused AdamW; apex_adam: NVIDIA apex's, the same formula; apex_lamb: LAMB of
    apex, another method for large batches; auto: the faster Adam, which without apex is torch's."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay of tensors with more than one dimension; others have none."""
    beta1: BelowOne = 0.9
    """Decay of the mean of the gradients."""
    beta2: BelowOne = 0.999
    """Decay of the mean of their squares."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    layer_decay: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Learning rate of each layer of the encoder as a share of the layer behind it; that of the
    head is whole. 1: all layers learn alike (as published)."""
    max_norm: NotNegative = 0.0
    """Clip the global gradient norm to this value; 0 does not clip (as published)."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ParallelConfig:
    """Spreading of a network over processes; for one process only ``timeout`` has a meaning."""

    mode: Literal["fsdp_root", "replicate", "hsdp", "fsdp_blocks", "auto"] = "fsdp_root"
    """fsdp_root: FSDP2 as one group without resharding; replicate: a copy each (DDP); hsdp: cut
    inside a node, copied across nodes; fsdp_blocks: FSDP2 block by block, for networks that fill
    the memory; auto: measure a few steps of each and take the fastest."""
    shard_size: Natural = 0
    """Processes that share one copy with hsdp; 0: those of one node."""
    check_steps: Natural = 100
    """First steps of a session in which the processes compare what they are about to train."""
    # a backend counts in 64-bit nanoseconds
    timeout: Annotated[float, Range(0, 1e6, above=True)] = 10.0
    """Minutes after which a collective that some process does not join ends the run, and a training
    state that is not written beside the training."""
    processes: Natural = 0
    """Processes the run was last started with; written by the run itself, 0: one."""

    def __post_init__(self) -> None:
        check_fields(self)
