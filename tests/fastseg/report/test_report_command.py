"""``python -m fastseg.report``: the page of a run from its networks, or from its files alone."""

import json
import math
import re
import shutil

import pytest

from fastseg import evaluate
from fastseg.checkpoint.weights import weights_digest
from fastseg.evaluation.protocol_tables import keep_protocol_tables
from fastseg.report import __main__ as report
from fastseg.report.details import DetailTable, read_details, write_details

ROW = {"kind": "train", "stage": "teacher", "step": 1, "loss": 1.5, "lr": 0.1}


@pytest.fixture
def run(untrained, tmp_path):
    """A copy of a run that has random weights, a table of scores and a row of metrics."""
    folder = tmp_path / "mine"
    shutil.copytree(untrained, folder)
    (folder / "metrics.jsonl").write_text(json.dumps(ROW) + "\n")
    return folder


def test_the_page_of_a_finished_run_has_scores_confusion_and_pictures(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert report.main([str(run), "--out", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[1:3]] == ["teacher", "student"]
    assert said.splitlines()[-1] == str(out / "report.html")
    page = (out / "report.html").read_text()
    assert "No confusion matrix" not in page
    assert "No pictures" not in page
    assert "Stage teacher" in page
    assert "worst of 5 samples by the student with all sensors" in page
    assert "mIoU of the teacher by condition and subset" in page
    assert "teacher and student prototypes" in page
    assert len(set(re.findall(r'data-subset="(\w+)"', page))) == 15
    assert f"--config {run / 'config.json'}" in page
    assert (out / "results.csv").is_file()
    assert not (run / "report.html").exists()


def test_runs_that_follow_the_first_stand_beside_it(run, untrained, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(untrained, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 5}))
    arguments = [str(run), str(other), str(untrained), "--no-score", "--quiet"]
    assert report.main(arguments) == 0
    section = (run / "report.html").read_text().split('<section id="runs"')[1]
    section = section.split("</section>")[0]
    # the three bear one name, and are told apart
    for name in ("untrained, student", "untrained&#39;, student", "untrained&#39;&#39;, student"):
        assert f'<th scope="row">{name}</th>' in section
    assert '<th scope="row">seed</th><td>0</td><td>5</td><td>0</td>' in section
    (other / "results.csv").write_text("a,b\n")
    assert report.main([str(run), "--beside", str(other), "--no-score"]) == 2
    assert f"or leave {other} out" in capsys.readouterr().err
    assert report.main([str(run), str(tmp_path / "nothing"), "--no-score"]) == 2
    assert f"{tmp_path / 'nothing'} is no folder of a run" in capsys.readouterr().err


def test_the_page_of_files_needs_no_data_and_no_weights(run, capsys):
    (run / "student.safetensors").unlink()
    scores = (run / "results.csv").read_bytes()
    config = json.loads((run / "config.json").read_text())
    config["data"]["root"] = "/nowhere"
    (run / "config.json").write_text(json.dumps(config))
    write_details(run / "details.csv", [DetailTable("cost", ("GMAC",), {"student": (1.25,)})])
    assert report.main(["--checkpoint", str(run)]) == 0
    captured = capsys.readouterr()
    assert "not finished: student; the page shows what the files say" in captured.err
    assert captured.out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    assert "No confusion matrix" in page
    assert "No pictures" in page
    assert "No results" not in page
    assert "GMAC" in page
    assert (run / "results.csv").read_bytes() == scores


def test_a_run_that_has_just_begun_has_a_page(run, capsys):
    for name in ("results.csv", "metrics.jsonl", "teacher.safetensors"):
        (run / name).unlink()
    assert report.main([str(run), "--no-score"]) == 0
    assert "No network has been evaluated yet" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results.csv", "a,b\n", "is not a results file"),
        ("results.csv", "model,subset,corruption,miou_all,miou_present,cat\n", "has other classes"),
        ("details.csv", "a,b\n", "is not a details file of a run"),
        ("details.csv", "table,row,column,value\nt,a,b,x\n", "is not a details file of a run"),
        ("config.json", "{", "is not JSON"),
    ],
)
def test_a_file_that_is_none_is_one_message_and_the_old_page_stays(
    run, capsys, name, text, message
):
    (run / "report.html").write_text("old")
    (run / name).write_text(text)
    assert report.main([str(run), "--no-score"]) == 2
    assert message in capsys.readouterr().err
    assert (run / "report.html").read_text() == "old"


@pytest.mark.parametrize("place", ["nothing", "", "student.safetensors"])
def test_what_is_no_run_is_one_message(tmp_path, untrained, capsys, place):
    path = untrained / place if place.endswith("tensors") else tmp_path / place
    assert report.main([str(path)]) == 2
    assert f"{path} is no folder of a run" in capsys.readouterr().err


def test_details_are_read_as_they_were_written(tmp_path):
    tables = [
        DetailTable("a, b", ("x", "y"), {"one": (1.5, math.nan), "two": (0.25, -3.0)}),
        DetailTable("c", ("z",), {"one": (7.0,)}),
    ]
    write_details(tmp_path / "details.csv", tables)
    found = read_details(tmp_path / "details.csv")
    assert repr(found) == repr(tables)


def test_protocols_are_kept_with_the_run_and_stand_on_its_page(run, capsys):
    """Twice scored, each protocol by itself; then the page is written anew from the files."""
    page = run / "report.html"
    assert report.main([str(run), "--no-score"]) == 0
    assert "No protocols yet" in page.read_text()
    before = page.read_text().split('<section id="')
    printed = {}
    for name in ("full", "emm"):
        assert evaluate.main([str(run), "--protocols", name, "--network", "student"]) == 0
        said = capsys.readouterr()
        printed[name] = said.out
        assert f"and on {page}" in said.err
    # the rest of the page, which may hold pictures, stays as it was
    after = page.read_text().split('<section id="')
    assert [a == b for a, b in zip(before, after, strict=True)] == [
        not part.startswith('protocols"') for part in before
    ]
    for rewritten in (False, True):
        if rewritten:
            assert report.main([str(run), "--no-score"]) == 0
        section = page.read_text().split('<section id="protocols"')[1].split("</section>")[0]
        numbers = re.findall(r"<td>([\d.]+)</td>", section)
        for table in (*printed["full"].split("\n\n"), *printed["emm"].split("\n\n")):
            row = next(line for line in table.splitlines() if line.startswith("student   "))
            assert set(row.split()[1:]) <= {*numbers, "-"}
        assert "left out of the fusion (drop)" in section
        assert "set to 0 after normalisation (zero)" in section
        assert "5 samples of val" in section
        assert "student trained on random subsets (drop, per batch), no faults" in section
        digest = weights_digest(run / "student.safetensors")[:12]
        assert f"weights: student.safetensors {digest}" in section
    # tables of weights that the run no longer has are not shown
    shutil.copy(run / "teacher.safetensors", run / "student.safetensors")
    assert report.main([str(run), "--no-score"]) == 0
    assert "3 of 3 tables in protocol_tables.csv are of other weights" in page.read_text()


@pytest.mark.parametrize(
    "content", [b"a,b\n", b"table,row,column,value\nt,a,b,x\n", b"\xff\xfe\x00", b""]
)
def test_a_foreign_file_of_protocols_is_named_on_the_page_and_moved_aside(run, capsys, content):
    file = run / "protocol_tables.csv"
    file.write_bytes(content)
    assert report.main([str(run), "--no-score"]) == 0
    message = f"{file} is not a file of the protocols&#39; tables"
    assert message in (run / "report.html").read_text()
    assert message.replace("&#39;", "'") in capsys.readouterr().err
    keep_protocol_tables(run, [DetailTable("full: all", ("mIoU",), {"student": (12.34,)})], [])
    assert "moved to protocol_tables.csv.foreign" in capsys.readouterr().err
    assert (run / "protocol_tables.csv.foreign").read_bytes() == content
    assert "<td>12.34</td>" in (run / "report.html").read_text()
