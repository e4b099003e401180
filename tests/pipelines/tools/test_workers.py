"""Helper processes that are short of memory, killed or signalled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastseg.cli import command as cli
from fastseg.pipelines import DataConfig, DataError
from fastseg.pipelines.loaders import raw_batches, torch_loader
from fastseg.pipelines.tools.process_pool import each
from fastseg.pipelines.tools.workers import worker_fault

REPO = Path(__file__).parents[3]
LOAD = """
import sys
from pathlib import Path
from fastseg.cli import command as cli
from fastseg.pipelines import DataConfig, build_loader
@cli.command
def main(arguments):
    config = DataConfig(root=Path(sys.argv[1]), size=512, batch_size=4, workers=2, loader="torch")
    loader = build_loader(config, train=True)
    list(loader.batches(0, 4))
sys.exit(main([]))
"""
SMALL = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}


def test_a_small_shared_memory_is_one_message(deliver_tree: Path) -> None:
    alone = ["unshare", "-m", "sh", "-c", SMALL, "sh"]
    tried = shutil.which("unshare") and subprocess.run([*alone, "true"], capture_output=True)
    if not tried or tried.returncode:
        pytest.skip("no mount namespace of its own is allowed here")
    command = [*alone, sys.executable, "-c", LOAD, str(deliver_tree)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=100, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "/dev/shm is too small" in done.stderr
    assert "--data.workers 0" in done.stderr
    assert "--shm-size" in done.stderr
    assert "Traceback" not in done.stderr


def test_shared_memory_that_runs_out_is_one_message(
    deliver_tree: Path, open_loader: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </x>: No space left")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    config = DataConfig(root=deliver_tree, size=64, batch_size=2, workers=2, loader="torch")
    with pytest.raises(DataError, match=r"/dev/shm is too small.*--data\.workers 0.*--shm-size"):
        next(open_loader(config, train=True).batches())


def test_workers_that_give_nothing_end_the_wait(
    deliver_tree: Path, open_loader: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_loader, "_POLL_S", 1)
    monkeypatch.setattr(torch_loader, "_PATIENCE_S", 1)
    # as a disk that does not answer; the workers inherit it
    monkeypatch.setattr(raw_batches.BatchSource, "_assemble", lambda *_: time.sleep(60))
    config = DataConfig(root=deliver_tree, size=64, batch_size=2, workers=2, loader="torch")
    with pytest.raises(DataError, match=r"gave no batch for 1 s.*--data\.workers 0"):
        next(open_loader(config, train=True).batches())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "was killed"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. ", "/dev/shm is too small"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "was killed"),
        ("received 0 items of ancdata", "ulimit -n"),
    ],
)
def test_what_torch_says_of_workers_gets_a_remedy(text: str, message: str) -> None:
    code, said = cli.explain(RuntimeError(text))
    assert code == cli.BAD_INPUT
    assert message in str(said)
    assert "--data.workers 0" in str(said)


def test_errors_of_the_work_itself_are_left_alone() -> None:
    assert (
        worker_fault(RuntimeError("Caught ValueError in DataLoader worker process 0.\nx")) is None
    )
    assert cli.explain(RuntimeError("shapes do not match")) == (cli.BUG, None)


def die_at_twenty(item: int) -> int:
    if item == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_killed_process_of_a_pool_is_one_message() -> None:
    with pytest.raises(DataError, match=r"a worker process was killed.*--workers 1"):
        list(each(die_at_twenty, range(64), 2))


POOL = """
import signal, time
from fastseg.pipelines.tools.process_pool import each
def dawdle(item):
    time.sleep(0.02)
    return item
if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    for item in each(dawdle, range(96), 2):
        print(item, flush=True)
"""


def test_processes_of_a_pool_leave_stop_signals_to_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(POOL)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(),
    )
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    first = next(lines)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        os.killpg(process.pid, number)
    assert sorted(map(int, (first, *lines))) == list(range(96))
    assert process.wait(60) == 0
