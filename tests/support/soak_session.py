"""One session of a run that meets one fault: ``soak_session.py PLAN`` and options of training.

PLAN is a JSON file:

    fault, after, delay: what happens so many seconds after the data of that step of the session
    clock: seconds that the clock jumps by at half of these steps
    bytes: what a file may take when the disk is full
    nan: ``{stage: [steps]}`` whose images are not finite, numbers from 1
    told: file that gets ``{stage, step, ids, nan, replaced}`` of every step, one a line
"""

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

from fastseg import train
from fastseg.engine.trainer import Trainer

PLAN = json.loads(Path(sys.argv[1]).read_text())


def signalled(number):
    """At any moment, so not always where Python looks at signals next."""
    threading.Timer(PLAN["delay"], os.kill, (os.getpid(), number)).start()


def kill_a_worker():
    workers = multiprocessing.active_children()
    os.kill(random.choice(workers).pid, signal.SIGKILL)


def fill_the_disk():
    """The largest file that a process may write stands in for the disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (PLAN["bytes"], resource.RLIM_INFINITY))


FAULTS = {
    "worker": kill_a_worker,
    "disk": fill_the_disk,
    **{n: lambda n=n: signalled(signal.Signals[n]) for n in ("SIGTERM", "SIGINT", "SIGUSR1")},
    "SIGKILL": lambda: signalled(signal.SIGKILL),
    None: lambda: None,
}


def jump_of_the_clock():
    plain, plain_ns = time.time, time.time_ns
    time.time = lambda: plain() + PLAN["clock"]
    time.time_ns = lambda: plain_ns() + int(PLAN["clock"] * 1e9)


def with_faults(trainer, session, stream, done, skips, met=[0]):  # noqa: B006
    batches = PLAIN(trainer, session, stream, done, skips)
    met[0] += 1
    if met[0] == (PLAN["after"] + 1) // 2 and PLAN["clock"]:
        jump_of_the_clock()
    if met[0] == PLAN["after"]:
        FAULTS[PLAN["fault"]]()
    bad = done + 1 in PLAN["nan"].get(session.name, [])
    row = {"stage": session.name, "step": done + 1, "nan": bad}
    row["ids"] = [name for batch in batches for name in batch.sample_ids]
    row["replaced"] = [reason for batch in batches for reason in batch.replaced]
    with open(PLAN["told"], "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    if bad:
        nothing = [torch.full_like(batch.images, torch.nan) for batch in batches]
        pairs = zip(batches, nothing, strict=True)
        batches = [replace(batch, codes=images, finish=None) for batch, images in pairs]
    return batches


if __name__ == "__main__":
    PLAIN, Trainer._next_batches = Trainer._next_batches, with_faults
    sys.exit(train.main(sys.argv[2:]))
