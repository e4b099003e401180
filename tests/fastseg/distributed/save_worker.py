"""Runs on both ranks of one launch: saves a small network in shards, and writes what it saw.

save_worker.py OUT
"""

import errno
import json
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fastseg.checkpoint import commit
from fastseg.checkpoint.contents import training_tensors
from fastseg.checkpoint.state import TrainingStates
from fastseg.checkpoint.state_files import load_state
from fastseg.config.sections import OptimConfig
from fastseg.distributed.launch import join
from fastseg.distributed.ranks import Ranks
from fastseg.distributed.sharded_tensors import whole
from fastseg.engine.optim.optimizer import build_optimizer, set_learning_rate
from fastseg.engine.optim.weight_average import WeightAverage

STEPS, HALF = 6, 3


def fresh(sharded):
    """A network of which rows do not divide by two, and of which one tensor has a single row."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 7), nn.BatchNorm1d(7), nn.Linear(7, 5), nn.Linear(5, 1))
    if sharded:
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    optimizer = build_optimizer(module, OptimConfig())
    set_learning_rate(optimizer, 1e-2)
    return module, optimizer, WeightAverage(module, 0.9)


def train(module, optimizer, average, steps):
    """All ranks see the same samples, so that statistics and plain copies agree."""
    for step in steps:
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        module(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(step, torch.zeros(()))


def facts(step):
    fixed = {"fingerprint": "f", "skipped_in_row": 0.0, "loss_scale": None, "parallel": "any"}
    return {"stage": "a", "step": step, "processes": 2, "optimizer": "adamw", **fixed}


def tensors(parts):
    """All tensors whole, by kind and name."""
    found = training_tensors(*parts)
    return {f"{k}/{n}": whole(x).clone() for k, named in found.items() for n, x in named.items()}


def round_trips(out, ranks, alone):
    """States of shards and of copies, continued by shards, by copies and by one process."""
    for source, sharded in (("shards", True), ("copies", False)):
        parts = fresh(sharded)
        train(*parts, range(HALF))
        keep(out, f"{source}-half", ranks, parts)
        states = TrainingStates(out / source)
        module, optimizer, average = parts
        states.save(module, optimizer, facts(HALF), 1, average, ranks, beside=True)
        train(*parts, range(HALF, STEPS))
        states.wait()
        keep(out, f"{source}-whole", ranks, parts)
    ranks.share(lambda: None)
    if ranks.is_first:
        module, optimizer, average = parts = fresh(False)
        train(*parts, range(HALF))
        keep(out, "one-half", ranks, parts)
        TrainingStates(out / "one").save(module, optimizer, facts(HALF), 1, average, alone)
    ranks.share(lambda: None)
    for source in ("shards", "copies", "one"):
        for target, sharded in (("shards", True), ("copies", False)):
            resume(out, source, target, ranks, fresh(sharded))
        if ranks.is_first:
            resume(out, source, "one", alone, fresh(False))
        ranks.share(lambda: None)


def resume(out, source, target, ranks, parts):
    """A state found as a run finds it, read and continued."""
    module, optimizer, average = parts
    path, _ = TrainingStates(out / source).newest("a", lambda: fresh(False)[0], averaged=True)
    load_state(path, module, optimizer, average)
    keep(out, f"{source}-in-{target}", ranks, parts)
    train(*parts, range(HALF, STEPS))
    keep(out, f"{source}-to-{target}", ranks, parts)


def keep(out, name, ranks, parts):
    save_file(tensors(parts), out / f"{name}-{ranks.rank}.safetensors")


def faults(out, ranks):
    """Errors of one rank alone, told by all; the state before stays."""
    module, optimizer, average = parts = fresh(True)
    train(*parts, range(1))
    states = TrainingStates(out / "faults")
    states.save(module, optimizer, facts(1), 1, average, ranks)
    said = {}

    def attempt(name, module=module, optimizer=optimizer):
        states.save(module, optimizer, facts(2), 1, None, ranks, beside=True)
        try:
            states.wait()
        except (OSError, ValueError) as error:
            said[name] = [type(error).__name__, getattr(error, "errno", None), str(error)]

    real = commit.write_tensors, shutil.disk_usage

    def full(tensors, path, *more):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def tiny(path):
        return type(real[1](path))(0, 0, 1000)

    if ranks.rank == 1:
        commit.write_tensors = full
    attempt("full")
    commit.write_tensors = real[0]
    if ranks.rank == 0:
        shutil.disk_usage = tiny
    attempt("no room")
    shutil.disk_usage = real[1]
    other = nn.Linear(3, 7 + ranks.rank)
    attempt("differing", other, torch.optim.AdamW(other.parameters()))
    dist.barrier()
    said["left"] = sorted(path.name for path in (out / "faults").iterdir())
    return said


def main():
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    with join("cpu", timeout_minutes=1) as ranks:
        round_trips(out, ranks, Ranks(ranks.device))
        (out / f"faults-{ranks.rank}.json").write_text(json.dumps(faults(out, ranks)))


if __name__ == "__main__":
    main()
