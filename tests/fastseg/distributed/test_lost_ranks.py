"""Ranks that are killed, stopped or told to stop: how the others end, and how a run recovers."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fastseg.engine.not_finite.repeat import repeat
from fastseg.engine.stop_request import SAME_REQUEST_S
from tests.support.interrupted_runs import assert_same_run, committed, options, wait_for

TRAIN = ["-m", "fastseg.train"]


def of_two(scenes, out, steps, *more):
    return options(scenes, out, steps, "--data.batch-size", "2", *more)


def under_torchrun(environment, said, restarts, command):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*torchrun, "--max-restarts", str(restarts), *command]
    with said.open("w") as file:
        return subprocess.Popen([sys.executable, *words], env=environment, stdout=file, stderr=file)


def ranks_of(folder):
    """``{rank: process}`` of a run into a folder that torchrun has started."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (place / "environ").read_bytes().split(b"\0")
            rank = next((v[5:] for v in variables if v.startswith(b"RANK=")), None)
            if rank is not None and os.fsencode(folder) in (place / "cmdline").read_bytes():
                found[int(rank)] = int(place.name)
    return found


@pytest.fixture
def leave_none(tmp_path):
    """No process of a run into the test's folder outlives it."""
    yield
    for pid in ranks_of(tmp_path).values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.fault("F18", "F19")
@pytest.mark.usefixtures("leave_none")
@pytest.mark.parametrize(
    ("victim", "number"),
    [
        (0, signal.SIGKILL),
        pytest.param(1, signal.SIGKILL, marks=pytest.mark.endurance),
        # torchrun kills it half a minute after the other has noticed
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.endurance),
    ],
)
def test_torchrun_starts_again_what_a_lost_rank_has_ended(
    scenes, tmp_path, environment, victim, number
):
    """From the newest state on, to the very weights and rows of a run that nobody has killed."""
    said, quiet = tmp_path / "said", tmp_path / "said-quiet"
    command = [*TRAIN, *of_two(scenes, tmp_path / "quiet", 8)]
    other = under_torchrun(environment, quiet, 0, command)
    command = [*TRAIN, *of_two(scenes, tmp_path / "killed", 8, "--parallel.timeout", "0.3")]
    launcher = under_torchrun(environment, said, 1, command)
    run = tmp_path / "killed" / "debug"
    wait_for(lambda: max(committed(run), default=0) > 2, launcher)
    os.kill(ranks_of(tmp_path / "killed")[victim], number)
    assert launcher.wait(200) == 0, said.read_text()
    assert other.wait(120) == 0, quiet.read_text()
    assert "continued at step" in said.read_text()
    assert_same_run(run, tmp_path / "quiet" / "debug")


@pytest.mark.fault("F19")
@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.endurance)])
def test_a_rank_that_hangs_ends_the_other_within_the_timeout(scenes, tmp_path, launch, victim):
    """The last line says which rank does not answer, and at which step."""
    command = of_two(scenes, tmp_path, 4000, "--parallel.timeout", "0.1")
    both = launch([*TRAIN, *command])
    run = tmp_path / "debug"
    wait_for(lambda: max(committed(run), default=0) > 1, both.ranks[0])
    both.ranks[victim].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    other = both.ranks[1 - victim]
    _, said = other.communicate(timeout=60)
    assert time.monotonic() - began < 6 + 30
    both.ranks[victim].kill()
    assert other.returncode == 69, said
    last = said.splitlines()[-1]
    step = max(committed(run)) + 1
    assert f"rank {victim} does not answer rank {1 - victim} at step " in last
    assert last.endswith(" of teacher.")
    assert abs(int(last.split(" at step ")[1].split()[0]) - step) <= 1
    assert "Traceback" not in said


@pytest.mark.endurance
@pytest.mark.fault("F16")
@pytest.mark.parametrize(
    ("number", "ranks"),
    [(signal.SIGUSR1, [0]), (signal.SIGTERM, [0, 1]), (signal.SIGINT, [0, 1])],
)
def test_a_signal_stops_all_at_the_same_step(scenes, tmp_path, launch, number, ranks):
    both = launch([*TRAIN, *of_two(scenes, tmp_path, 4000, "--save-every", "100000")])
    metrics = tmp_path / "debug" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and '"train"' in metrics.read_text(), both.ranks[0])
    for rank in ranks:
        both.ranks[rank].send_signal(number)
    codes, _, said = both.finish()
    assert codes == [0, 0], said
    (step,) = committed(tmp_path / "debug")
    assert f"teacher stopped after step {step} of 4000" in said


SLOW = """
import sys, time
from fastseg.engine.step import TrainStep
plain = TrainStep.__call__
def slow(self, step, *batches):
    if step == 2:
        print("MARK", flush=True)
        time.sleep(60)
    return plain(self, step, *batches)
TrainStep.__call__ = slow
from fastseg import train
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.endurance
@pytest.mark.fault("F17")
def test_a_second_signal_ends_all_at_once(scenes, tmp_path, launch):
    """The state before stays, and the same command continues from it."""
    command = of_two(scenes, tmp_path, 4)
    both = launch(["-c", SLOW, *command])
    for process in both.ranks:
        assert process.stdout.readline() == "MARK\n"
    for pause in (SAME_REQUEST_S + 0.5, 0):
        for process in both.ranks:
            process.send_signal(signal.SIGTERM if pause else signal.SIGINT)
        time.sleep(pause)
    codes, _, said = both.finish(timeout=30)
    assert codes == [130, 130], said
    assert "Traceback" not in said
    assert list(committed(tmp_path / "debug")) == [1, 2]


POISONED = """
import sys
from fastseg.engine import trainer
real = trainer.on_device
def poisoned(batches, device):
    for step, batch in enumerate(real(batches, device)):
        if step >= 2:
            batch.images[1, 0, 0, 0, 0] = float("nan")
        yield batch
if "--poisoned" in sys.argv:
    sys.argv.remove("--poisoned")
    trainer.on_device = poisoned
from fastseg import train
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.endurance
@pytest.mark.fault("F13", "F14")
def test_images_of_one_rank_that_are_not_finite_end_all_at_one_step(scenes, tmp_path, launch):
    """Each rank leaves its share of the step, and only that of the one repeats without a number."""
    command = of_two(scenes, tmp_path, 8, "--max-skipped", "3", "--parallel.mode", "replicate")
    codes, _, said = launch(["-c", POISONED, *command], per_rank=[(1, ["--poisoned"])]).finish()
    assert codes == [2, 2], said
    assert "the gradient was not finite in 3 steps in a row up to step 5" in said
    run = tmp_path / "debug"
    assert max(committed(run)) <= 4
    files = [run / f"not-finite-teacher{rank}.json" for rank in ("", "-rank1")]
    dumps = [json.loads(file.read_text()) for file in files]
    assert [dump["step"] for dump in dumps] == [5, 5]
    assert [len(dump["skipped_steps"]) for dump in dumps] == [3, 3]
    assert dumps[0]["images_not_finite"] == []
    assert dumps[1]["images_not_finite"][0].endswith(" (depth)")
    assert [math.isfinite(repeat(file).values["ohem"]) for file in files] == [True, False]
