"""``kill -9`` at random moments of saves: what is committed stays, and the run ends as if unharmed.

The long form runs by ``make endurance``, and prints what it met.
"""

import random
import re
import signal
import time

import pytest

from fastseg.checkpoint.intact import stage_of
from tests.support.interrupted_runs import (
    assert_intact,
    assert_same_run,
    committed,
    options,
    wait_for,
)

TRAIN = ["-m", "fastseg.train"]
KILLS = [pytest.param(2, marks=pytest.mark.slow), pytest.param(28, marks=pytest.mark.endurance)]


@pytest.mark.fault("F1", "F3")
@pytest.mark.parametrize("kills", KILLS)
def test_a_run_that_is_killed_again_and_again_is_one_that_was_not(start, scenes, tmp_path, kills):
    """States are written at once and beside the training in turn; workers load every other time."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    dice, steps, cut_off, stages = random.Random(seed), 6 + 5 * kills // 2, 0, set()
    run = tmp_path / "killed" / "debug"
    newest = (0, 0)  # stages and steps that any process has seen on disk
    whole = start([*TRAIN, *options(scenes, tmp_path / "whole", steps)])
    for number in range(kills):
        beside, workers = ("off", "on")[number % 2], ("0", "2")[number // 2 % 2]
        arguments = options(scenes, tmp_path / "killed", steps, "--save-async", beside)
        child = start([*TRAIN, *arguments, "--data.workers", workers])
        # some saves of this session, then the next one, at a random place of it
        wait_for(lambda c=child: "trains the" in c.said.read_text(), child.process)
        first = max(committed(run), default=0)
        saves = dice.randint(1, 5)
        wait_for(lambda f=first, s=saves: max(committed(run), default=0) not in range(f, f + s),
                 child.process)  # fmt: skip
        wait_for(lambda: list((run / "checkpoints").glob("*.partial")), child.process)
        time.sleep(dice.random() * 0.02)
        seen = position(run)
        child.process.send_signal(signal.SIGKILL)
        child.process.wait()
        newest = max(newest, seen)
        assert position(run) >= newest, "a state that was committed is gone"
        newest = position(run)
        stages.add(newest[0])
        assert_intact(run)
        cut_off += bool(list((run / "checkpoints").glob("*.partial")))
        said = child.said.read_text()
        assert "error" not in said, said
    arguments = options(scenes, tmp_path / "killed", steps)
    last = start([*TRAIN, *arguments])
    assert last.end(300) == 0, last.said.read_text()
    continued = re.search(r"continued at step (\d+)", last.said.read_text())
    assert int(continued[1] if continued else 0) == newest[1]
    print(f"{kills} kills, {cut_off} of them left a state half-written, stages {sorted(stages)}")
    assert whole.end(300) == 0, whole.said.read_text()
    assert_same_run(run, tmp_path / "whole" / "debug")


def position(run):
    """How far a run is on disk: finished stages, and steps of the newest state of the next."""
    finished = len(list(run.glob("*.safetensors")))
    stage = ("teacher", "student", "")[finished]
    return finished, max((s for s, p in committed(run).items() if stage_of(p) == stage), default=0)
