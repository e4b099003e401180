"""The trainer: runs the stages of a config in order and resumes any of them at any step."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from functools import partial

from fastseg.checkpoint import weights
from fastseg.checkpoint.beside import saves_beside
from fastseg.checkpoint.data_facts import DataFacts, check_data, data_facts
from fastseg.checkpoint.state import TrainingStates
from fastseg.config.compare import digest, flatten
from fastseg.config.serialise import to_dict
from fastseg.console import say
from fastseg.engine.context import RunContext
from fastseg.engine.kept_weights import KeptWeights
from fastseg.engine.not_finite.watch import SkipWatch
from fastseg.engine.optim import nvidia_apex
from fastseg.engine.run_folder import RunFolder
from fastseg.engine.speed.choices import not_taken
from fastseg.engine.stage_opening import Saved, StageOpening, check_models
from fastseg.engine.stage_run import Session
from fastseg.engine.stage_setup import StageSetup
from fastseg.engine.step_log import StepLog
from fastseg.engine.stop_request import AgreedStop, StillWaiting, StopRequest
from fastseg.engine.validator import MakeValidator
from fastseg.engine.warm_up import warm_up
from fastseg.methods.stage import Stage
from fastseg.pipelines import Batch, DataError, build_loader
from fastseg.pipelines.loaders.to_device import on_device
from fastseg.pipelines.tools.progress import Progress, foretell
from fastseg.report.metrics_log import MetricsLog
from fastseg.report.profiler import StepWatch
from fastseg.report.trackers.registry import Trackers


class Stopped(Exception):
    """The run was asked to stop; its state is saved and the same command continues it."""


class Trainer:
    """Trains the networks of a config inside a run folder, on all processes of a launch together.

    Every process runs the same code on its share of the samples; rank 0 alone writes and speaks.

    Args:
        context: context of the run.
        run: its folder.
        validator: makes what scores the network during training.
    """

    def __init__(self, context: RunContext, run: RunFolder, validator: MakeValidator) -> None:
        self.context, self.ranks = context, context.ranks
        self.config = context.config
        if self.config.optim.kind.startswith("apex"):
            nvidia_apex.require(f"--optim.kind {self.config.optim.kind}", context.device)
        check_models(context)
        self.run = run
        self.metrics = MetricsLog(run.metrics_file, writes=self.ranks.is_first)
        self.states = TrainingStates(run.checkpoints, 60 * self.config.parallel.timeout)
        place = {"seed": self.config.seed, "rank": self.ranks.rank, "world": self.ranks.world}
        self.loader = build_loader(
            self.config.data, train=True, accumulate=self.config.accumulate, **place
        )
        self.val_loader = build_loader(self.config.data, train=False, **place)
        # a fault that the first validation would meet ends the run before its first step
        self.val_loader.check()
        self.kept = KeptWeights(context, run, self.metrics)
        warnings = self.loader.warning, self.val_loader.warning, self.kept.warning
        for warning in filter(None, warnings):
            self._say(f"warning: {warning}")
        # rank 0 looks at the files for all
        self._data = DataFacts(**self.ranks.share(lambda: asdict(data_facts(self.loader))))
        # loaders count micro-batches, everything here counts optimizer steps
        self.steps_per_epoch = self.loader.steps_per_epoch // self.config.accumulate
        self._beside = saves_beside(self.config.save_async, context.device)
        self.stop = StopRequest()
        self._stop_now = AgreedStop(self.ranks)
        self._settings = digest(self.config)
        self._session_steps = 0
        self.opening = StageOpening(context, run, self.states)
        wanted = self.config.trackers if self.ranks.is_first else ()
        settings = flatten(to_dict(self.config))
        self.trackers = Trackers(wanted, self.config.name, settings, self.metrics)
        self.log = StepLog(context, self.loader, self.metrics, self.trackers.send)
        self.validation = validator(context, self.val_loader, self.metrics, self.trackers.send)

    def fit(self) -> None:
        """Run every stage that is not finished yet.

        Raises:
            Stopped: a signal or ``stop_after`` ended the session; the state is saved.
        """
        finished = False
        try:
            with self.stop:
                for name, stage in self.config.stages.items():
                    if self.config.skips(stage):
                        given = self.config.given
                        there = " and ".join(f"the {n} is {given[n]}" for n in stage.learners)
                        self._say(f"{name}: skipped, {there}")
                    elif not self.ranks.share(partial(self._finished, name, stage)):
                        self._run_stage(self.set_up(name))
            # a process that was killed as it finished a stage may have left its states
            self.ranks.first(self.states.remove)
            finished = True
        except Exception:
            self.states.leave(self.ranks)
            raise
        finally:
            self.loader.close()
            self.val_loader.close()
            self.trackers.close(finished)

    def set_up(self, name: str) -> StageSetup:
        """The stage of that name."""
        index = list(self.config.stages).index(name)
        return StageSetup(self.config, name, index, self.config.stages[name], self.steps_per_epoch)

    def _finished(self, name: str, stage: Stage) -> bool:
        """True if this stage, or a later one of the same networks, has written its weights."""
        paths = [self.run.weights_file(network) for network in stage.learners]
        if not all(path.exists() for path in paths):
            return False
        order = list(self.config.stages)
        return min(weights.stage_of(path, order) for path in paths) >= order.index(name)

    def _run_stage(self, setup: StageSetup) -> None:
        name = setup.name
        saved = self.opening.newest(setup)
        session = self.open_session(setup, saved)
        done = self._resume(session, saved)
        self.log.begin(saved[1] if saved else {})
        rehearsed = self._warm_up(session, done)
        if not done:
            self.validation.judge_targets(session)
        checked = done + self.config.parallel.check_steps
        progress = Progress(name, session.steps, done, shown=self.ranks.is_first)
        stream = self._micro_batches(done, session.steps)
        watch = StepWatch(
            name, self.run.path, self.ranks, self.config.profile_steps,
            expected=session.steps - done, forecast=not rehearsed,
        )  # fmt: skip
        skips = SkipWatch(session, self.run.path)
        shown: dict[str, str] = {}
        try:
            if done and self.validation.missing(session, done):
                shown |= self.validation.run(session, done)
                self.log.meter.restart_clock()
            # one that a kill has kept from being written is written now
            ended = done > 0 and self.kept.validated(session, done)
            for step in range(done, done if ended else session.steps):
                self.ranks.at = f"step {step + 1} of {name}"
                began = time.perf_counter()
                batches = self._next_batches(session, stream, done, skips)
                waited = time.perf_counter() - began
                self.log.report_replaced(batches)
                watch.before()
                if step < checked:
                    self._agree(session, step)
                values = session.step_fn(step, *batches)
                if session.average is not None:
                    session.average.update(step, values["skipped"])
                self.log.count_modalities(session, step)
                samples = sum(batch.labels.shape[0] for batch in batches)
                watch.after(samples, waited)
                skips.after(step, values, batches)
                self.states.check()
                self.log.meter.add(values, samples=samples, waited=waited)
                done = step + 1
                if done % self.config.log_every == 0 or done == session.steps:
                    shown |= self.log.write(session, done)
                validates = self.validation.due(session, done)
                # a fault or a kill in a validation then loses no step
                is_saved = validates or done % self.config.save_every == 0
                if is_saved:
                    self._save(session, done, skips, beside=self._beside and done < session.steps)
                if validates:
                    shown |= self.validation.run(session, done)
                    ended = self.kept.validated(session, done)
                    self.log.meter.restart_clock()
                if skips.total:
                    shown["skipped"] = str(skips.total)
                progress.show(shown)
                progress.advance()
                if ended:
                    break
                self._stop_if_asked(session, done, None if is_saved else skips)
        finally:
            stream.close()
            progress.close()
            watch.close()
        self.kept.finish(session, done, self.states)

    def _micro_batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of the optimizer steps ``start`` to ``stop``, on the device."""
        count = self.config.accumulate
        stream = self.loader.batches(start * count, stop * count)
        return on_device(stream, self.context.device)

    def _next_batches(
        self, session: Session, stream: Iterator[Batch], done: int, skips: SkipWatch
    ) -> list[Batch]:
        """The batches of a step; without them, a requested stop saves the ``done`` steps."""
        try:
            with self.stop.waiting():
                return [next(stream) for _ in range(self.config.accumulate)]
        except StillWaiting:
            pass
        if self.ranks.world > 1:
            # the others are in the next step and cannot save with this process
            raise DataError(
                f"{session.name} was asked to stop, and the data of step {done + 1} do not come; "
                "the same command continues from the last checkpoint"
            )
        if done:
            self._save(session, done, skips, beside=False)
        raise Stopped(f"{session.name} stopped while waiting for the data of step {done + 1}")

    def _agree(self, session: Session, step: int) -> None:
        """Compare what the processes are about to train: other work on one gives wrong numbers."""
        present = session.step_fn.present(step, len(self.context.modalities))
        facts = {
            "settings": self._settings,
            "training samples": int(self.loader.fingerprint[:15], 16),
            "step": step,
            "modalities of the step": sum(1 << position for position in present),
        }
        self.ranks.agree(facts, f"at step {step + 1} of {session.name}")

    def open_session(self, setup: StageSetup, saved: Saved | None = None) -> Session:
        """A stage ready for its first step; ``saved`` is the state that it will continue."""
        return self.opening.open(setup, saved, self.loader, partial(self._micro_batches, 0, 1))

    def _save(self, session: Session, done: int, skips: SkipWatch, beside: bool) -> None:
        # what is of no use never takes the place of a good state
        skips.check(done)
        facts = asdict(self._data) | self.log.state()
        session.save(self.states, done, facts, self.config.keep_checkpoints, beside)

    def _stop_if_asked(self, session: Session, done: int, unsaved: SkipWatch | None) -> None:
        """End the session if a signal or ``stop_after`` says so; the end of a stage is passed.

        Steps that are ``unsaved`` are saved first.
        """
        if done == session.steps:
            return
        self._session_steps += 1
        asked = self._stop_now(self.stop.requested)
        if asked or self._session_steps == self.config.stop_after:
            if unsaved is not None:
                self._save(session, done, unsaved, beside=False)
            self.states.wait()
            raise Stopped(f"{session.name} stopped after step {done} of {session.steps}")

    def _resume(self, session: Session, saved: Saved | None) -> int:
        step = 0
        if saved is not None:
            path, state = saved
            root, may = self.config.data.root, self.config.allow_data_change
            if change := check_data(self._data, state, root, self.run.path, may):
                self._say(change)
            session.restore(path, state)
            step = int(state["step"])
        self.metrics.rewind(session.name, step)
        return step

    def _warm_up(self, session: Session, done: int) -> bool:
        """Say how steps are run and what was chosen; the time of the stage if that is known yet."""
        data, train = self.config.data, session.step_fn
        modalities, ahead = len(self.context.modalities), session.steps - done
        self._say(f"{session.name}: {train.paths.describe()}", detail=True)
        for line in not_taken(self.config.speed, train.paths):
            self._say(f"warning: {session.name}: {line}")
        seconds, chosen = warm_up(train, modalities, data.batch_size, data.size, self.ranks)
        for line in chosen:
            self._say(f"{session.name}: {line}", detail=True)
        if seconds is not None:
            seconds *= self.config.accumulate
            left = foretell("a rehearsed step", seconds, ahead)
            self._say(f"{session.name}: {left}", detail=True)
        return seconds is not None

    def _say(self, text: str, detail: bool = False) -> None:
        if self.ranks.is_first:
            say(text, detail)
