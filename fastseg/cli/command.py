"""The frame of every command: errors as one message instead of a trace, exit codes."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from fastseg import kernels
from fastseg.cli import help
from fastseg.cli.parse import speaks
from fastseg.config.run import TrainConfig
from fastseg.distributed.launch import join
from fastseg.distributed.ranks import OthersFailed, Ranks
from fastseg.engine.speed.compile import compile_failure
from fastseg.errors import CheckpointError, ConfigError, listed
from fastseg.pipelines import DataError
from fastseg.pipelines.tools.progress import hush
from fastseg.pipelines.tools.workers import worker_fault

BUG, BAD_INPUT, LOST_PEER, OUT_OF_MEMORY, INTERRUPTED = 1, 2, 69, 75, 130
READER_GONE = 141
"""What a shell reports of a command whose output nobody reads any more, as in ``... | head``."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY)
_REFUSALS = (*_FULL, *_FORBIDDEN)
"""What a system says of a place where nothing can be written."""

_PATIENCE_S = 3.0
"""How long a process whose collective broke waits to hear that another one failed first."""


def command(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Turn the errors that a user can cause into a message on standard error and an exit code.

    Every command has ``--quiet``, which is taken out before its own options are read.
    """

    @wraps(main)
    def wrapped(arguments: Sequence[str] | None = None) -> int:
        print_any_name()
        words = list(sys.argv[1:] if arguments is None else arguments)
        hush("--quiet" in words)
        try:
            return main([word for word in words if word != "--quiet"])
        except (Exception, KeyboardInterrupt) as error:
            code, message = explain(error)
            if message is None:
                raise
            # before the processes have met, all of them find the same fault
            if speaks():
                print(message, file=sys.stderr)
            return code

    return while_read(wrapped)


def while_read(main: Callable[..., int]) -> Callable[..., int]:
    """End quietly with `READER_GONE` once nobody reads what a command prints."""

    @wraps(main)
    def wrapped(*arguments: Any, **options: Any) -> int:
        try:
            try:
                return main(*arguments, **options)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            if not _silence_unread():
                raise
            return READER_GONE

    return wrapped


def _silence_unread() -> bool:
    """Lead standard output and error nowhere where nobody reads them; whether one was such.

    What is left in their buffers is written without an error as the interpreter ends.
    """
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    gone = [stream for stream, event in poll.poll(0) if event & select.POLLERR]
    for stream in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    return bool(gone)


@contextmanager
def processes(config: TrainConfig) -> Iterator[Ranks]:
    """Join the processes of this launch; an error on any of them ends all.

    The first process to fail says why, and all leave with its exit code. Whether Triton can build
    the kernels here is tried once, before anything relies on them.
    """
    with join(config.device, config.parallel.timeout) as ranks:
        kernels.settle(ranks.device)
        try:
            yield ranks
        except (Exception, KeyboardInterrupt) as error:
            if ranks.world == 1:
                raise
            _leave_together(ranks, error)


def explain(error: BaseException) -> tuple[int, str | None]:
    """Exit code and message of an error; no message for a bug, whose trace is wanted."""
    if isinstance(error, CheckpointError | ConfigError | DataError):
        return BAD_INPUT, f"error: {error}{help.see(help.anchor_of(error))}"
    if _out_of_memory(error):
        return OUT_OF_MEMORY, (
            f"error: out of memory ({_first_line(error)})\n"
            "Use --precision bf16. If scores were computed, lower --data.eval-batch-size or "
            "--data.eval-size, else let python -m fastseg.train have a lower --data.batch-size "
            "(with a higher --accumulate the samples per step stay) or --data.size. The same "
            "command then continues from the last checkpoint." + help.see(help.MEMORY)
        )
    if (reason := compile_failure(error)) is not None:
        return BAD_INPUT, (
            f"error: torch.compile failed ({reason})\n"
            "The same command with --speed.compile off goes on from the last checkpoint."
            + help.see(help.COMPILE)
        )
    # torch raises it wherever the run is when a worker dies
    if isinstance(error, RuntimeError) and (fault := worker_fault(error)) is not None:
        return BAD_INPUT, f"error: {fault}{help.see(help.anchor_of(fault))}"
    if isinstance(error, OSError) and (error.errno in _REFUSALS or error.filename is not None):
        entry = help.FULL_DISK if error.errno in _FULL else None
        return BAD_INPUT, f"error: {explain_os_error(error)}{help.see(entry)}"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "; ".join(filter(None, ("interrupted", str(error))))
    return BUG, None


def explain_os_error(error: OSError) -> str:
    """The file, what the system says of it, and what to do."""
    if error.errno in _FULL:
        remedy = "make room, or choose another disk with --out; the same command continues"
    elif error.errno in _FORBIDDEN:
        remedy = "choose another place with --out, or ask for the right to use this one"
    elif error.errno in _IN_THE_WAY:
        remedy = "move away what stands there, or choose another place"
    else:
        remedy = "check the path"
    return f"{error.filename or 'a file'}: {error.strerror or error}; {remedy}"


def print_any_name() -> None:
    """Let standard output escape the letters of file names that its encoding does not have."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _leave_together(ranks: Ranks, error: BaseException) -> NoReturn:
    """Exit with the code of the first failure; whoever failed first has said why, or does now."""
    code, message = explain(error)
    if isinstance(error, BrokenPipeError) and _silence_unread():
        code, message = READER_GONE, ""
    known: int | None = None
    if isinstance(error, OthersFailed):
        known = error.code
    elif message is None and isinstance(error, RuntimeError):
        # a collective breaks when its peer has left: then the peer has the reason
        lost = _lost_peer(error)
        if lost:
            ranks.tell_alive()
        known = ranks.failure_of_others(_PATIENCE_S)
        if lost:
            code, message = LOST_PEER, _loss(ranks, error)
    if known is None and ranks.claim_failure(code):
        if message is None:
            traceback.print_exception(error)
        elif message:
            where = f"rank {ranks.rank}: " if ranks.rank else ""
            print(f"{where}{message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    ranks.linger(_PATIENCE_S)
    # without the farewell of the process groups, which could wait for a dead peer
    os._exit(code if known is None else known)


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory is short, of a GPU, or of the host as torch or Python says it."""
    on_host = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return on_host or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _lost_peer(error: RuntimeError) -> bool:
    # the last one is what torch says of a wait, whatever the backend
    said = ("gloo", "NCCL", "Operation timed out")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in said)


def _loss(ranks: Ranks, error: BaseException) -> str:
    """The message about a process that is gone; its last line says which, and at which step."""
    silent = ranks.silent()
    who = "one of the others did"
    if silent:
        names = listed(map(str, silent))
        who = f"rank {names} does" if len(silent) == 1 else f"ranks {names} do"
    where = f" at {ranks.at}" if ranks.at else ""
    return (
        f"error: rank {ranks.rank} lost another process, which was killed or hangs "
        f"({_first_line(error)}){help.see(help.LOST_PROCESS)}\n"
        f"The same command continues from the last checkpoint; {who} not "
        f"answer rank {ranks.rank}{where}."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
