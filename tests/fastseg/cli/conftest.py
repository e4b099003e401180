"""One finished run for all tests of the commands."""

import subprocess
import sys

import pytest

from tests.support.commands import options


@pytest.fixture(scope="session")
def finished(scenes, tmp_path_factory):
    """A finished run of the debug preset and what the command printed."""
    out = tmp_path_factory.mktemp("finished")
    command = [sys.executable, "-m", "fastseg.train", *options(scenes, out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return out / "debug", done
