"""The beginning of a stage: its networks, first weights or a saved state, and what was chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastseg.checkpoint.contents import expected_bytes
from fastseg.checkpoint.state import TrainingStates
from fastseg.console import say
from fastseg.distributed.parallelize import copy_size
from fastseg.distributed.sharded_tensors import module_tensors
from fastseg.engine.context import RunContext
from fastseg.engine.memory_forecast import forecast_memory
from fastseg.engine.optim.optimizer import choose_optimizer
from fastseg.engine.parallel_choice import choose_mode
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.stage_run import Session, build_session
from fastseg.engine.stage_setup import StageNetworks, StageSetup, joined
from fastseg.errors import CheckpointError
from fastseg.methods.stage import ENCODER, RANDOM
from fastseg.models import Segmenter
from fastseg.pipelines import Batch, Loader
from fastseg.pipelines.tools.tensor_digest import tensors_digest

Saved = tuple[Path, dict[str, Any]]
"""Folder of a training state, and what its ``state.json`` says."""


def check_models(context: RunContext) -> None:
    """See before the first stage that the method can train the models of all stages on the classes.

    Raises:
        ConfigError: it cannot.
    """
    context.config.losses.check_classes(context.spec.classes)
    for stage in context.config.stages.values():
        with torch.device("meta"):
            names = dict.fromkeys([*stage.learners, *stage.needed()])
            models = {name: context.new_network(0, name) for name in names}
        context.method.check_models(stage, models)


class StageOpening:
    """Opens the stages of a run.

    Args:
        context: of the run.
        run: its folder.
        states: its training states.
    """

    def __init__(self, context: RunContext, run: RunFolder, states: TrainingStates) -> None:
        self.context, self.ranks, self.config = context, context.ranks, context.config
        self.run, self.states = run, states
        stages = context.config.stages
        starts = [stage.start_of(name) for stage in stages.values() for name in stage.learners]
        if context.config.model.weights is not None and ENCODER not in starts:
            self._say(
                "warning: --model.weights is not read, as no stage starts from an encoder: add "
                f"--stages.{next(iter(stages))}.start {ENCODER}"
            )

    def newest(self, setup: StageSetup) -> Saved | None:
        """The newest intact state of a stage; rank 0 looks, so that all take the same."""

        def module() -> nn.Module:
            networks = {n: self.context.new_network(0, n) for n in setup.stage.learners}
            setup.method.hold(setup.stage, networks)
            return joined(networks)

        def find() -> list[Any] | None:
            found = self.states.newest(setup.name, module, averaged=self.config.ema > 0)
            return [str(found[0]), found[1]] if found else None

        found = self.ranks.share(find)
        return (Path(found[0]), found[1]) if found else None

    def open(
        self,
        setup: StageSetup,
        saved: Saved | None,
        loader: Loader,
        batches: Callable[[], Iterable[Batch]],
    ) -> Session:
        """Make the networks of a stage and all that trains them; says what was chosen.

        Args:
            setup: of the stage.
            saved: the state that it continues; its tensors are not read yet.
            loader: of the training batches, which the log names.
            batches: the micro-batches of one step, on the device, to measure with.
        """
        context, device, state = self.context, self.context.device, saved[1] if saved else {}
        finished = {name: self._finished(name) for name in setup.stage.needed()}
        networks = StageNetworks(
            {name: self._first_weights(setup, name, finished) for name in setup.stage.learners},
            {name: finished[name] for name in setup.stage.targets},
        )
        frozen = self._digests(finished, setup.stage.learners, saved)
        for network in networks.learning.values():
            network.to(device).train()
        mode = choose_mode(context, setup, networks, batches, state)
        optimizer = choose_optimizer(
            networks.together(), self.config.optim, self.ranks, before=state.get("optimizer")
        )
        session = build_session(
            context, setup, networks, mode=mode.value, kind=optimizer.value, given=frozen
        )
        for line in session.describe(loader, int(state.get("step", 0)), mode, optimizer):
            self._say(line, detail=True)
        if device.type == "cuda":
            single, size = mode.value == "single", self.config.parallel.shard_size
            shards = 1 if single else copy_size(mode.value, self.ranks, size)
            self._say(f"{setup.name}: expects {forecast_memory(context, setup, shards)}", True)
        size = expected_bytes(session.module, averaged=self.config.ema > 0)
        self.ranks.first(partial(self.states.foresee, size, self.config.keep_checkpoints))
        return session

    def _first_weights(
        self, setup: StageSetup, name: str, finished: dict[str, Segmenter]
    ) -> Segmenter:
        """A network that is about to learn, on the CPU."""
        position = setup.stage.learners.index(name)
        # the networks of a stage start from different weights
        network = self.context.new_network(setup.seed(0, "weights", position), name)
        start = setup.stage.start_of(name)
        if start == ENCODER:
            self._say(self._load_encoder(network))
        elif start != RANDOM:
            setup.method.first_weights(setup.stage, name, network, finished)
        return network

    def _finished(self, name: str) -> Segmenter:
        """A network that an earlier stage has trained, or that the run is given."""
        try:
            return self.context.load_network(self.run.network_file(name), name)
        except CheckpointError as error:
            if name not in self.config.given:
                raise
            raise CheckpointError(f"{error}\n--{name}: {self.config.instead_of(name)}") from None

    def _digests(
        self, finished: dict[str, Segmenter], learners: Sequence[str], saved: Saved | None
    ) -> dict[str, str]:
        """Digests of the networks that a stage is given; it is not continued with other ones."""
        digests = {
            name: tensors_digest(module_tensors(network))
            for name, network in finished.items()
            # one that goes on learning is replaced at the end of the stage
            if name not in learners
        }
        # states of before a stage could have several such networks hold the digest itself
        before = (saved[1].get("frozen") or saved[1]) if saved else {}
        for name, now in digests.items():
            if before.get(name) not in (None, now):
                raise CheckpointError(
                    f"{self.run.network_file(name)} is not the {name} that {self.run.path} was "
                    "learning from: put that one back, or start anew with --fresh or another "
                    "--name"
                )
        return digests

    def _load_encoder(self, network: Segmenter) -> str:
        if self.config.model.weights is None:
            return network.first_encoder()
        return str(network.load_encoder(self.config.model.weights))

    def _say(self, text: str, detail: bool = False) -> None:
        if self.ranks.is_first:
            say(text, detail)
