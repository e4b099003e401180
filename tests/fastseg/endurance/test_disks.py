"""A disk that is full or slow, and a clock that jumps: what is kept, and what is said."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.support.interrupted_runs import assert_same_run, committed, options
from tests.support.process_group import REPO

MOUNTS = "unshare -rm mount -t tmpfs none /tmp"
NO_FORECAST = """
import sys
from fastseg.checkpoint import commit, state
commit.require_room = state.require_room = lambda folder, size: 10**15
from fastseg import train
sys.exit(train.main(sys.argv[1:]))
"""
# the disk holds one state of 5.6 MB, and later several
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=9m none "$OUT" || exit 99
"$@"; echo "code $?"
ls -a "$OUT/debug/checkpoints"
mount -o remount,size=64m "$OUT"
"$@" --stop-after 1; echo "code $?"
"""


@pytest.mark.endurance
@pytest.mark.fault("F20")
@pytest.mark.parametrize("beside", ["on", "off"])
@pytest.mark.parametrize("code", [NO_FORECAST, ""], ids=["as it is written", "seen before"])
def test_a_disk_that_becomes_full(scenes, tmp_path, code, beside):
    """A real one. Without a look ahead, the second state meets its end as it is written."""
    if subprocess.run(MOUNTS, shell=True, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    out = tmp_path / "small"
    out.mkdir()
    run = ["-c", code] if code else ["-m", "fastseg.train"]
    arguments = options(scenes, out, 6, "--save-async", beside)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh", sys.executable, *run, *arguments],
        env=os.environ | {"PYTHONPATH": f"{REPO}", "OMP_NUM_THREADS": "1", "OUT": f"{out}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    words = done.stdout.split()
    assert words == ["code", "2", ".", "..", "step-00000001", "code", "0"], done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert ("No space left on device" if code else "no room for the training state") in errors[0]
    assert "step-00000002" in errors[0]
    assert "make room, or choose another disk with --out" in errors[0]
    assert "Traceback" not in done.stderr
    assert "continued at step 1" in done.stderr


@pytest.mark.fault("F35")
def test_neither_the_clock_nor_a_slow_disk_decides(config, fit, monkeypatch):
    """Days pass between two looks at the clock, back and forth, and every file takes a while."""
    quiet, _ = fit(config)
    shutil.move(quiet, quiet.with_name("quiet"))
    now, fsync, looks = time.time, os.fsync, []

    def jumping():
        looks.append(now() + (86400 if len(looks) % 2 else -86400))
        return looks[-1]

    def slow(handle):
        time.sleep(0.02)
        fsync(handle)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(os, "fsync", slow)
    stopping = replace(config, stop_after=4, save_every=1, save_async="on")
    assert not fit(stopping)[1]
    states = committed(quiet)
    assert sorted(states) == [3, 4]
    # the older state now looks as if it was written a day after the newer one
    for step, seconds in ((3, now() + 86400), (4, 0)):
        for path in (states[step], *states[step].iterdir()):
            os.utime(path, (seconds, seconds))
    steps = []
    monkeypatch.setattr(
        "fastseg.engine.trainer.Trainer._stop_if_asked", lambda *args: steps.append(args[2])
    )
    assert fit(config)[1]
    assert steps[0] == 5
    assert_same_run(quiet, quiet.with_name("quiet"))
