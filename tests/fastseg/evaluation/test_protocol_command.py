"""``--protocols`` as a user meets it: tables, the long file, refusals, two processes."""

import csv

import pytest

from fastseg import evaluate
from fastseg.evaluation.protocols.registry import PROTOCOLS
from fastseg.report.protocol_rows import COLUMNS


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_protocols_of_a_run(run_of_networks, tmp_path, capsys):
    """Every table says what it is of, and the file has every number of it."""
    out = tmp_path / "new" / "scores.csv"
    weights = str(run_of_networks / "student.safetensors")
    arguments = ["--checkpoint", weights, "--protocols", "all", "--out", str(out)]
    assert evaluate.main([*arguments, "--resamples", "5"]) == 0
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert {table.split(":")[0] for table in tables} == set(PROTOCOLS)
    for table in tables:
        assert "missing modalities: " in table
        assert "5 samples of val, faults: none" in table
        assert "student trained on random subsets (drop, per batch), no faults" in table
        assert "95 % intervals over 5 resamples" in table
    rows = rows_of(out)
    assert tuple(rows[0]) == COLUMNS
    assert {row["protocol"] for row in rows} == set(PROTOCOLS)
    keys = [tuple(row[name] for name in COLUMNS[:10]) for row in rows]
    assert len(keys) == len(set(keys))
    for row in rows:
        if row["value"] and row["low"]:
            assert 0 <= float(row["low"]) <= float(row["high"]) <= 100
    (full,) = (
        row
        for row in rows
        if (row["protocol"], row["model"], row["score"]) == ("full", "student", "miou_all")
    )
    assert full["low"] < full["high"]
    printed = next(line for line in tables[0].splitlines() if line.startswith("student   "))
    assert printed.split()[1] == f"{float(full['value']):.2f}"


def test_without_protocols_the_table_is_that_of_a_run(run_of_networks, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    assert evaluate.main(["--checkpoint", str(run_of_networks), "--out", str(out)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[-2:] == ["RDEL", "Mean"]
    assert [line.split()[0] for line in table[1:]] == ["teacher", "student", "gain"]
    assert list(rows_of(out)[0])[:3] == ["model", "subset", "corruption"]


def test_an_unknown_protocol_is_refused_before_anything_is_read(capsys, monkeypatch):
    def forbidden(*_):
        raise AssertionError("something was read")

    monkeypatch.setattr(evaluate, "weights_files", forbidden)
    assert evaluate.main(["--checkpoint", "nowhere", "--protocols", "full", "rmn"]) == 2
    said = capsys.readouterr().err
    assert "unknown protocol 'rmn': did you mean 'rmm'? known are all, full, subsets" in said


@pytest.mark.parametrize("alone", [["--resamples", "9"], ["--published.rounded"]])
def test_what_only_protocols_do_needs_one(run_of_networks, capsys, alone):
    assert evaluate.main(["--checkpoint", str(run_of_networks), *alone]) == 2
    assert "needs protocols: name them, such as --protocols" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--evaluation.window", "33"], "window must be a multiple of 32"),
        (["--evaluation.window", "32", "--evaluation.stride", "33"], "at most the window of 32"),
        (["--evaluation.scales", "0"], "scales must be a list whose values are from 0.1 to 8"),
        (["--resamples", "-1"], "resamples must be from 0 to 10000"),
    ],
)
def test_a_wrong_option_is_refused(run_of_networks, capsys, wrong, message):
    with pytest.raises(SystemExit) as end:
        evaluate.main(["--checkpoint", str(run_of_networks), *wrong])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert "".join(message.split()) in "".join((said.out + said.err).split()).replace("│", "")


def test_views_go_with_the_table_and_with_protocols(run_of_networks, capsys):
    views = ["--evaluation.flip", "--evaluation.window", "32", "--evaluation.stride", "32"]
    command = ["--checkpoint", str(run_of_networks / "student.safetensors"), *views]
    assert evaluate.main(command) == 0
    table = capsys.readouterr()
    assert "scored by scales 1, with mirror images, windows of 32 every 32 pixels" in table.err
    assert evaluate.main([*command, "--protocols", "full"]) == 0
    full = capsys.readouterr().out
    assert "scales 1, with mirror images" in full
    student = next(line.split() for line in table.out.splitlines() if line.startswith("student"))
    again = next(line.split() for line in full.splitlines() if line.startswith("student   "))
    assert student[15] == again[1]
