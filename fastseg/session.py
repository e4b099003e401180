"""One stage in progress: the network that learns and everything whose state must survive."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastseg.context import RunContext
from fastseg.ema import WeightAverage
from fastseg.fast_paths import SpeedConfig
from fastseg.models import SegFormer
from fastseg.optim import Optimizer, build_optimizer
from fastseg.parallel import Parallel, parallelize
from fastseg.pipelines import Loader
from fastseg.precision import LossScale
from fastseg.schedule import Stage
from fastseg.shards import module_tensors
from fastseg.states import TrainingStates, load_state
from fastseg.step import TrainStep
from fastseg.telemetry import say


@dataclass
class Session:
    """What the steps of one stage share.

    Attributes:
        network: learns; its parameters may be shards.
        kind: of the optimizer.
        steps: length of the stage.
        average: of the weights, if the config asks for one.
    """

    name: str
    stage: Stage
    context: RunContext
    network: SegFormer
    parallel: Parallel
    kind: str
    optimizer: Optimizer
    steps: int
    train: TrainStep
    average: WeightAverage | None

    def scored(self) -> SegFormer:
        """The network to score and to keep: whole, and averaged if there is an average.

        Collective. It is the learning network itself where that is whole and not averaged.
        """
        if self.average is None and not self.parallel.sharded:
            return self.network
        tensors = module_tensors(self.network)
        if self.average is not None:
            tensors |= self.average.tensors()
        network = self.context.new_network(seed=0)
        network.load_state_dict(tensors)
        return network.to(self.context.device)

    def describe(
        self, loader: Loader, epoch: int, done: int, why_mode: str, why_kind: str
    ) -> tuple[str, str]:
        """What is about to be trained, and how; the reasons are those of the choices made."""
        config, stage = self.context.config, self.stage
        millions = sum(p.numel() for p in self.network.parameters()) / 1e6
        terms = " + ".join(f"{weight:g} {term}" for term, weight in stage.losses.active().items())
        since = f", continued at step {done}" if done else ""
        factors = {"processes": self.parallel.world, "micro-batches": config.accumulate}
        times = "".join(f" x {count} {what}" for what, count in factors.items() if count > 1)
        average = f", weights averaged with decay {config.ema:g}" if config.ema else ""
        what = (
            f"{self.name}: trains the {stage.trains} ({config.model.backbone}, {millions:.2f} M "
            f"parameters, {self.context.device}, {config.precision}) on {stage.modalities} input "
            f"with {terms}; {self.steps} steps of {config.data.batch_size} samples{times}, "
            f"{epoch} per epoch, {loader.name} loader ({loader.reason}){since}"
        )
        how = (
            f"{self.name}: {self.parallel.says} [{why_mode}]; optimizer {self.kind} "
            f"[{why_kind}]; {config.model.norm} LayerNorm{average}"
        )
        return what, how

    def save(self, states: TrainingStates, done: int, facts: dict[str, Any], keep: int) -> None:
        """Write the training state after ``done`` steps; collective, rank 0 writes."""
        scale = self.train.scale
        state = {
            "stage": self.name,
            "step": done,
            "skipped_in_row": float(self.train.skipped_in_row),
            "loss_scale": None if scale is None else scale.state(),
            "parallel": self.parallel.mode,
            "processes": self.parallel.world,
            "optimizer": self.kind,
            "rrm": self.context.config.losses.rrm,
            "attention": self.train.attention,
            **facts,
        }
        states.save(
            self.network, self.optimizer, state, keep,
            average=self.average, writes=self.context.ranks.is_first,
        )  # fmt: skip

    def restore(self, path: Path, state: dict[str, Any]) -> None:
        """Inverse of `save`, on any number of processes; each reads the files itself."""
        if self.context.ranks.is_first and (change := self._changed_meaning(state)):
            say(f"warning: {self.name}: {change}")
        load_state(path, self.network, self.optimizer, self.average)
        self.train.skipped_in_row.fill_(state["skipped_in_row"])
        self.train.attention = state.get("attention")
        if self.train.scale is not None and state.get("loss_scale"):
            self.train.scale.restore(state["loss_scale"])

    def _changed_meaning(self, state: dict[str, Any]) -> str | None:
        """What the settings of a run meant when ``state`` was saved, if they mean another thing."""
        form = self.context.config.losses.rrm
        if "rrm" in state or form != "code" or "rrm" not in self.stage.losses.active():
            return None
        return (
            f"step {state['step']} was saved when --losses.rrm code divided each level by its own "
            "size, which is code-normalised now; from here on the levels have the released "
            "proportions. To train all steps alike start anew with --fresh, and for the old form "
            "with --losses.rrm code-normalised"
        )


def build_session(
    context: RunContext,
    index: int,
    name: str,
    stage: Stage,
    network: SegFormer,
    teacher: SegFormer | None,
    *,
    epoch: int,
    mode: str,
    kind: str,
    speed: SpeedConfig | None = None,
) -> Session:
    """Make a network ready to train.

    Args:
        context: of the run.
        index: of the stage.
        name: of the stage.
        stage: what is trained.
        network: first weights, on the device; changed in place.
        teacher: frozen network that the stage learns from, whole on every process: it is small.
        epoch: steps of one epoch.
        mode: how the network is spread, see `parallelize`.
        kind: of the optimizer.
        speed: ways of running a step; those of the config by default.
    """
    config, device = context.config, context.device
    config = replace(config, speed=speed or config.speed)
    network.train()
    parallel = parallelize(
        network,
        mode,
        context.ranks,
        precision=config.precision,
        shard_size=config.parallel.shard_size,
    )
    optimizer = build_optimizer(network, config.optim, kind)
    scale = LossScale(device) if config.precision == "fp16" else None
    train = TrainStep(
        config, stage, index, network, teacher, optimizer, epoch, parallel=parallel, scale=scale
    )
    average = WeightAverage(network, config.ema) if config.ema else None
    steps = stage.num_steps(epoch)
    return Session(name, stage, context, network, parallel, kind, optimizer, steps, train, average)
