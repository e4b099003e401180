"""A run that meets every kind of fault at random steps is the run that met none of them.

NaN batches and a damaged training image belong to the data: the quiet run has them too, and the log
of both has to tell them. ``SOAK_SEED`` chooses the faults; the long form prints what it met.
"""

import json
import os
import random
import re
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastseg.checkpoint.intact import examine, stage_of
from tests.support.interrupted_runs import assert_same_run, committed, rows
from tests.support.warm_process import WarmProcess

ENDS = ("worker", "SIGTERM", "SIGINT", "SIGUSR1", "SIGKILL", "disk")
"""Faults that end a session."""
BETWEEN = ("flipped bit", "torn image")
"""Faults of the files that the next session finds."""
PATIENCE_S = 3600
EPOCH, SAVE_EVERY, LOG_EVERY = 6, 5, 3
STAGES = ("teacher", "student")
FORMS = [
    pytest.param({"teacher": 30, "student": 18}, 1, id="48"),
    pytest.param({"teacher": 1020, "student": 990}, 6, id="2010", marks=pytest.mark.endurance),
]


@dataclass
class Soak:
    """One run of the debug preset in sessions, and what was injected into it."""

    out: Path
    scenes: Path
    steps: dict[str, int]
    nan: dict[str, list[int]]

    def __post_init__(self):
        self.run, self.told = self.out / "debug", self.out / "told"
        self.out.mkdir()
        self.sessions, self.said = 0, ""

    def start(self, fault=None, after=0, delay=0.0, clock=0.0, size=0):
        """A session in a process of its own."""
        facts = {"fault": fault, "after": after, "delay": delay, "clock": clock, "bytes": size}
        plan = self.out / "plan.json"
        plan.write_text(json.dumps(facts | {"nan": self.nan, "told": str(self.told)}))
        words = ["-m", "tests.support.soak_session", str(plan), *self.options(fault == "worker")]
        return WarmProcess(words, os.environ | {"OMP_NUM_THREADS": "1"})

    def session(self, *fault):
        """Exit code and text of one session; what it continues is the newest intact state."""
        newest = self.newest()
        return self.finish(self.start(*fault), newest)

    def finish(self, process, newest=0):
        """Its exit code and text."""
        try:
            _, said = process.communicate(PATIENCE_S)
        finally:
            process.kill()
        self.sessions += 1
        self.said += said
        assert "Traceback" not in said, said
        found = re.search(r"continued at step (\d+)", said)
        if process.returncode != 2 or found:
            assert int(found[1] if found else 0) == newest, said
        return process.returncode, said

    def options(self, workers):
        return [
            *["--preset", "debug", "--out", str(self.out), "--data.root", str(self.scenes)],
            *["--synthetic.train", "0", "--synthetic.val", "0", "--data.no-cache"],
            *["--data.size", "32", "--data.batch-size", "2", "--data.loader", "torch"],
            *["--data.damaged", "skip", "--data.damaged-limit", "0.1"],
            *["--data.workers", "2" if workers else "0"],
            *["--save-every", str(SAVE_EVERY), "--log-every", str(LOG_EVERY)],
            *["--ema", "0.9", "--evaluation.every", "255", "--evaluation.pictures", "0"],
            *(w for s in STAGES for w in (f"--stages.{s}.steps", str(self.steps[s]))),
        ]

    def stage(self):
        """The stage in progress."""
        return STAGES[len(list(self.run.glob("*.safetensors")))]

    def states(self):
        """Intact states of the stage in progress, by step."""
        stage = self.stage() if self.running() else ""
        found = committed(self.run).items()
        return {n: p for n, p in found if examine(p) is None and stage_of(p) == stage}

    def newest(self):
        return max(self.states(), default=0)

    def running(self):
        return len(list(self.run.glob("*.safetensors"))) < len(STAGES)


@pytest.fixture
def dice():
    seed = int(os.environ.get("SOAK_SEED", "0"))
    print(f"SOAK_SEED={seed}")
    return random.Random(seed)


def damaged(scenes, root):
    """A copy of the scenes with one training image that is cut off."""
    shutil.copytree(scenes, root)
    tear(images(root)[4])
    return root


def images(root):
    """Files of the camera for training."""
    return sorted(path for path in (root / "img").rglob("*.png") if "train" in path.parts)


def tear(path):
    """Cut the end of a file off; returns what it was."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


def flip(path, dice):
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize(("steps", "decks"), FORMS)
def test_a_run_that_meets_every_fault_is_the_quiet_one(scenes, tmp_path, dice, steps, decks):
    began = time.monotonic()
    nan = {s: sorted(dice.sample(range(1, n - 3), max(2, n // 100))) for s, n in steps.items()}
    quiet, stormy = (
        Soak(tmp_path / name, damaged(scenes, tmp_path / f"{name} scenes"), steps, nan)
        for name in ("quiet", "stormy")
    )
    beside = quiet.start()
    met = storm(stormy, dice, decks)
    code, said = quiet.finish(beside)
    assert code == 0, said
    assert_same_run(stormy.run, quiet.run)
    for run in (quiet, stormy):
        assert_log_tells(run)
    met |= {"NaN batch": sum(map(len, nan.values())), "damaged image": 1}
    took = time.monotonic() - began
    print(f"{sum(steps.values())} steps, {stormy.sessions} sessions, {took:.0f} s: {dict(met)}")


def storm(soak, dice, decks):
    """Run to the end through faults of every kind, ``decks`` of each; counts by kind."""
    met = Counter()
    ends = [fault for _ in range(decks) for fault in dice.sample(ENDS, len(ENDS))]
    most = sum(soak.steps.values()) // len(ends)  # so that no fault comes after the end
    waiting = list(BETWEEN) * decks
    for number, fault in enumerate(ends):
        clock = dice.choice((-1, 1)) * dice.uniform(1, 4e7) if number % len(ENDS) == 2 else 0.0
        after, size = dice.randint(most // 2 + 1, most), dice.randrange(1_000, 200_000)
        code, said = soak.session(fault, after, dice.random() * 0.1, clock, size)
        assert code == {"worker": 2, "disk": 2, "SIGKILL": -9}.get(fault, 0), said
        text = {"worker": "a worker process was killed", "disk": "make room", "SIGKILL": ""}
        assert text.get(fault, "run the same command again to continue") in said
        met[fault] += 1
        met["clock jump"] += bool(clock)
        if waiting and soak.newest() and len(ends) - number <= 2 * len(waiting) + 1:
            kind = waiting.pop()
            met[kind] += 1
            (flipped_bit if kind == "flipped bit" else torn_image)(soak, dice)
    assert soak.session()[0] == 0, soak.said
    assert met.keys() == {*ENDS, *BETWEEN, "clock jump"}
    return met


def flipped_bit(soak, dice):
    """The next session passes over the newest state; `Soak.session` looks at what it takes."""
    path = soak.states()[soak.newest()]
    flip(dice.choice(sorted(path.iterdir())), dice)
    assert path not in soak.states().values()


def torn_image(soak, dice):
    """A session is refused, and what was saved stays as it is."""
    path, newest = (
        dice.choice(images(soak.scenes)),
        soak.newest(),
    )
    whole = tear(path)
    code, said = soak.session()
    path.write_bytes(whole)
    assert code == 2
    assert "files of other sizes" in said
    assert soak.newest() == newest


def assert_log_tells(soak):
    """Every step once; skipped steps and replaced samples with counts, and each is said."""
    told = map(json.loads, soak.told.read_text().splitlines())
    told = {(row["stage"], row["step"]): row for row in told}
    assert told.keys() == {(s, n + 1) for s in STAGES for n in range(soak.steps[s])}
    found = [row for row in rows(soak.run) if row["kind"] == "train"]
    ends = [(s, n) for s in STAGES for n in range(LOG_EVERY, soak.steps[s] + 1, LOG_EVERY)]
    assert [(row["stage"], row["step"]) for row in found] == ends
    for row in found:
        window = [told[row["stage"], row["step"] - i] for i in range(LOG_EVERY)]
        bad = sum(step["nan"] for step in window)
        assert row["skipped"] == pytest.approx(bad / LOG_EVERY)
        assert (row["loss"] is None) == bool(bad)
        assert row["replaced_samples"] == sum(len(step["replaced"]) for step in window)
    for stage, steps in soak.steps.items():  # an epoch has every sample once
        replaced = [row["replaced_samples"] for row in found if row["stage"] == stage]
        assert sum(replaced) == steps // EPOCH
    (reason,) = {reason for step in told.values() for reason in step["replaced"]}
    assert f"a training sample is skipped, and the next one taken: {reason}" in soak.said
    skipped = re.findall(r"(\w+): step (\d+) is skipped.*samples (.*?)\)", soak.said)
    assert {stage for stage, _, _ in skipped} == set(STAGES)
    for stage, step, samples in skipped:
        assert told[stage, int(step)]["nan"]
        assert samples == ", ".join(told[stage, int(step)]["ids"])
