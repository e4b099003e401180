"""The start of a process of a run: its device, its number, and how it meets the others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from fastseg.distributed.ranks import Ranks
from fastseg.errors import ConfigError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_POLL_S = 0.02


def launched() -> tuple[int, int, int, int]:
    """Rank, world, local rank and local world as the launcher set them; alone without one."""
    try:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        local_rank = int(os.environ.get("LOCAL_RANK", str(rank)))
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    except ValueError as error:
        raise ConfigError(
            f"RANK, WORLD_SIZE, LOCAL_RANK or LOCAL_WORLD_SIZE is not a number ({error}): start "
            "with torchrun, or unset them"
        ) from None
    return rank, world, local_rank, local_world


def choose_device(wanted: str) -> torch.device:
    """The device of this process; asking for a GPU that is not there is an error."""
    _, world, local_rank, _ = launched()
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and not found:
        raise ConfigError("device is cuda but torch finds no GPU: use --device cpu or auto")
    if wanted == "cpu" or not found:
        return torch.device("cpu")
    if world == 1:
        return torch.device("cuda")
    if local_rank >= found:
        raise ConfigError(
            f"local rank {local_rank} has no GPU of its own, this node has {found}: start with "
            f"--nproc-per-node {found}, or use --device cpu"
        )
    return torch.device("cuda", local_rank)


def _word_of_attempt(store: Store, rank: int, world: int, timeout: timedelta) -> str:
    """A word that this attempt of a torchrun has to itself, the same on all ranks.

    With ``--max-restarts`` the processes of an attempt meet in the store of the one before, whose
    keys are still there. The counts of attempts that nodes have differ. So rank 0 makes a word
    up, and answers whatever greeting it finds of a rank until that rank has taken the word.

    Raises:
        RuntimeError: a rank does not come within the time.
    """
    deadline = time.monotonic() + timeout.total_seconds()

    def pause(missing: object) -> None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"rank {missing} did not come within {timeout}")
        time.sleep(_POLL_S)

    own = uuid4().hex
    if rank:
        store.set(f"fastseg/greeting-{rank}", own)
        answer = f"fastseg/answer-{rank}"
        while not (store.check([answer]) and store.get(answer).decode().startswith(own)):
            pause(0)
        word = str(store.get(answer).decode()).removeprefix(own)
        store.set(f"fastseg/taken-{word}-{rank}", "")
        return word
    missing = [*range(1, world)]
    while missing:
        for other in missing:
            greeting = f"fastseg/greeting-{other}"
            if store.check([greeting]):
                store.set(f"fastseg/answer-{other}", store.get(greeting).decode() + own)
        missing = [other for other in missing if not store.check([f"fastseg/taken-{own}-{other}"])]
        if missing:
            pause(missing[0])
    return own


@contextmanager
def join(wanted: str, timeout_minutes: float) -> Iterator[Ranks]:
    """Join the processes of this launch: NCCL between GPUs, gloo between CPUs.

    Args:
        wanted: ``auto``, ``cpu`` or ``cuda``, see `choose_device`.
        timeout_minutes: a collective that takes longer ends the run.

    Raises:
        ConfigError: there is no such device, or the others cannot be reached.
    """
    device = choose_device(wanted)
    rank, world, _, local_world = launched()
    if world == 1:
        yield Ranks(device)
        return
    timeout = timedelta(minutes=timeout_minutes)
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    try:
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            word = _word_of_attempt(store, rank, world, timeout)
            store = dist.PrefixStore(word, store)  # type: ignore[attr-defined]
        dist.init_process_group(
            "nccl" if gpu else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=timeout,
            device_id=device if gpu else None,
        )
        control = dist.new_group(backend="gloo", timeout=timeout)
        background = dist.new_group(backend="gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"rank {rank} of {world} cannot join the others at "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} "
            f"({str(error).splitlines()[0]}): start with torchrun, see docs/howto/several-gpus.md"
        ) from None
    yield Ranks(device, rank, world, local_world, store, control, background)
    # only after success: with a peer gone this could wait for it
    dist.destroy_process_group()
