"""Launches of two gloo processes; every launch checks many things and writes down what it saw."""

import os
import socket
from pathlib import Path

import pytest

from tests.support.warm_process import WarmProcess

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[2]


class Launch:
    """Processes of one run, with the variables that torchrun would set."""

    def __init__(self, arguments, world=2, per_rank=()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), **environment()}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        extra = {rank: list(more) for rank, more in per_rank}
        self.ranks = [
            WarmProcess(
                [*map(str, arguments), *extra.get(rank, [])],
                shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(world)
        ]

    def finish(self, timeout=120):
        """Exit codes, and what all processes wrote to standard output and error."""
        try:
            texts = [process.communicate(timeout=timeout) for process in self.ranks]
        finally:
            for process in self.ranks:
                process.kill()
        outs, errors = zip(*texts, strict=True)
        return [process.returncode for process in self.ranks], "".join(outs), "".join(errors)


@pytest.fixture(name="environment", scope="session")
def environment_fixture():
    """See `environment`."""
    return environment()


@pytest.fixture(scope="session")
def launch():
    """Start processes of one run; see `Launch`. None outlives the tests."""
    started = []

    def start(*arguments, **options):
        started.append(Launch(*arguments, **options))
        return started[-1]

    yield start
    for process in (process for one in started for process in one.ranks):
        process.kill()


def environment():
    """That of a process which finds this checkout and takes one thread."""
    path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
