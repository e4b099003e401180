"""``python -m fastseg.predict`` as a user meets it: good input, bad input, interruptions."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg import evaluate
from fastseg.checkpoint.weights import save_weights
from fastseg.config.serialise import read_config
from fastseg.engine.context import RunContext
from fastseg.evaluation.metrics import ConfusionMatrix
from fastseg.pipelines import get_dataset
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.pipelines.loaders.samples import read_label
from fastseg.prediction.run import Work

ROOT = Path(__file__).parents[3]
SPEC = get_dataset("deliver")
VAL = 5


def scores_of(labels, scenes):
    """mIoU of the label maps in a folder against the labels of the validation split."""
    files = list_split(SPEC, scenes, "val")
    matrix = ConfusionMatrix(SPEC.num_classes)
    seen = set()
    for index, name in enumerate(files.sample_ids):
        predicted = labels(name)
        seen.update(np.unique(predicted))
        label = torch.from_numpy(read_label(files, index))
        matrix.update(torch.from_numpy(predicted.copy()), label)
    assert len(seen) > 5, "predictions that say nothing compare nothing"
    return matrix.scores()


@pytest.fixture(scope="module")
def table(run, tmp_path_factory):
    """The rows that evaluate writes of the student, by subset; ``missing`` as given."""
    out = tmp_path_factory.mktemp("scores")

    def rows(missing):
        path = out / f"{missing}.csv"
        if not path.exists():
            words = ["--checkpoint", str(run / "student.safetensors"), "--missing", missing]
            assert evaluate.main([*words, "--out", str(path)]) == 0
        with path.open() as file:
            return {row["subset"]: row for row in csv.DictReader(file)}

    return rows


@pytest.mark.parametrize(
    ("subset", "without", "fit", "missing"),
    [
        ("RDEL", [], "resize", "drop"),
        ("RE", ["depth", "lidar"], "resize", "drop"),
        ("RE", ["depth", "lidar"], "pad", "drop"),
        ("DEL", ["img"], "resize", "zero"),
    ],
)
def test_label_maps_have_the_scores_of_evaluate(
    table, scenes, predict, labels, capsys, subset, without, fit, missing
):
    wanted = table(missing)[subset]
    capsys.readouterr()
    more = ["--without", *without] if without else []
    code, said, _ = predict("--fit", fit, "--missing", missing, "--write", "labels", *more)
    assert code == 0
    assert said.split("\n")[1].split()[0] == subset
    scores = scores_of(labels, scenes)
    for name in ("miou_all", "miou_present"):
        assert f"{100 * getattr(scores, name):.4f}" == wanted[name]


def test_pictures_and_probabilities_agree_with_the_labels(scenes, predict, labels, tmp_path):
    kinds = ("labels", "palette", "overlay", "probabilities")
    code, said, _ = predict("--write", *kinds, "--overlay-alpha", "0.25")
    assert code == 0
    assert said.splitlines() == [
        "subset  sensors                samples",
        f"RDEL    img depth event lidar        {VAL}",
        f"{tmp_path / 'out'}: labels palette overlay probabilities of {VAL} samples",
    ]
    name = list_split(SPEC, scenes, "val").sample_ids[0]
    found = labels(name)
    with Image.open(tmp_path / "out" / "palette" / f"{name}.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image) == found).all()
        colours = np.asarray(image.convert("RGB"))
    assert (colours == np.array(SPEC.palette, np.uint8)[found]).all()
    camera = np.asarray(Image.open(scenes / "img" / f"{name}_rgb_front.png").convert("RGB"))
    with Image.open(tmp_path / "out" / "overlay" / f"{name}.png") as image:
        mixed = 0.75 * camera.astype(float) + 0.25 * colours
        assert np.abs(np.asarray(image) - mixed).max() <= 1
    likely = np.load(tmp_path / "out" / "probabilities" / f"{name}.npy")
    assert (likely.shape, likely.dtype) == ((25, 64, 64), np.float16)
    assert np.abs(likely.astype(float).sum(0) - 1).max() < 0.01
    best = likely.max(0)
    assert (np.take_along_axis(likely, found[None].astype(int), 0)[0] == best).all()


def test_a_folder_of_odd_sizes_with_a_missing_file(folder, predict, labels, tmp_path):
    (folder / "labels").mkdir()
    code, said, noted = predict("--folder", folder)
    assert code == 0
    assert [line.split() for line in said.splitlines()[1:3]] == [
        ["RDEL", "img", "depth", "event", "lidar", "1"],
        ["RDE", "img", "depth", "event", "1"],
    ]
    assert "labels in " in noted
    assert labels("day/a").shape == labels("b").shape == (333, 500)
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert record["subsets"] == {"RDEL": 1, "RDE": 1}
    assert record["finished"]
    assert record["command"][:3] == ["python", "-m", "fastseg.predict"]


def test_a_list_gives_what_the_folder_gives(folder, predict, labels, tmp_path):
    assert predict("--folder", folder, "--write", "labels")[0] == 0
    wanted = {"first": labels("day/a"), "second": labels("b")}
    (tmp_path / "out").rename(tmp_path / "of-folder")
    rows = [
        "name\timg\tdepth\tevent\tlidar",
        "first\tmine/img/day/a.png\tmine/depth/day/a.png\tmine/event/day/a.png"
        "\tmine/lidar/day/a.png",
        f"second\t{folder}/img/b.png\tmine/depth/b.png\tmine/event/b.png\t",
    ]
    table = tmp_path / "samples.tsv"
    table.write_text("\ufeff" + "\r\n".join(rows) + "\r\n")
    assert predict("--list", table, "--write", "labels")[0] == 0
    assert all((labels(name) == wanted[name]).all() for name in wanted)


def test_padding_keeps_pixels_and_the_size(folder, predict, labels):
    assert predict("--folder", folder, "--fit", "pad", "--write", "labels")[0] == 0
    assert labels("b").shape == (333, 500)
    assert labels("b").max() < SPEC.num_classes


def test_finished_samples_are_skipped_and_an_interruption_says_so(
    predict, labels, scenes, tmp_path, monkeypatch, capsys
):
    write, done = Work._write, []

    def interrupted(self, item):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(item)
        write(self, item)

    monkeypatch.setattr(Work, "_write", interrupted)
    code, said, error = predict()
    assert (code, said) == (130, "")
    assert f"2 of {VAL} samples are in {tmp_path / 'out'}; the same command continues" in error
    assert not list((tmp_path / "out").rglob("*.partial"))
    monkeypatch.setattr(Work, "_write", write)
    # a file that a power cut has emptied, and one of a killed command
    names = list_split(SPEC, scenes, "val").sample_ids
    emptied = tmp_path / "out" / "labels" / f"{names[0]}.png"
    emptied.write_bytes(b"")
    (emptied.parent / ".x.png.1.partial").write_bytes(b"")
    kept = tmp_path / "out" / "labels" / f"{names[1]}.png"
    before = kept.stat().st_mtime_ns
    code, said, _ = predict()
    assert code == 0
    assert f"of {VAL} samples, 1 of them finished before" in said
    assert kept.stat().st_mtime_ns == before
    assert labels(names[0]).shape == (64, 64)
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert predict("--overwrite")[0] == 0
    assert kept.stat().st_mtime_ns > before


def test_other_predictions_are_not_mixed_into_a_folder(predict, folder, run, tmp_path):
    assert predict("--write", "labels")[0] == 0
    for more, difference in (
        (["--network", "teacher"], "network: student there, teacher wanted"),
        (["--without", "lidar"], "without: none there, lidar wanted"),
        (["--folder", folder], f"{folder.resolve()} wanted"),
        (["--overwrite", "--size", "96"], "size: 64 there, 96 wanted"),
    ):
        code, _, error = predict("--write", "labels", *more)
        assert code == 2
        assert "Choose another folder with --out, or move that one away" in error
        assert difference in error
    retrained = shutil.copytree(run, tmp_path / "retrained")
    context = RunContext(read_config(run / "config.json"))
    network, identity = context.new_network(5, "student"), context.identity("student")
    save_weights(retrained / "student.safetensors", network, identity, {"size": 64})
    code, _, error = predict("--write", "labels", checkpoint=retrained)
    assert (code, error.count("weights: ")) == (2, 1)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    assert "is not empty and has no predictions.json" in predict()[2]
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]


def test_an_unreadable_file_stops_or_counts_as_missing(folder, predict, labels, tmp_path):
    broken = folder / "depth" / "b.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    code, _, error = predict("--folder", folder)
    assert code == 2
    assert f"{broken} is damaged" in error
    assert "--unreadable missing" in error
    code, said, noted = predict("--folder", folder, "--unreadable", "missing")
    assert code == 0
    assert "b goes without depth" in noted
    assert [line.split()[0] for line in said.splitlines()[1:3]] == ["RDEL", "RE"]
    assert "files that cannot be read and count as missing: 1, listed in" in said
    (row,) = csv.reader((tmp_path / "out" / "unreadable.csv").open())
    assert row[:2] == ["b", "depth"]
    # all is finished now, and what was missing still counts as such
    again = predict("--folder", folder, "--unreadable", "missing")[1]
    assert again.splitlines()[:4] == said.splitlines()[:4]
    assert "2 of them finished before" in again


def test_a_file_of_a_list_that_is_not_there_may_count_as_missing(folder, predict, tmp_path):
    table = folder / "list.csv"
    table.write_text("img,lidar\nimg/b.png,lidar/b.png\n")
    code, _, error = predict("--list", table)
    assert code == 2
    assert f"line 2: {folder / 'lidar' / 'b.png'}" in error
    code, said, _ = predict("--list", table, "--unreadable", "missing", "--write", "labels")
    assert code == 0
    assert said.splitlines()[1].split() == ["R", "img", "1"]
    (folder / "img" / "b.png").unlink()
    code, _, error = predict("--list", table, "--unreadable", "missing", "--overwrite")
    assert code == 2
    assert "sample img/b has no sensor left, as none of its files can be read" in error


def test_what_is_written_adds_up(folder, predict, tmp_path):
    for kind in ("labels", "palette"):
        assert predict("--folder", folder, "--write", kind)[0] == 0
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert record["written"] == ["labels", "palette"]


def test_sizes_that_differ_are_refused_unless_one_is_chosen(folder, predict, labels):
    path = folder / "depth" / "b.png"
    Image.open(path).resize((100, 80)).save(path)
    code, _, error = predict("--folder", folder)
    assert code == 2
    assert f"{folder / 'img' / 'b.png'} is 500 x 333 pixels, {path} is 100 x 80 pixels" in error
    assert "--resize-to img" in error
    assert predict("--folder", folder, "--resize-to", "depth", "--overwrite")[0] == 2
    shutil.rmtree(path.parents[2] / "out")
    assert predict("--folder", folder, "--resize-to", "depth")[0] == 0
    assert (labels("b").shape, labels("day/a").shape) == ((80, 100), (333, 500))


def test_small_events_alone_give_the_size_of_what_is_left_out(folder, predict, labels):
    for path in (folder / "event").rglob("*.png"):
        Image.open(path).resize((128, 128)).save(path)
    # without a header that says another size, theirs counts
    (folder / "img" / "b.png").unlink()
    (folder / "depth" / "b.png").write_bytes(b"")
    assert predict("--folder", folder, "--without", "img", "depth", "lidar")[0] == 0
    assert labels("day/a").shape == (333, 500)
    assert labels("b").shape == (128, 128)


LISTS = {
    "img,thermal\na.png,b.png\n": "the header has 'thermal'",
    "img,lidr\na.png,b.png\n": "did you mean 'lidar'?",
    "img,img\na.png,b.png\n": "'img' twice",
    "name\na\n": "the header has no sensor",
    "img,depth\n": "has no line below its header",
    "": "the header has no sensor",
    "img,depth\na.png\n": "line 2 has 1 cells, the header 2",
    "img,depth\nsome.png,other.png\n": "names 2 files that are not there",
    "name,img\n../x,a.png\n": "cannot name a sample",
    "name,img\nx,a.png\nx,b.png\n": "lines 2 and 3 have the name x",
    'img\n"a.png\n': "expected a CSV or TSV file",
    "img,depth\n,\nname,\n": "names 1 files that are not there",
    "img\0\na\n": "expected a CSV or TSV file",
}


@pytest.mark.parametrize("text", LISTS)
def test_bad_lists_are_refused_by_one_message(predict, tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    code, said, error = predict("--list", tmp_path / "list.csv")
    assert (code, said) == (2, "")
    assert error.startswith("error: ")
    assert LISTS[text] in error
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("F31")
def test_bad_folders_and_options_are_refused_by_one_message(predict, scenes, tmp_path, folder):
    empty, strange = tmp_path / "empty", tmp_path / "strange"
    (empty / "img").mkdir(parents=True)
    (strange / "thermal").mkdir(parents=True)
    file = tmp_path / "file"
    file.touch()
    for words, told in (
        (["--folder", empty], "there is no file to predict in"),
        (["--folder", strange], "has no folder of a sensor: expected img, depth, event, lidar"),
        (["--folder", tmp_path / "nowhere"], "does not exist"),
        (["--folder", scenes], "no two sensors in"),
        (["--list", tmp_path / "nowhere.csv"], "cannot read"),
        (["--root", tmp_path / "nowhere"], "no data set at"),
        (["--split", "vall"], "did you mean 'val'?"),
        (["--without", "lidr"], "did you mean 'lidar'?"),
        (["--without", "img", "depth", "event", "lidar"], "have no sensor left"),
        (["--network", "studnet"], "did you mean 'student'?"),
        (["--resize-to", "thermal"], "unknown sensor 'thermal'"),
        (["--folder", folder, "--out", file], "choose another place"),
    ):
        code, said, error = predict(*words)
        assert (code, said) == (2, ""), words
        assert error.startswith("error: "), error
        assert told in error
        assert not (tmp_path / "out").exists()
    code, _, error = predict(checkpoint=empty)
    assert code == 2
    assert "no weights at" in error


def test_options_that_contradict_each_other_are_refused(predict, folder, tmp_path, capsys):
    for words, told in (
        (["--folder", folder, "--split", "val"], "give one of the two"),
        (["--list", folder, "--root", folder], "give one of the two"),
        (["--folder", folder, "--list", folder], "two inputs"),
        (["--write"], "--write needs at least one"),
        (["--overlay-alpha", "2"], "a probability from 0 to 1"),
        (["--size", "100"], "a multiple of 32"),
    ):
        with pytest.raises(SystemExit) as end:
            predict(*words)
        assert end.value.code == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_weights_away_from_their_run_predict_what_is_named(folder, run, predict, labels, tmp_path):
    moved = tmp_path / "weights" / "student.safetensors"
    moved.parent.mkdir()
    shutil.copy(run / "student.safetensors", moved)
    code, _, error = predict(checkpoint=moved)
    assert code == 2
    assert "name the data with --data.root" in error
    assert predict("--folder", folder, "--write", "labels", checkpoint=moved)[0] == 0
    assert labels("b").shape == (333, 500)


def test_a_sample_without_a_sensor_is_named(folder, predict):
    code, _, error = predict("--folder", folder, "--without", "img", "depth", "event")
    assert code == 2
    assert "1 of 2 samples have no sensor left: b; each needs a file of one of lidar" in error


@pytest.mark.slow
def test_two_processes_share_the_samples(run, scenes, predict, labels, tmp_path):
    assert predict("--write", "labels", "--missing", "zero")[0] == 0
    names = list_split(SPEC, scenes, "val").sample_ids
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "fastseg.predict", "--checkpoint", str(run)]
    command += ["--out", str(tmp_path / "two"), "--write", "labels", "--missing", "zero"]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'two'}: labels of {VAL} samples" in done.stdout
    assert all((labels(name) == labels(name, "two")).all() for name in names)
    record = json.loads((tmp_path / "two" / "predictions.json").read_text())
    assert record["subsets"] == {"RDEL": VAL}
