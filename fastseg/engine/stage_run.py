"""One stage in progress: the networks that learn and everything whose state must survive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fastseg.checkpoint.state import TrainingStates
from fastseg.checkpoint.state_files import load_state
from fastseg.checkpoint.weights import check_constants, constants_of
from fastseg.choice import Choice
from fastseg.console import say
from fastseg.distributed.parallelize import Parallel, parallelize
from fastseg.distributed.sharded_tensors import module_tensors
from fastseg.engine.context import RunContext
from fastseg.engine.optim.loss_scale import LossScale
from fastseg.engine.optim.optimizer import Optimizer, build_optimizer
from fastseg.engine.optim.weight_average import WeightAverage
from fastseg.engine.stage_setup import StageNetworks, StageSetup
from fastseg.engine.step import TrainStep
from fastseg.models import Segmenter
from fastseg.models.parameter_groups import fixed_buffers
from fastseg.pipelines import Loader


@dataclass
class Session:
    """Objects that the steps of one stage share.

    Attributes:
        context: context of the run.
        setup: setup of the stage.
        networks: networks of the stage; parameters of those that learn may be shards.
        parallel: the way in which those are spread over the processes.
        optimizer_kind: kind of optimizer, as `build_optimizer` takes it.
        optimizer: optimizer of all networks that learn.
        step_fn: function that trains a step.
        average: average of the weights, None unless the config asks for one.
        given: digests of the finished networks that the stage was given, by name.
    """

    context: RunContext
    setup: StageSetup
    networks: StageNetworks
    parallel: Parallel
    optimizer_kind: str
    optimizer: Optimizer
    step_fn: TrainStep
    average: WeightAverage | None
    given: dict[str, str]

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.setup.name

    @property
    def steps(self) -> int:
        """Length of the stage in optimizer steps."""
        return self.setup.steps

    @property
    def module(self) -> nn.Module:
        """The networks that learn as one module."""
        return self.step_fn.module

    def scored(self, name: str | None = None) -> Segmenter:
        """A network to score and to keep: whole, and averaged if there is an average.

        Collective. It is the learning network itself where that is whole and not averaged.

        Args:
            name: name of a network that learns; the first by default.
        """
        learning = self.networks.learning
        name = name or next(iter(learning))
        if self.average is None and not self.parallel.sharded:
            return learning[name]
        tensors = module_tensors(learning[name])
        if self.average is not None:
            prefix = "" if len(learning) == 1 else f"{name}."
            averages = self.average.tensors().items()
            tensors |= {k.removeprefix(prefix): x for k, x in averages if k.startswith(prefix)}
        network = self.context.new_network(seed=0, name=name)
        network.load_state_dict(tensors)
        return network.to(self.context.device)

    def describe(
        self, loader: Loader, done: int, mode: Choice[str], optimizer: Choice[str]
    ) -> tuple[str, str]:
        """Two lines for people: the training ahead, and its settings with their reasons."""
        config, stage = self.context.config, self.setup.stage
        terms = " + ".join(f"{weight:g} {term}" for term, weight in stage.losses.active().items())
        since = f", continued at step {done}" if done else ""
        factors = {"processes": self.parallel.world, "micro-batches": config.accumulate}
        times = "".join(f" x {count} {what}" for what, count in factors.items() if count > 1)
        average = f", weights averaged with decay {config.ema:g}" if config.ema else ""
        what = (
            f"{self.name}: trains the {' and the '.join(stage.learners)} "
            f"({config.model.backbone}, {parameters_of(self.module)}, {self.context.device}, "
            f"{config.precision}) on {stage.modalities} input "
            f"with {terms}; {self.steps} steps of {config.data.batch_size} samples{times}, "
            f"{self.setup.steps_per_epoch} per epoch, {loader.name} loader ({loader.reason}){since}"
        )
        how = (
            f"{self.name}: {self.parallel.description} [{mode.why}]; optimizer "
            f"{self.optimizer_kind} [{optimizer.why}]; {config.model.norm} LayerNorm{average}"
        )
        return what, how

    def save(
        self,
        states: TrainingStates,
        done: int,
        facts: dict[str, Any],
        keep: int,
        beside: bool = False,
    ) -> None:
        """Write the training state after ``done`` steps, or begin to; all ranks write."""
        scale = self.step_fn.scale
        state = {
            "stage": self.name,
            "step": done,
            "skipped_in_row": float(self.step_fn.skipped_in_row),
            "loss_scale": None if scale is None else scale.state(),
            "parallel": self.parallel.mode,
            "processes": self.parallel.world,
            "optimizer": self.optimizer_kind,
            "attention": self.step_fn.attention,
            "frozen": self.given,
            "constants": constants_of(self.module),
            **self.step_fn.method.state(),
            **facts,
        }
        states.save(
            self.module, self.optimizer, state, keep,
            average=self.average, ranks=self.context.ranks, beside=beside,
        )  # fmt: skip

    def restore(self, path: Path, state: dict[str, Any]) -> None:
        """Inverse of `save`, on any number of processes; each reads what it holds."""
        change = self.step_fn.method.changed_meaning(self.setup.stage, state)
        if change is not None and self.context.ranks.is_first:
            say(f"warning: {self.name}: {change}")
        check_constants(path, state.get("constants", {}), constants_of(self.module))
        load_state(path, self.module, self.optimizer, self.average)
        self.step_fn.skipped_in_row.fill_(state["skipped_in_row"])
        self.step_fn.attention = state.get("attention")
        if self.step_fn.scale is not None and state.get("loss_scale"):
            self.step_fn.scale.restore(state["loss_scale"])


def parameters_of(module: nn.Module) -> str:
    """Number of parameters and, where some never learn, their share and the memory of all."""
    learn = sum(p.numel() for p in module.parameters() if p.requires_grad)
    count = sum(p.numel() for p in module.parameters())
    fixed = fixed_buffers(module)
    if not fixed:
        return f"{count / 1e6:.2f} M parameters"
    whole = count + sum(x.numel() for x in fixed)
    weights = 4 * count + sum(x.numel() * x.element_size() for x in fixed)
    return (
        f"{learn / 1e6:.2f} of {whole / 1e6:.2f} M parameters learn ({100 * learn / whole:.1f} %; "
        f"{weights / 2**20:.1f} MiB of weights, {12 * learn / 2**20:.1f} MiB of gradients and "
        "moments)"
    )


def build_session(
    context: RunContext,
    setup: StageSetup,
    networks: StageNetworks,
    *,
    mode: str,
    kind: str,
    given: dict[str, str] | None = None,
) -> Session:
    """Make networks ready to train.

    Args:
        context: context of the run.
        setup: setup of the stage.
        networks: networks with their first weights, on the device; changed in place.
        mode: way of spreading those that learn, see `parallelize`.
        kind: kind of the optimizer.
        given: digests of the finished networks that the stage was given, by name.
    """
    config = setup.config
    for network in networks.learning.values():
        network.train()
    setup.method.hold(setup.stage, networks.learning)
    setup.method.prepare(setup.stage, networks.learning, context.surroundings)
    parallel = parallelize(
        networks.learning,
        mode,
        context.ranks,
        precision=config.precision,
        shard_size=config.parallel.shard_size,
    )
    module = networks.together()
    factors = {name: setup.method.rate_factor(setup.stage, name) for name in networks.learning}
    optimizer = build_optimizer(module, config.optim, kind, factors)
    scale = LossScale(context.device) if config.precision == "fp16" else None
    step_fn = TrainStep(setup, networks, optimizer, parallel, scale)
    average = WeightAverage(module, config.ema) if config.ema else None
    return Session(
        context, setup, networks, parallel, kind, optimizer, step_fn, average, given or {}
    )
