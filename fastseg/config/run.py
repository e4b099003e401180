"""Everything a run can be told, as checked dataclasses, and their JSON form."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from fastseg.distributed.parallelize import ParallelConfig
from fastseg.engine.optim.optimizer import OptimConfig
from fastseg.engine.speed.choices import SpeedConfig
from fastseg.errors import ConfigError
from fastseg.methods import METHODS, LossWeights, Method, MethodOptions, Stage
from fastseg.methods.robustseg import LossOptions, RobustSeg
from fastseg.models import MODELS
from fastseg.models.precision import PrecisionChoice
from fastseg.pipelines import DataConfig
from fastseg.pipelines.tools.settings import (
    Count,
    Natural,
    Range,
    SceneSide,
    Seed,
    as_path,
    check_fields,
    field_types,
    misfit,
    shown,
)
from fastseg.pipelines.tools.unknown import unknown

# fields that cannot change what is learnt: a run may go on after they changed
HARMLESS = {
    "out",
    "device",
    "fresh",
    "allow_data_change",
    "stop_after",
    "log_every",
    "save_every",
    "keep_checkpoints",
    "data.root",
    "data.loader",
    "data.workers",
    "data.cache",
    "data.missing",
    "data.repeat",
    "data.damaged",
    "data.damaged_limit",
    "data.packed",
    "data.eval_corruption",
    "data.eval_size",
    "data.packed_auto",
    "data.eval_batch_size",
    "evaluation",
    "speed",
    "model.checkpointing",
    "profile_steps",
    "tensorboard",
    "parallel",
}
# these may change as long as their product with the number of processes stays
BATCH_PARTS = {"data.batch_size", "accumulate"}

# networks whose finished weights an option of this name can give
GIVEN = ("teacher",)

_OTHER_METHOD = "the {what} not those of the method {method}: start from one of its presets"
_BelowOne = Annotated[float, Range(0, 1, below=True)]


@dataclass(frozen=True)
class ModelConfig:
    """The network; of M-SegFormer one encoder for all modalities, mean fusion and an MLP head."""

    backbone: str = "mit_b0"
    """Encoder: mit_nano (for a CPU) or mit_b0 to mit_b5."""
    embed_dim: Annotated[int, Range(1, 2**16)] = 768
    """Width of the head; the published checkpoints use 768 for every backbone."""
    dropout: _BelowOne = 0.1
    """Channel dropout before the classifier."""
    drop_path: _BelowOne = 0.1
    """Stochastic depth of the encoder's last block; it rises linearly from 0."""
    norm_momentum: Annotated[float, Range(0, 1, above=True)] = 0.1
    """Share of the newest batch in the head's BatchNorm statistics. With dropped modalities 0.1 (as
    published) remembers little more than the subsets of the last ten steps; 0.01 averages more."""
    checkpointing: bool = False
    """Keep only the inputs of the encoder's blocks and compute the rest again in the backward pass:
    less memory, more time, the same numbers."""
    norm: Literal["torch", "apex"] = "torch"
    """LayerNorm of torch, or the fused one of NVIDIA apex (a GPU; apex must be installed)."""
    weights: Path | None = None
    """Encoder weights (ImageNet) for stages that start from the encoder; none: random."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.backbone not in MODELS:
            raise ValueError(unknown("backbone", self.backbone, MODELS))


@dataclass(frozen=True)
class EvaluationConfig:
    """How the networks are scored."""

    missing: Literal["drop", "zero"] = "drop"
    """A missing modality is left out of the mean (drop) or set to 0 after normalisation (zero)."""
    every: Natural = 0
    """Validate during training every so many steps; 0: ten times per stage."""
    samples: Natural = 0
    """Samples of a validation during training; 0: all. The final table always uses all."""
    pictures: Natural = 5
    """Samples shown in the report."""

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


@dataclass(frozen=True)
class TrainConfig:
    """One run: data, network, stages."""

    name: str = "run"
    """Name of the run; its folder is <out>/<name>."""
    out: Path = Path("runs")
    """Folder of all runs."""
    seed: Seed = 0
    """Seed of everything: order, augmentation, initial weights, dropout, noise."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the GPU if there is one."""
    precision: PrecisionChoice = "fp32"
    """Arithmetic of the networks; losses are always fp32. fp16 scales the loss. auto: bf16 where
    the device multiplies it faster, else fp32; a run that is continued keeps what it began with."""
    accumulate: Count = 1
    """Micro-batches of data.batch_size per process that make one step; BatchNorm statistics, hard
    pixels and the regulariser's information are those of a micro-batch."""
    ema: _BelowOne = 0.0
    """Decay of an exponential moving average of the weights, which is then what is scored and
    saved, such as 0.999; 0: none."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    synthetic: SyntheticData = field(default_factory=SyntheticData)
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: Path | None = None
    """Weights of a finished teacher; stages that train the teacher are then skipped."""
    method: str = RobustSeg.name
    """What is trained: the loss terms of the stages and the networks that they may have."""
    stages: dict[str, Stage] = field(default_factory=dict)
    losses: MethodOptions = field(default_factory=LossOptions)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    log_every: Count = 20
    """Steps between two rows of metrics.jsonl."""
    save_every: Count = 500
    """Steps between two checkpoints."""
    keep_checkpoints: Count = 2
    """Checkpoints kept of the current stage."""
    max_skipped: Count = 20
    """Stop after so many steps in a row with a non-finite gradient."""
    stop_after: Natural = 0
    """Save and stop after so many steps in this session, for queues with a time limit; 0: never."""
    profile_steps: Natural = 0
    """Profile so many steps of each stage once it runs evenly; traces go into the run folder."""
    tensorboard: bool = False
    """Write scalars for TensorBoard, too; needs pip install tensorboard."""
    fresh: bool = False
    """Start anew: an existing run of this name is moved aside, not continued."""

    allow_data_change: bool = False
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

    def skips(self, stage: Stage) -> bool:
        """Whether a stage is left out, as all that it would train is given."""
        return set(stage.learners) <= self.given.keys()

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


def to_dict(config: Any) -> Any:
    """The JSON form of a config: nested dicts, lists, strings and numbers."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def from_dict(
    kind: Any, values: Any, where: str = "config", method: type[Method] | None = None
) -> Any:
    """Inverse of `to_dict`: build ``kind`` and check it. In paths ``~`` is expanded.

    Loss weights and options are those of ``method``, which a run names itself.

    Raises:
        ConfigError: a field is unknown, or its value is of another type or out of range; the
            message names the field, the value and what is expected.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _settings(kind, values, where, method)
    if origin is dict and isinstance(values, dict):
        return {k: from_dict(args[1], x, f"{where}.{k}", method) for k, x in values.items()}
    if origin in (types.UnionType, typing.Union):
        return None if values is None else from_dict(args[0], values, where)
    value = tuple(values) if origin is tuple and isinstance(values, list) else values
    if kind is Path and isinstance(values, str):
        try:
            value = as_path(values)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
    if expected := misfit(kind, value):
        raise ConfigError(f"{where} must be {expected}, got {shown(values)}")
    return _as_declared(kind, value)


def _settings(kind: Any, values: Any, where: str, method: type[Method] | None) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be an object, got {shown(values)}")
    if kind is TrainConfig:
        method = _method_in(values, where)
    if method is not None:
        kind = {MethodOptions: method.options_type, LossWeights: method.weights}.get(kind, kind)
    known = field_types(kind)
    for name in values:
        if name not in known:
            raise ConfigError(f"{where}: {unknown('field', name, known)}")
    parts = {n: from_dict(known[n], x, f"{where}.{n}", method) for n, x in values.items()}
    try:
        return kind(**parts)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _method_in(values: Mapping[str, Any], where: str) -> type[Method]:
    """The method that a run names; those of before there were several do not."""
    name = values.get("method", RobustSeg.name)
    if name not in METHODS:
        raise ConfigError(f"{where}: {unknown('method', name, METHODS)}")
    return METHODS[name]


def _as_declared(kind: Any, value: Any) -> Any:
    """Whole numbers of JSON where a field is a float, as a float."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _as_declared(args[0], value)
    if origin is tuple:
        return tuple(_as_declared(args[0], item) for item in value)
    return float(value) if kind is float else value


def read_config(path: Path) -> TrainConfig:
    """Read the ``config.json`` of a run.

    Raises:
        ConfigError: it cannot be read, is not JSON, or holds what `from_dict` refuses.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text, object_pairs_hook=_distinct)
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}: give the config.json of a run") from None
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; give the config.json of a run"
        ) from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deep: give the config.json of a run") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    config: TrainConfig = from_dict(TrainConfig, values, path.name)
    return config


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which the last of two equal keys would win unseen."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n]))
        raise ValueError(f"the field {shown(twice)} occurs twice")
    return values


def digest(config: TrainConfig) -> int:
    """A 60-bit hash of everything in a config, to compare between processes."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as ``{"a.b": value}``."""
    if not isinstance(values, dict):
        return {prefix: values}
    parts = [flatten(v, f"{prefix}.{k}" if prefix else k) for k, v in values.items()]
    return {key: value for part in parts for key, value in part.items()}


def changed_fields(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ and that change what is learnt, with old and new value."""
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    for key in BATCH_PARTS:
        before.pop(key)
        after.pop(key)
    before["samples per step"], after["samples per step"] = (
        old.samples_per_step,
        new.samples_per_step,
    )
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not any(key == name or key.startswith(name + ".") for name in HARMLESS)
    }
