import errno
import fcntl
import os
import re
import socket
import subprocess
from dataclasses import replace
from threading import Timer

import pytest

from fastseg import train as train_command
from fastseg.choice import Choice
from fastseg.config.presets.registry import get_preset
from fastseg.config.serialise import read_config
from fastseg.engine import run_folder
from fastseg.engine.run_folder import RunFolder
from fastseg.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    demo = get_preset("demo")
    return replace(demo, out=tmp_path / "runs", data=replace(demo.data, root=tmp_path / "data"))


def test_config_is_written_and_the_run_can_be_entered_again(config):
    for _ in range(2):
        with RunFolder(config) as run:
            assert read_config(run.config_file) == config


def train(run):
    """What the first logged step leaves."""
    run.metrics_file.write_text('{"kind": "train", "step": 1}\n')


def test_other_settings_are_refused_field_by_field(config):
    with RunFolder(config) as run:
        train(run)
    with pytest.raises(ConfigError) as error, RunFolder(replace(config, seed=5)):
        pass
    assert "seed: 0 before, 5 now" in str(error.value)
    assert "--fresh" in str(error.value)
    with RunFolder(config) as run:  # nothing was overwritten
        assert read_config(run.config_file).seed == 0


def test_settings_that_never_made_a_step_bind_nobody(config):
    with RunFolder(replace(config, seed=5)):
        pass  # as when the data turn out not to be there
    with RunFolder(config) as run:
        assert read_config(run.config_file) == config
        run.checkpoints.mkdir()
        (run.checkpoints / "teacher-00000002").mkdir()
    with (
        pytest.raises(ConfigError, match="seed: 0 before, 5 now"),
        RunFolder(replace(config, seed=5)),
    ):
        pass


def test_auto_precision_is_decided_once_for_a_run(config, monkeypatch, capsys):
    auto = replace(config, precision="auto")
    for best in ("bf16", "fp32"):  # begun on one device, continued on another
        monkeypatch.setattr(
            run_folder, "best_precision", lambda device, best=best: Choice(best, "it is")
        )
        with RunFolder(auto) as run:
            assert run.config.precision == "bf16"
            assert read_config(run.config_file) == replace(config, precision="bf16")
            train(run)
    assert "precision bf16: it is" in (said := capsys.readouterr().err)
    assert "precision bf16: as this run began" in said
    with pytest.raises(ConfigError, match="precision: 'bf16' before, 'fp16' now"):
        RunFolder(replace(config, precision="fp16")).__enter__()
    with RunFolder(replace(auto, fresh=True)) as run:
        assert run.config.precision == "fp32"


def test_fresh_moves_the_old_run_aside(config):
    with RunFolder(config) as run:
        (run.path / "teacher.safetensors").write_text("precious")
    for number in (1, 2):
        with RunFolder(replace(config, fresh=True, seed=number)) as run:
            assert [p.name for p in run.path.iterdir()] == ["config.json"]
    old = config.out / "demo.old1"
    assert (old / "teacher.safetensors").read_text() == "precious"


@pytest.mark.fault("F40")
def test_two_writers_are_refused(config):
    holder = rf"another process \(process {os.getpid()} on {re.escape(socket.gethostname())}\)"
    with RunFolder(config), pytest.raises(ConfigError, match=holder), RunFolder(config):
        pass
    with RunFolder(config):
        pass


@pytest.fixture
def orphaned_lock(config):
    """The lock of a process that is gone, as its workers hold it; returns what lets it go."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    config.out.mkdir()
    with (config.out / ".demo.lock").open("w") as file:
        file.write(f"process {gone.pid} on {socket.gethostname()}\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.close


@pytest.mark.fault("F40")
def test_the_lock_of_a_process_that_is_gone_is_taken_over(config, orphaned_lock):
    """Once its workers are gone, too; they are given the time."""
    Timer(0.5, orphaned_lock).start()
    with RunFolder(config) as run:
        held = (run.path.parent / ".demo.lock").read_text()
    assert held == f"process {os.getpid()} on {socket.gethostname()}\n"


@pytest.mark.fault("F40")
@pytest.mark.parametrize("owner", ["process 1 on elsewhere", "process 1 on {}", "nonsense", ""])
def test_a_lock_that_stays_is_refused_at_once(config, orphaned_lock, monkeypatch, owner):
    monkeypatch.setattr(run_folder.time, "sleep", lambda _: pytest.fail("it waits"))
    (config.out / ".demo.lock").write_text(owner.format(socket.gethostname()))
    with pytest.raises(ConfigError, match="wait for it or choose --name"), RunFolder(config):
        pass


@pytest.mark.fault("F40")
def test_two_paths_to_one_run_have_one_lock(config):
    with RunFolder(config) as run:
        (config.out / "other").symlink_to(run.path, target_is_directory=True)
        with pytest.raises(ConfigError, match="another"), RunFolder(replace(config, name="other")):
            pass
    assert (config.out / ".demo.lock").stat().st_mode & 0o111 == 0


def test_fresh_leaves_a_linked_run_where_the_link_leads(config, tmp_path):
    disk = tmp_path / "disk" / "demo"
    disk.mkdir(parents=True)
    (disk / "teacher.safetensors").write_text("precious")
    config.out.mkdir()
    (config.out / "demo").symlink_to(disk)
    with RunFolder(replace(config, fresh=True)) as run:
        assert run.path.is_symlink()
        assert [p.name for p in disk.iterdir()] == ["config.json"]
    assert (disk.parent / "demo.old1" / "teacher.safetensors").read_text() == "precious"


@pytest.mark.fault("F1")
def test_what_a_killed_process_was_writing_is_removed(config, tmp_path):
    disk = tmp_path / "disk"
    with RunFolder(config) as run:
        (run.path / "figures").mkdir()
    run.checkpoints.symlink_to(disk)
    with pytest.raises(ConfigError, match=r"checkpoints is a link to .*where no folder is"):
        RunFolder(config).__enter__()
    (disk / "step-00000003.partial").mkdir(parents=True)
    (disk / "step-00000003.partial" / ".tmpAbC123").write_text("cut off")
    (disk / "step-00000002").mkdir()
    for name in (".tmpXyZ789", "teacher.safetensors.partial", "figures/a.png.partial"):
        (run.path / name).write_text("cut off")
    (run.path / ".tmp").write_text("notes")
    with RunFolder(config):
        left = [p.relative_to(run.path).as_posix() for p in run.path.rglob("*")]
    assert sorted(left) == [".tmp", "checkpoints", "config.json", "figures"]
    assert [p.name for p in disk.iterdir()] == ["step-00000002"]


def test_a_file_system_without_locks_is_not_called_busy(config, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(ConfigError, match=r"cannot lock .*No locks available"), RunFolder(config):
        pass


def test_a_file_in_the_way(config):
    config.out.write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot create the run folder"), RunFolder(config):
        pass


@pytest.mark.fault("F21")
def test_a_place_where_nobody_may_write_is_named_before_the_data(tmp_path, capsys):
    """The file system of the kernel refuses root, too."""
    words = ["--preset", "debug", "--out", "/proc/runs", "--data.root", str(tmp_path / "none")]
    assert train_command.main(words) == 2
    said = capsys.readouterr().err
    assert "cannot create the run folder /proc/runs/debug: " in said
    assert "choose another --out" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.fault("F21")
def test_read_only_folder(config):
    config.out.mkdir()
    config.out.chmod(0o500)
    with pytest.raises(ConfigError, match="choose another --out"), RunFolder(config):
        pass


def test_teacher_file_is_the_named_one_or_its_own(config, tmp_path):
    own = {name: config.out / "demo" / f"{name}.safetensors" for name in ("teacher", "student")}
    assert RunFolder(config).network_file("teacher") == own["teacher"]
    assert RunFolder(config).network_files() == own
    named = replace(config, teacher=tmp_path / "t.safetensors")
    assert RunFolder(named).network_file("teacher") == named.teacher
    wanted = {"teacher": named.teacher, "student": own["student"]}
    assert RunFolder(named).network_files() == wanted
    alone = replace(named, stages={"student": named.stages["student"]})
    assert list(RunFolder(alone).network_files().items()) == list(wanted.items())
