"""The folder of one run: who may write it, which config it belongs to, where things lie."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from fastseg.config.compare import changed_fields
from fastseg.config.described import description_note, with_description
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import read_config, to_dict
from fastseg.console import say
from fastseg.distributed.launch import choose_device
from fastseg.distributed.ranks import Ranks
from fastseg.errors import ConfigError
from fastseg.methods import METHODS
from fastseg.models.precision import best_precision
from fastseg.pipelines.tools.whole_files import remove, unfinished, write_whole

_SAMPLES_HINT = (
    "\nSamples per step are --data.batch-size x --accumulate x processes: on another number of "
    "processes change one of the first two to keep them."
)

_HELPERS_LEAVE_S = 15.0
"""How long the worker processes of a run that was killed may hold its lock: torch's look for their
parent every five seconds."""


class RunFolder:
    """``<out>/<name>``, locked for this process while used as a context manager.

    A second process that wants the same run is refused, with host and number of the first. The lock
    goes with the process, so a crash leaves none behind. Of several processes of one launch, rank 0
    locks and writes for all; the folder must lie on a file system that all of them see.

    Attributes:
        config: that of the run; once inside, with everything decided that was left open.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks | None = None) -> None:
        self._ranks = ranks
        world = 1 if ranks is None else ranks.world
        # the number of processes is part of the recipe: of the samples per step
        parallel = replace(config.parallel, processes=world if world > 1 else 0)
        config = replace(config, parallel=parallel)
        self.path = config.out / config.name
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.config = config
        self._lock: int | None = None

    def weights_file(self, network: str) -> Path:
        """Path of the weights of a finished network."""
        return self.path / f"{network}.safetensors"

    def best_file(self, network: str) -> Path:
        """Path of the weights with the best validation, see ``--evaluation.best``."""
        return self.path / f"{network}-best.safetensors"

    def network_file(self, network: str) -> Path:
        """The weights of a network: those named in the config, or those that the run trains."""
        own, given = self.weights_file(network), self.config.given.get(network)
        stages = [stage for stage in self.config.stages.values() if not self.config.skips(stage)]
        trained = own.exists() and any(network in stage.learners for stage in stages)
        return own if given is None or trained else given

    def network_files(self) -> dict[str, Path]:
        """The weights of every network of this run, in the order of its method."""
        learnt = [name for stage in self.config.stages.values() for name in stage.learners]
        names = {*learnt, *self.config.given}
        order = METHODS[self.config.method].networks
        return {name: self.network_file(name) for name in order if name in names}

    def __enter__(self) -> RunFolder:
        if self._ranks is None:
            self._enter()
            return self
        self._ranks.first(self._enter)
        if not self.config_file.is_file():
            raise ConfigError(
                f"rank {self._ranks.rank} does not see the run folder {self.path} that rank 0 made:"
                " put --out on a file system that all nodes share",
                help="a-node-does-not-see-the-run-folder",
            )
        # rank 0 has decided for all
        decided = read_config(self.config_file)
        self.config = replace(
            self.config,
            precision=decided.precision,
            data=replace(
                self.config.data,
                dataset=decided.data.dataset,
                description=decided.data.description,
            ),
        )
        return self

    def _enter(self) -> None:
        self._create()
        self._acquire()
        try:
            if self.config.fresh:
                self._move_aside()
            self._clear()
            self._claim()
        except BaseException:
            self._release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot create the run folder {self.path}: {error.strerror}; choose another --out"
            ) from None
        if not os.access(self.path, os.W_OK):
            raise ConfigError(f"the run folder {self.path} is read-only; choose another --out")

    def _acquire(self) -> None:
        # of a folder that is reached by several paths there is one lock
        folder = self.path.resolve()
        file = folder.with_name(f".{folder.name}.lock")
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        deadline = time.monotonic() + _HELPERS_LEAVE_S
        try:
            while not _locked(handle, file):
                owner = os.pread(handle, 300, 0).decode(errors="replace").strip()
                # its workers were forked with the lock, and leave soon
                if not (_is_gone(owner) and time.monotonic() < deadline):
                    by = f" ({owner})" if owner else ""
                    raise ConfigError(
                        f"another process{by} is writing the run {folder}: wait for it or choose "
                        "--name",
                        help="the-run-is-in-use",
                    )
                time.sleep(0.1)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        self._lock = handle

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _move_aside(self) -> None:
        if not any(self.path.iterdir()):
            return
        # a link stays and leads to the new folder, whose lock is held
        folder = self.path.resolve()
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
            number += 1
        folder.rename(aside)
        folder.mkdir()

    def _clear(self) -> None:
        """Remove what a process that was killed was writing; nobody else writes now."""
        if self.checkpoints.is_symlink() and not self.checkpoints.is_dir():
            raise ConfigError(
                f"{self.checkpoints} is a link to {self.checkpoints.readlink()}, where no folder "
                "is: make that folder or remove the link"
            )
        for folder in (self.path, self.checkpoints):
            for path in unfinished(folder):
                if reason := remove(path):
                    say(f"warning: left by a run that was killed, and cannot be removed: {reason}")

    def _claim(self) -> None:
        before = read_config(self.config_file) if self.config_file.exists() else None
        self.config = replace(self.config, data=with_description(self.config.data))
        if note := description_note(self.config.data):
            say(note)
        self._decide(before)
        if before is not None and self._has_learnt():
            changed = changed_fields(before, self.config)
            if changed:
                lines = [
                    f"  {key}: {old!r} before, {new!r} now" for key, (old, new) in changed.items()
                ]
                raise ConfigError(
                    f"the run {self.path} was started with other settings:\n"
                    + "\n".join(lines)
                    + "\nUse another --name, or --fresh to move the old run aside."
                    + (_SAMPLES_HINT if "samples per step" in changed else ""),
                    help="settings-that-changed",
                )
        # what only concerns this session is not part of the recipe
        config = replace(self.config, fresh=False, stop_after=0, allow_data_change=False)
        # a reader of the file may stand elsewhere
        packed = config.data.packed
        data = replace(
            config.data, root=config.data.root.absolute(), packed=packed and packed.absolute()
        )
        foundation = config.model.foundation
        model = replace(config.model, foundation=foundation and foundation.absolute())
        config = replace(config, data=data, model=model)
        write_whole(self.config_file, json.dumps(to_dict(config), indent=2) + "\n")

    def _has_learnt(self) -> bool:
        """True once the run has written weights, checkpoints or metrics.

        Until then a run of any settings may take the folder.
        """
        made = [*self.path.glob("*.safetensors"), *self.checkpoints.glob("*")]
        rows = self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0
        return rows or bool(made)

    def _decide(self, before: TrainConfig | None) -> None:
        """Settle what the config leaves open: as the run began, or else for this device."""
        if self.config.precision != "auto":
            return
        if before is not None and before.precision != "auto" and self._has_learnt():
            precision, why = before.precision, "as this run began"
        else:
            device = self._ranks.device if self._ranks else choose_device(self.config.device)
            best = best_precision(device)
            precision, why = best.value, best.why
        self.config = replace(self.config, precision=precision)
        say(f"precision {precision}: {why}")


def _locked(handle: int, file: Path) -> bool:
    """Take the lock of an open file; False if another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(
            f"cannot lock {file} ({error.strerror}): choose an --out whose file system has locks"
        ) from None
    return True


def _is_gone(owner: str) -> bool:
    """Whether the ``process N on HOST`` of a lock was on this host and is no more."""
    word, _, rest = owner.partition(" ")
    number, _, host = rest.partition(" on ")
    if word != "process" or not number.isdecimal() or host != socket.gethostname():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
