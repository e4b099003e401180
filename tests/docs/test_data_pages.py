"""The pages of the published data sets show the layout, check and classes that there are."""

import re
from pathlib import Path

import pytest

from fastseg import data
from fastseg.pipelines import get_dataset
from tests.support import dataset_trees

DOCS = Path(__file__).parents[2] / "docs" / "data"
NAMES = ("deliver", "muses", "mcubes")


def write(name, root):
    """A small tree in the data set's layout; MUSES has the raw sensors and their projections."""
    if name == "muses":
        pytest.importorskip("h5py")
        dataset_trees.write_muses_raw(root)
        return dataset_trees.write_muses_projected(root)
    return getattr(dataset_trees, f"write_{name}")(root)


def tree(folder, depth=2, before=""):
    """Lines of ``tree -d -L 2``, without the number of folders."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir())
    for path in inner if depth else ():
        last = path == inner[-1]
        yield f"{before}{'└── ' if last else '├── '}{path.name}"
        yield from tree(path, depth - 1, before + ("    " if last else "│   "))


def classes(spec):
    """A row per class: id, name, ids in the label files, colour."""
    yield from ("| class | name | in files | colour |", "|---|---|---|---|")
    for index, (name, colour) in enumerate(zip(spec.classes, spec.palette, strict=True)):
        stored = [raw for raw, train_id in enumerate(spec.label.table) if train_id == index]
        told = ", ".join(map(str, stored))
        yield f"| {index} | {name} | {told} | {', '.join(map(str, colour))} |"


def shown(page, mark):
    """The fenced block, or the table, behind a mark of a page."""
    found = re.search(rf"<!-- {mark} -->\n(?:```text\n(.*?)\n```|\n(\|.*?\|))\n\n", page, re.S)
    return (found[1] or found[2]).splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_what_is_there(name, tmp_path, capsys):
    root = write(name, tmp_path / name)
    page, spec = (DOCS / f"{name}.md").read_text(encoding="utf-8"), get_dataset(name)
    assert shown(page, "tree") == ["DIR", *tree(root)]
    assert shown(page, "classes") == list(classes(spec))
    assert (
        data.main(["check", "--data.dataset", name, "--data.root", str(root), "--workers", "1"])
        == 0
    )
    assert shown(page, "check") == capsys.readouterr().out.replace(str(root), "DIR").splitlines()
    counts = dict(re.findall(r"^\| (train|val|test) \|.* (\d+) \|$", page, re.M))
    assert counts == {split: str(count) for split, count in spec.published}
