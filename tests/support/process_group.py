"""Commands in a process group of their own, as a shell starts them, and their remains."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).parents[2]
PATIENCE_S = 60


def as_a_shell_starts_it():
    """Undo what the tests were started by: nohup ignores SIGHUP, a background job SIGINT."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Group:
    """A command in a process group of its own, as a shell starts it; ``said`` is its output."""

    def __init__(self, command, said, prepare=as_a_shell_starts_it):
        # one thread each: these tests compete with others for the cores
        environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        self.said = said
        with said.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                preexec_fn=prepare,
                env=environment,
            )

    def wait_for(self, text, count=1):
        deadline = time.monotonic() + PATIENCE_S
        while self.said.read_text().count(text) < count:
            assert time.monotonic() < deadline, self.said.read_text()
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.02)

    def interrupt(self, number=signal.SIGINT):
        os.killpg(self.process.pid, number)

    def end(self, seconds=PATIENCE_S):
        """Exit code, after which no process of the group may be left."""
        code = self.process.wait(seconds)
        deadline = time.monotonic() + 10
        while self.members() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.members() == []
        return code

    def members(self):
        """Living processes of the group."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, _, rest = stat.read_text().partition(" (")
            except OSError:
                continue
            state, _, group = rest.rpartition(") ")[2].split()[:3]
            if int(group) == self.process.pid and state != "Z":
                found.append(int(pid))
        return found
