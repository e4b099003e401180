"""The trainer: runs the stages of a config in order and resumes any of them at any step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from fastseg import checkpoint
from fastseg.context import RunContext
from fastseg.errors import ConfigError
from fastseg.evaluation import evaluate_subsets
from fastseg.interrupt import StopRequest
from fastseg.models import SegFormer, load_encoder_weights
from fastseg.optim import build_optimizer
from fastseg.pipelines import build_loader
from fastseg.run_folder import RunFolder
from fastseg.schedule import Stage, derive_seed
from fastseg.step import TrainStep
from fastseg.telemetry import Meter, MetricsLog, Progress, say

VALIDATIONS_PER_STAGE = 10


class Stopped(Exception):
    """The run was asked to stop; its state is saved and the same command continues it."""


@dataclass
class _Session:
    """What the steps of one stage share."""

    name: str
    stage: Stage
    network: SegFormer
    optimizer: torch.optim.AdamW
    steps: int
    train: TrainStep


class Trainer:
    """Trains the networks of a config inside a run folder."""

    def __init__(self, context: RunContext, run: RunFolder) -> None:
        self.context = context
        self.config = context.config
        self.run = run
        self.metrics = MetricsLog(run.metrics_file)
        self.loader = build_loader(self.config.data, train=True, seed=self.config.seed)
        self.val_loader = build_loader(self.config.data, train=False, seed=self.config.seed)
        self.stop = StopRequest()
        self._session_steps = 0

    def fit(self) -> None:
        """Run every stage that is not finished yet.

        Raises:
            Stopped: a signal or ``stop_after`` ended the session; the state is saved.
        """
        try:
            with self.stop:
                for index, (name, stage) in enumerate(self.config.stages.items()):
                    if stage.trains == "teacher" and self.config.teacher is not None:
                        say(f"{name}: skipped, the teacher is {self.config.teacher}")
                    elif not self._finished(name, stage):
                        self._run_stage(index, name, stage)
        finally:
            self.loader.close()
            self.val_loader.close()

    def _finished(self, name: str, stage: Stage) -> bool:
        """Whether this stage, or a later one of the same network, has written its weights."""
        path = self.run.weights_file(stage.trains)
        if not path.exists():
            return False
        _, facts = checkpoint.read_identity(path)
        order = list(self.config.stages)
        return order.index(facts["stage"]) >= order.index(name)

    def _run_stage(self, index: int, name: str, stage: Stage) -> None:
        session = self._open(index, name, stage)
        done = self._resume(session)
        self._announce(session, done)
        progress = Progress(name, session.steps, done)
        stream = self.loader.batches(done, session.steps)
        meter = Meter()
        shown: dict[str, str] = {}
        try:
            for step in range(done, session.steps):
                began = time.perf_counter()
                batch = next(stream).to(self.context.device)
                waited = time.perf_counter() - began
                values = session.train(step, batch)
                meter.add(values, samples=batch.labels.shape[0], waited=waited)
                done = step + 1
                if done % self.config.log_every == 0 or done == session.steps:
                    shown |= self._log(session, done, meter.read())
                if done % self._validation_interval(session) == 0 or done == session.steps:
                    shown |= self._validate(session, done)
                    meter.restart_clock()
                progress.show(shown)
                progress.advance()
                self._save_if_due(session, done)
        finally:
            stream.close()
            progress.close()
        config = self.config
        size = config.data.size
        facts = {"stage": name, "steps": session.steps, "seed": config.seed, "size": size}
        path, identity = self.run.weights_file(stage.trains), self.context.identity(stage.trains)
        checkpoint.save_weights(path, session.network, identity, facts)
        checkpoint.remove_states(self.run.checkpoints)

    def _open(self, index: int, name: str, stage: Stage) -> _Session:
        teacher = None
        if stage.needs_teacher():
            teacher = self.context.load_network(self.run.teacher_file())
        seed = derive_seed(self.config.seed, index, 0, "weights")
        network = self.context.new_network(seed)
        if stage.start == "teacher" and teacher is not None:
            network.load_state_dict(teacher.state_dict())
        elif stage.start == "encoder":
            say(self._load_encoder(network))
        network.to(self.context.device).train()
        optimizer = build_optimizer(network, self.config.optim)
        target = teacher if stage.learns_from == "teacher" else None
        epoch = self.loader.steps_per_epoch
        train = TrainStep(self.config, stage, index, network, target, optimizer, epoch)
        return _Session(name, stage, network, optimizer, stage.num_steps(epoch), train)

    def _load_encoder(self, network: SegFormer) -> str:
        if self.config.model.weights is None:
            return "no --model.weights: the encoder starts from random weights"
        return str(load_encoder_weights(network, self.config.model.weights))

    def _validation_interval(self, session: _Session) -> int:
        return self.config.evaluation.every or max(1, session.steps // VALIDATIONS_PER_STAGE)

    def _log(self, session: _Session, done: int, values: dict[str, float]) -> dict[str, str]:
        row: dict[str, Any] = {"kind": "train", "stage": session.name, "step": done}
        row["lr"] = session.optimizer.param_groups[0]["lr"]
        self.metrics.append({**row, **values})
        skipped = int(session.train.skipped_in_row)
        if skipped >= self.config.max_skipped:
            raise ConfigError(
                f"{session.name}: the gradient was not finite in {skipped} steps in a row up to "
                f"step {done}; the last good state is kept. Lower --stages.{session.name}.lr or a "
                "loss weight"
            )
        return {
            "loss": f"{values['loss']:.3f}",
            "images/s": f"{values['images_per_s']:.0f}",
            "data-wait": f"{100 * values['data_wait']:.0f}%",
        }

    def _validate(self, session: _Session, done: int) -> dict[str, str]:
        """Score the full set and the mean over all subsets; they go into the log and the line."""
        limit = self.config.evaluation.samples
        batches = -(-limit // self.config.data.eval_batch_size) if limit else None
        matrices = evaluate_subsets(
            self.context, session.network, self.val_loader.batches(0, batches)
        )
        session.network.train()
        scores = [matrix.scores() for matrix in matrices.values()]
        rows = {
            self.context.subsets[-1].name: (scores[-1].miou_all, scores[-1].miou_present),
            "Mean": (
                sum(s.miou_all for s in scores) / len(scores),
                sum(s.miou_present for s in scores) / len(scores),
            ),
        }
        for subset, (miou_all, miou_present) in rows.items():
            row: dict[str, Any] = {"kind": "eval", "stage": session.name, "step": done}
            row |= {"subset": subset, "miou_all": miou_all, "miou_present": miou_present}
            self.metrics.append(row)
        full, mean = (100 * miou_all for miou_all, _ in rows.values())
        return {"mIoU": f"{full:.1f}", "mean": f"{mean:.1f}"}

    def _save_if_due(self, session: _Session, done: int) -> None:
        if done == session.steps:
            return
        self._session_steps += 1
        stopping = self.stop.requested or self._session_steps == self.config.stop_after
        if stopping or done % self.config.save_every == 0:
            state = {
                "stage": session.name,
                "step": done,
                "skipped_in_row": float(session.train.skipped_in_row),
                "fingerprint": self.loader.fingerprint,
            }
            network, optimizer = session.network, session.optimizer
            keep = self.config.keep_checkpoints
            checkpoint.save_state(self.run.checkpoints, network, optimizer, state, keep)
        if stopping:
            raise Stopped(f"{session.name} stopped after step {done} of {session.steps}")

    def _resume(self, session: _Session) -> int:
        found = checkpoint.newest_state(self.run.checkpoints, session.name)
        step = 0
        if found is not None:
            path, state = found
            if state["fingerprint"] != self.loader.fingerprint:
                raise ConfigError(
                    f"the training samples under {self.config.data.root} are not those that "
                    f"{self.run.path} was started with: restore them, or use --fresh to start anew"
                )
            checkpoint.load_state(path, session.network, session.optimizer)
            session.train.skipped_in_row.fill_(state["skipped_in_row"])
            step = int(state["step"])
        self.metrics.rewind(session.name, step)
        return step

    def _announce(self, session: _Session, done: int) -> None:
        config, stage = self.config, session.stage
        millions = sum(p.numel() for p in session.network.parameters()) / 1e6
        terms = " + ".join(f"{weight:g} {term}" for term, weight in stage.losses.active().items())
        since = f", continued at step {done}" if done else ""
        say(
            f"{session.name}: trains the {stage.trains} ({config.model.backbone}, {millions:.2f} M "
            f"parameters, {self.context.device}, {config.precision}) on {stage.modalities} input "
            f"with {terms}; {session.steps} steps of {config.data.batch_size} samples, "
            f"{self.loader.steps_per_epoch} per epoch, {self.loader.name} loader "
            f"({self.loader.reason}){since}"
        )
