"""The job script of docs/howto/several-gpus.md, with stand-ins of srun and scontrol."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.interrupted_runs import committed, options, wait_for

ROOT = Path(__file__).parents[2]
SRUN = """#!/bin/bash
# starts the tasks of one node, passes SIGUSR1 to them, and ends with the worst of their codes
shift
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & tasks+=($!)
done
trap 'kill -USR1 "${tasks[@]}"' USR1
worst=0
for task in "${tasks[@]}"; do
  wait "$task"; code=$?
  while [ "$code" -gt 128 ] && kill -0 "$task" 2> /dev/null; do wait "$task"; code=$?; done
  [ "$code" -gt "$worst" ] && worst=$code
done
exit "$worst"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$REQUEUED"; fi
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="the script is one of bash")
@pytest.mark.fault("F16")
@pytest.mark.parametrize("tasks", [1, pytest.param(2, marks=pytest.mark.endurance)])
def test_the_job_saves_before_its_time_is_over_and_continues(scenes, tmp_path, tasks):
    page = (ROOT / "docs/howto/several-gpus.md").read_text(encoding="utf-8")
    script = re.search(r"^```bash\n(#!/bin/bash\n.*?)^```$", page, re.M | re.S)[1]
    assert "#SBATCH --signal=B:USR1@120\n#SBATCH --requeue\n" in script
    words = options(scenes, tmp_path, 60, "--save-every", "100000", "--data.batch-size", "2")
    words += ["--stages.student.steps", "1"]
    ours, count = re.subn(r"--preset .*(?=\n' &\n)", " ".join(words), script)
    assert count == 1
    (tmp_path / "job.sh").write_text(ours)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1]"}
    job |= {"SLURM_NTASKS": str(tasks), "SLURM_NTASKS_PER_NODE": str(tasks)}
    requeued, run = tmp_path / "requeued", tmp_path / "debug"
    ours = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = os.environ | job | ours | {"REQUEUED": str(requeued)}

    started = []

    def start(said):
        with (tmp_path / said).open("w") as file:
            job = subprocess.Popen(
                ["bash", str(tmp_path / "job.sh")],
                env=environment, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        started.append(job)
        return job

    try:
        first, metrics = start("first"), run / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and '"train"' in metrics.read_text(), first)
        first.send_signal(signal.SIGUSR1)  # to the script alone, as B: says
        assert first.wait(60) == 0, (tmp_path / "first").read_text()
        (step,) = committed(run)
        assert f"teacher stopped after step {step} of 60" in (tmp_path / "first").read_text()
        assert requeued.read_text() == f"requeue {os.getpid()}\n"
        second = start("second")
        assert second.wait(120) == 0, (tmp_path / "second").read_text()
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert f"continued at step {step}" in (tmp_path / "second").read_text()
    assert (run / "student.safetensors").exists()
    assert requeued.read_text().count("\n") == 1
