"""The comparison of methods: arithmetic of its table, and rows that are there are not run again."""

from dataclasses import replace

import pytest

from bench.studies import compare_methods, teacher_size
from bench.studies.compare_methods import CompareConfig, append_row, missing_runs, read_rows
from bench.studies.method_table import expectation, format_table, paired_differences, scores_of
from bench.studies.teacher_size import TeacherSizeConfig
from fastseg.report.results import SubsetResult, write_results


def row(method, seed, r, d, rd, missing="drop"):
    scores = {"R": str(r), "D": str(d), "RD": str(rd)}
    return {"method": method, "seed": str(seed), "missing": missing, **scores, "command": "c"}


ROWS = [
    row("dropout", 0, 10, 20, 60),
    row("dropout", 1, 20, 30, 70),
    row("hpdm", 1, 26, 30, 70),
    row("hpdm", 0, 13, 20, 60),
    row("hpdm", 2, 99, 99, 99),
]


def test_scores_of_a_row():
    scores = scores_of(ROWS[0])
    assert list(scores) == ["R", "D", "RD", "mean", "full", "E(0.2)", "E(0.1)", "E(0.05)"]
    assert (scores["mean"], scores["full"]) == (30, 60)
    # weights 0.16, 0.16, 0.64
    assert scores["E(0.2)"] == pytest.approx((0.16 * 10 + 0.16 * 20 + 0.64 * 60) / 0.96)


def test_expectation_without_loss_is_the_full_score_and_needs_every_subset():
    subsets = {"R": 1.0, "D": 2.0, "RD": 7.0}
    assert expectation(subsets, 0) == 7
    with pytest.raises(ValueError, match="expected 3 subsets of 2 modalities, got 2"):
        expectation({"R": 1.0, "RD": 7.0}, 0.1)


def test_differences_are_of_the_same_seed():
    assert sorted(paired_differences(ROWS, "hpdm", "mean")) == [pytest.approx(1), pytest.approx(2)]
    assert paired_differences(ROWS, "hpdm", "full") == [0, 0]


def test_table():
    lines = format_table(ROWS).splitlines()
    assert lines[0] == "Missing modalities: drop."
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in lines[4:]}
    assert cells["dropout"][1:3] == ["2", "15.00 ± 7.07"]
    assert cells["dropout"][-2:] == ["-", "-"]
    assert cells["hpdm"][-2:] == ["+1.50 ± 0.71", "+0.00 ± 0.00"]


def test_table_refuses_rows_that_cannot_be_compared():
    with pytest.raises(ValueError, match="found drop and zero"):
        format_table([*ROWS, row("dropout", 2, 1, 2, 3, missing="zero")])
    with pytest.raises(ValueError, match="found no rows"):
        format_table([])


def test_a_row_that_is_there_is_not_run_again(tmp_path, monkeypatch):
    config = CompareConfig(
        methods=("dropout", "hpdm"), seeds=(0, 1), out=tmp_path / "t", runs=tmp_path
    )
    append_row(tmp_path / "t.csv", ROWS[0])
    append_row(tmp_path / "t.csv", ROWS[2])
    assert missing_runs(config) == [("hpdm", 0), ("dropout", 1)]
    ran = []

    def run(_config, method, seed):
        ran.append((method, seed))
        append_row(tmp_path / "t.csv", row(method, seed, 1, 2, 3))

    monkeypatch.setattr(compare_methods, "run_method", run)
    monkeypatch.setattr(compare_methods, "run_teacher", lambda config, seed: None)
    monkeypatch.setattr(compare_methods.tyro, "cli", lambda kind, **_: config)
    compare_methods.main()
    compare_methods.main()
    assert sorted(ran) == [("dropout", 1), ("hpdm", 0)]
    assert len(read_rows(tmp_path / "t.csv")) == 4
    assert "hpdm" in (tmp_path / "t.md").read_text(encoding="utf-8")


def test_a_file_with_other_columns_is_refused(tmp_path):
    append_row(tmp_path / "t.csv", ROWS[0])
    with pytest.raises(ValueError, match="give another file with --out"):
        append_row(tmp_path / "t.csv", {"method": "hpdm", "seed": "1"})


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="hpdm"):
        CompareConfig(methods=("hpdn",))


def test_students_of_teachers_of_two_sizes(tmp_path, monkeypatch):
    config = TeacherSizeConfig(seeds=(0,), runs=tmp_path / "runs", out=tmp_path / "t")
    started = []

    def run(_config, options, seed):
        given = dict(zip(options[::2], options[1::2], strict=True))
        started.append(given)
        scores = [SubsetResult("student", name, 0.4, 0.4, ()) for name in ("R", "D", "RD")]
        scores += [replace(score, model="teacher", miou_all=0.6) for score in scores]
        folder = tmp_path / "runs" / given["--name"]
        folder.mkdir(parents=True)
        write_results(folder / "results.csv", scores, [])
        return "python -m fastseg.train"

    monkeypatch.setattr(teacher_size, "train", run)
    monkeypatch.setattr(teacher_size.tyro, "cli", lambda kind, **_: config)
    teacher_size.main()
    teacher_size.main()
    assert len(started) == 5  # two teachers, three students, each once
    students = [given for given in started if "--teacher" in given]
    assert all(given["--stages.student.start"] == "random" for given in students)
    of_b0 = next(given for given in students if given["--name"] == "logit_kd_b0-0")
    assert of_b0["--model.teacher-backbone"] == "mit_b0"
    assert of_b0["--teacher"].endswith("teacher-b0/teacher.safetensors")
    assert "| mit_b0 | 60.00 | 60.00 |" in (tmp_path / "t.md").read_text()
    assert [row["method"] for row in read_rows(tmp_path / "t.csv")] == [*teacher_size.ROWS]
