"""The training states of a run: written whole, checked before use, kept in small number."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.checkpoint.beside import BesideTraining, Staging
from fastseg.checkpoint.commit import StateToWrite, in_words, require_room, write_state
from fastseg.checkpoint.contents import Average, training_tensors
from fastseg.checkpoint.intact import STATE, examine, misfit, read_json, stage_of, stamp
from fastseg.checkpoint.layout import lay_out, own_pieces
from fastseg.console import say
from fastseg.distributed.ranks import Ranks
from fastseg.errors import CheckpointError
from fastseg.pipelines.tools.whole_files import remove, unfinished

ALONE = Ranks(torch.device("cpu"))
_LONG_WAIT_S = 0.1
"""A wait for the state before that is worth a line."""
_LAST_PATIENCE_S = 10.0
"""How long a process that leaves with an error waits for a state that several are writing."""


class TrainingStates:
    """The folder of a run's training states, ``step-XXXXXXXX`` after so many steps of a stage.

    A state is intact if its manifest lists all its files with their SHA-256 and its ``state.json``
    has every field. What was found, or written by this process, is remembered with the size and
    time of the files: a state that is kept is read once, not at every save.

    States may be written beside the training, one at a time. An error of that is raised by the next
    call of `check`, `wait` or `save`, on every rank.

    Args:
        folder: need not exist; a link to another folder stays one.
        patience_s: how long a state that is written beside the training is waited for; None: for
            ever.
    """

    def __init__(self, folder: Path, patience_s: float | None = None) -> None:
        self.folder, self._patience_s = folder, patience_s
        self._given_up = False
        self._faults: dict[Path, tuple[object, str | None]] = {}
        self._stuck: set[Path] = set()
        self._beside, self._staging = BesideTraining(), Staging()

    def save(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        keep: int,
        average: Average | None = None,
        ranks: Ranks = ALONE,
        beside: bool = False,
    ) -> Path:
        """Write a state; of the others, only ``keep - 1`` intact ones of its stage stay.

        Everything goes to a temporary folder first, then a manifest of hashes, then one rename: the
        state is complete or absent. Older states are removed last; what cannot be removed is
        reported. All ranks call, and each writes the rows that it holds, see
        `fastseg.checkpoint.layout`; any number of processes can read what any other wrote.

        Args:
            module: the networks that learn.
            optimizer: optimizer of their parameters.
            state: content of ``state.json``, see `fastseg.checkpoint.intact`.
            keep: states of the stage that stay, this one among them.
            average: averaged weights, if there are any.
            ranks: the processes that hold the tensors.
            beside: return as soon as the tensors are copied, and write them beside the training.

        Raises:
            OSError: a file cannot be written.
            CheckpointError: the disk has no room.
        """
        waited, behind = self.busy, self.wait()
        if waited and behind >= _LONG_WAIT_S and ranks.is_first:
            say(
                f"{state['stage']}: step {state['step']} waited {behind:.1f} s for the training "
                "state before it to be written; raise --save-every if that is too often"
            )
        tensors = training_tensors(module, optimizer, average)
        layout = lay_out(tensors, ranks.world)
        pieces, event = own_pieces(layout, tensors, ranks.rank), None
        if beside:
            files, event = self._staging.copy(pieces)
        else:
            files = {
                name: {key: _for_file(x) for key, x in piece.items()}
                for name, piece in pieces.items()
            }
        final = self.folder / f"step-{state['step']:08d}"
        job = StateToWrite(final, files, layout, json.dumps(state, indent=1), event)
        committed = partial(self._committed, final, state["stage"], keep)
        task = partial(write_state, job, ranks, committed)
        if beside:
            self._beside.start(task, f"{final}")
        else:
            task()
        return final

    @property
    def busy(self) -> bool:
        """True while a state is written beside the training."""
        return self._beside.busy

    def check(self) -> None:
        """Raise the error of a state that was written beside the training; nothing waits."""
        self._beside.check()

    def wait(self) -> float:
        """Wait until the state that is being written is there; seconds that this took.

        Raises:
            CheckpointError: it is not there in time: the disk does not answer.
        """
        waited = self._beside.wait(self._patience_s)
        if self.busy:
            self._given_up = True
            raise CheckpointError(
                f"{self._beside.what} is not written after {waited:.3g} s: the disk does not "
                "answer, or is too slow. Look at it, choose another with --out, or raise "
                "--parallel.timeout (minutes); the same command continues from the state before"
            )
        return waited

    def leave(self, ranks: Ranks) -> None:
        """Give a state that is being written the time to be finished, after an error elsewhere.

        Of several processes the others may be gone, so there is a limit.
        """
        if self._given_up:
            return
        try:
            self._beside.wait(self._patience_s if ranks.world == 1 else _LAST_PATIENCE_S)
        except (OSError, CheckpointError) as error:
            # the first error is the one that is told; this one cost no more than the newest state
            say(f"warning: the last training state could not be written: {error}")
        except RuntimeError:
            # of several processes one is gone, which is what the first error tells
            if ranks.world == 1:
                raise

    def foresee(self, size: int, keep: int) -> None:
        """Before the first step: refuse, or warn of, a disk without room for the states to come.

        Args:
            size: bytes of one.
            keep: states that are kept; there is one more while it is being written.

        Raises:
            CheckpointError: there is no room for one.
        """
        free = require_room(self.folder / "step-00000000", size)
        ahead = max(1, keep + 1 - len(self._paths())) * size
        if free < ahead:
            say(
                f"warning: {self.folder} will hold {keep} training states of {in_words(size)} and "
                f"one more while it is written: {in_words(ahead)} more than now, and "
                f"{in_words(free)} are free; make room, or lower --keep-checkpoints"
            )

    def newest(
        self, stage: str, network: Callable[[], nn.Module], averaged: bool = False
    ) -> tuple[Path, dict[str, Any]] | None:
        """The newest intact state of a stage that fits, or None.

        What is damaged or does not fit is reported and passed over.

        Args:
            stage: states of others are left aside.
            network: makes a network like that of the states; called if there is one to compare.
            averaged: true if the states have to have averaged weights.
        """
        passed = 0
        for path in self._paths():
            if stage_of(path) not in (stage, None):
                continue
            fault = self._fault(path) or misfit(path, network(), averaged)
            if fault is None:
                state: dict[str, Any] = read_json(path / STATE)
                return path, state
            self._faults[path] = stamp(path), fault
            say(f"warning: {path} is passed over: {fault}")
            passed += 1
        if passed:
            say(
                f"warning: none of the {passed} states of the stage {stage} in {self.folder} can "
                "be used: the stage starts again at step 0"
            )
        return None

    def remove(self) -> None:
        """Remove all states, for instance once their stage is finished and its weights written."""
        for path in [*self._paths(), *unfinished(self.folder)]:
            self._remove(path)
        if self.folder.is_dir() and not self.folder.is_symlink() and not any(self.folder.iterdir()):
            self._remove(self.folder)

    def _paths(self) -> list[Path]:
        """All states, whatever their stage and condition, the newest first."""
        found = [p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)

    def _committed(self, newest: Path, stage: str, keep: int) -> None:
        """Remove what is of no more use, now that a state has its name."""
        self._faults[newest] = stamp(newest), None
        others = [path for path in self._paths() if path != newest]
        useful = [p for p in others if stage_of(p) == stage and self._fault(p) is None]
        useless = [path for path in others if path not in useful]
        for path in [*useless, *useful[keep - 1 :]]:
            self._remove(path)

    def _fault(self, path: Path) -> str | None:
        """Reason why a state is not intact, or None; read again only if its files have changed."""
        now = stamp(path)
        if self._faults.get(path, (None, None))[0] != now:
            self._faults[path] = now, examine(path)
        return self._faults[path][1]

    def _remove(self, path: Path) -> None:
        reason = remove(path)
        if reason and path not in self._stuck:
            self._stuck.add(path)
            say(f"warning: a training state that is not needed stays: {reason}; remove it by hand")


def _for_file(tensor: Tensor) -> Tensor:
    """A tensor as a file takes it: dense and on the CPU, copied only if it has to be."""
    # a counter of steps may be one tensor for many parameters; files want one each
    return tensor.contiguous().cpu() if tensor.ndim else tensor.cpu().clone()
