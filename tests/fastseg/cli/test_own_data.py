"""Data of one's own, from a folder to predictions, as a new user would go."""

import pytest

from fastseg import data, evaluate, predict, train
from tests.support.own_tree import write_own

SIZES = ((67, 100), (67, 100), (64, 84))


@pytest.mark.slow
def test_a_walk_from_a_folder_to_predictions(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path / "data", "colours", {"train": 5, "val": 3}, SIZES)
    place = ["--data.dataset", "mine.toml", "--data.root", "data"]
    assert data.main(["describe", "--root", "data", "--out", "mine.toml"]) == 0
    assert data.main(["check", *place, "--workers", "1"]) == 0
    assert data.main(["stats", *place, "--workers", "1"]) == 0
    assert data.main(["show", *place]) == 0
    assert data.main(["pack", *place, "--workers", "1"]) == 0
    words = [*place, "--preset", "debug", "--data.batch-size", "2", "--name", "own"]
    words += ["--stages.teacher.steps", "2", "--stages.student.steps", "2"]
    assert train.main(words) == 0
    assert "RT" in capsys.readouterr().out

    text = (tmp_path / "mine.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("std = [", "std = [2.5, 2.5, 2.5] # ["))
    assert train.main(words) == 2
    assert "data.description.sensors.0.std: [" in capsys.readouterr().err
    assert evaluate.main(["--checkpoint", "runs/own", "--workers", "0"]) == 0
    told = capsys.readouterr()
    assert (
        "mine.toml has changed since the run began (sensors.0.std, sensors.1.shown, sensors.1.std)"
        in told.err
    )

    # a machine that has neither the file nor the run's folder
    (tmp_path / "mine.toml").rename(tmp_path / "moved.toml")
    weights = tmp_path / "student.safetensors"
    weights.write_bytes((tmp_path / "runs/own/student.safetensors").read_bytes())
    for checkpoint in ("runs/own", str(weights)):
        words = ["--checkpoint", checkpoint, "--data.root", "data", "--workers", "0"]
        assert evaluate.main(words) == 0
    alone = capsys.readouterr().out.splitlines()
    student = [line.split() for line in alone if line.startswith("student")]
    assert student[0] == student[1]
    words = ["--checkpoint", str(weights), "--data.root", "data", "--out", "said"]
    assert predict.main(words) == 0
    assert len(list((tmp_path / "said/labels").rglob("*.png"))) == 3


def test_a_bad_description_stops_a_run_before_its_folder_is_made(tmp_path, capsys):
    (tmp_path / "bad.toml").write_text("[[sensor]]\n")
    words = ["--preset", "debug", "--data.dataset", str(tmp_path / "bad.toml")]
    assert train.main([*words, "--out", str(tmp_path / "runs")]) == 2
    assert "unknown key 'sensor': did you mean 'sensors'?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
