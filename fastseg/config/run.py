"""One run: its data, network, stages and every other setting, checked together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fastseg.config.sections import (
    BelowOne,
    EvaluationConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    SpeedConfig,
    Switch,
    SyntheticData,
    Tracker,
)
from fastseg.methods import METHODS, Method, MethodOptions, Stage
from fastseg.methods.robustseg import LossOptions, RobustSeg
from fastseg.models.precision import PrecisionChoice
from fastseg.pipelines import DataConfig
from fastseg.pipelines.tools.settings import (
    Count,
    Natural,
    Seed,
    binding,
    check_fields,
    harmless,
    shown,
)
from fastseg.pipelines.tools.unknown import unknown

# networks whose finished weights an option of this name can give
GIVEN = ("teacher",)

_OTHER_METHOD = "the {what} not those of the method {method}: start from one of its presets"


@dataclass(frozen=True)
class TrainConfig:
    """One run: data, network, stages.

    A mark says of each field, or of those of its section, whether it changes what is learnt.
    """

    name: str = binding("run")
    """Name of the run; its folder is <out>/<name>."""
    out: Path = harmless(Path("runs"))
    """Folder of all runs."""
    seed: Seed = binding(0)
    """Seed of everything: order, augmentation, initial weights, dropout, noise."""
    device: Literal["auto", "cpu", "cuda"] = harmless("auto")
    """Where to train; auto takes the GPU if there is one."""
    precision: PrecisionChoice = binding("fp32")
    """Arithmetic of the networks; losses are always fp32. fp16 scales the loss. auto: bf16 where
    the device multiplies it faster, else fp32; a run that is continued keeps what it began with."""
    accumulate: Count = binding(1)
    """Micro-batches of data.batch_size per process that make one step; BatchNorm statistics, hard
    pixels and the regulariser's information are those of a micro-batch."""
    ema: BelowOne = binding(0.0)
    """Decay of an exponential moving average of the weights, which is then what is scored and
    saved, such as 0.999; 0: none."""
    parallel: ParallelConfig = harmless(factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    synthetic: SyntheticData = binding(factory=SyntheticData)
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: Path | None = binding(None)
    """Weights of a finished teacher; stages that train the teacher are then skipped."""
    method: str = binding(RobustSeg.name)
    """What is trained: the loss terms of the stages and the networks that they may have."""
    stages: dict[str, Stage] = binding(factory=dict)
    losses: MethodOptions = binding(factory=LossOptions)
    optim: OptimConfig = binding(factory=OptimConfig)
    evaluation: EvaluationConfig = harmless(factory=EvaluationConfig)
    speed: SpeedConfig = harmless(factory=SpeedConfig)
    log_every: Count = harmless(20)
    """Steps between two rows of metrics.jsonl."""
    save_every: Count = harmless(500)
    """Steps between two checkpoints."""
    keep_checkpoints: Count = harmless(2)
    """Checkpoints kept of the current stage."""
    save_async: Switch = harmless("auto")
    """Write checkpoints beside the training, which waits only while its tensors are copied; one at
    a time, and never the last one of a session. auto: on a GPU."""
    max_skipped: Count = binding(20)
    """Stop after so many steps in a row with a non-finite gradient."""
    stop_after: Natural = harmless(0)
    """Save and stop after so many steps in this session, for queues with a time limit; 0: never."""
    profile_steps: Natural = harmless(0)
    """Profile so many steps of each stage once it runs evenly; traces go into the run folder."""
    trackers: tuple[Tracker, ...] = harmless(())
    """Also send the numbers of metrics.jsonl to tensorboard, wandb or mlflow, or several of them;
    each needs its package of that name."""
    fresh: bool = harmless(False)
    """Start anew: an existing run of this name is moved aside, not continued."""

    allow_data_change: bool = harmless(False)
    """Continue a run although training samples have come or gone since it was started."""

    def __post_init__(self) -> None:
        check_fields(self)
        _check_name("name", self.name)
        if self.method not in METHODS:
            raise ValueError(unknown("method", self.method, METHODS))
        method = METHODS[self.method]
        if type(self.losses) is not method.options_type:
            raise ValueError(_OTHER_METHOD.format(what="losses are", method=self.method))
        there = set(self.given)
        for name, stage in self.stages.items():
            _check_name("the name of a stage", name)
            if type(stage.losses) is not method.weights:
                what = f"losses of stage {name!r} are"
                raise ValueError(_OTHER_METHOD.format(what=what, method=self.method))
            self._check_networks(name, stage, there)
            self.build_method().check(name, stage)
            there.update(stage.learners)

    def _check_networks(self, name: str, stage: Stage, there: set[str]) -> None:
        """Refuse a stage with networks that the method does not have, or that are not there yet."""
        known = METHODS[self.method].networks
        for network in (*stage.learners, *stage.needed()):
            if network not in known:
                raise ValueError(f"stage {name!r}: {unknown('network', network, known)}")
        for network in stage.needed():
            if network not in there:
                option = f" or name its weights with --{network} FILE" * (network in GIVEN)
                raise ValueError(
                    f"stage {name!r} needs a {network}: put a stage that trains one before it"
                    + option
                )

    @property
    def given(self) -> dict[str, Path]:
        """Weights of finished networks that the run does not train, by name."""
        paths: dict[str, Path | None] = {name: getattr(self, name) for name in GIVEN}
        return {name: path for name, path in paths.items() if path is not None}

    def instead_of(self, network: str) -> str:
        """What to do where the weights that the run is given for a network do not serve."""
        text = f"give the {network}.safetensors of a finished run"
        if any(network in stage.learners for stage in self.stages.values()):
            text += f"; the same command without --{network} trains a {network} first"
        return text

    def skips(self, stage: Stage) -> bool:
        """True for a stage that is left out, as all that it would train is given."""
        return set(stage.learners) <= self.given.keys()

    def backbone_of(self, network: str) -> str:
        """Name of the encoder of a network."""
        return (network == "teacher" and self.model.teacher_backbone) or self.model.backbone

    def build_method(self) -> Method:
        """The method of the run, with its options."""
        return METHODS[self.method](self.losses)

    @property
    def samples_per_step(self) -> int:
        """Samples of one optimizer step over the processes recorded in ``parallel``."""
        return self.data.batch_size * self.accumulate * max(1, self.parallel.processes)


def _check_name(what: str, name: str) -> None:
    """Refuse what cannot be part of a file's name."""
    if not name or not all(c.isalnum() or c in "-_." for c in name):
        raise ValueError(f"{what} must consist of letters, digits, - _ and ., got {shown(name)}")
    if name.startswith("."):
        raise ValueError(f"{what} must not start with a dot, got {shown(name)}")
