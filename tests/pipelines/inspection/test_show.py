"""``python -m fastseg.data show``: what is on the sheet, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastseg import data
from fastseg.cli import data_inspect
from fastseg.pipelines import get_dataset
from fastseg.pipelines.datasets.split_files import list_split
from fastseg.report.contact_sheet import draw_sheet
from tests.support import dataset_trees as trees


def sheet(name: str, root: Path, *modalities: str, index: int = 0) -> np.ndarray:
    files = list_split(get_dataset(name), root, "train", modalities)
    return np.array(draw_sheet(files, index, longest=96))


def find(page: np.ndarray, tile: np.ndarray) -> tuple[int, int]:
    """Row and column where a picture lies on the page, exactly once."""
    height, width = tile.shape[:2]
    corner = (page[: -height + 1, : -width + 1] == tile[0, 0]).all(axis=2)
    places = [
        (row, col)
        for row, col in np.argwhere(corner).tolist()
        if (page[row : row + height, col : col + width] == tile).all()
    ]
    assert len(places) == 1
    return places[0]


def test_deliver_is_shown_as_stored(deliver_tree: Path) -> None:
    page = sheet("deliver", deliver_tree, "img", "depth", "event", "grey_depth", index=4)
    sample = "night/train/MAP_2_point7/000000"
    places = []
    for folder, tag in (("img", "rgb"), ("hha", "depth"), ("event", "event"), ("depth", "depth")):
        stored = np.array(Image.open(deliver_tree / folder / f"{sample}_{tag}_front.png"))
        tile = stored if stored.ndim == 3 else stored[..., None].repeat(3, 2)
        places.append(find(page, tile))
    # three in a row, and the fourth below the first
    assert len({row for row, _ in places[:3]}) == 1
    assert [col for _, col in places[:3]] == sorted(col for _, col in places[:3])
    assert places[3][0] > places[0][0]
    assert places[3][1] == places[0][1]


def test_labels_have_the_colours_of_the_palette(mcubes_tree: Path) -> None:
    page = sheet("mcubes", mcubes_tree, "dolp")
    spec = get_dataset("mcubes")
    stem = "outscene1208_train_0000000000"
    label = trees.random_bytes(f"{stem}label", 32, 256, top=20)[:, 192:]
    row, _ = find(page, np.array(spec.palette, np.uint8)[label])
    below = page[row + 32 :].reshape(-1, 3)
    for colour in spec.palette:  # the legend: 13 x 13 pixels and more of each
        assert (below == colour).all(axis=1).sum() >= 13 * 13


def test_values_are_shown_in_their_range(muses_tree: Path) -> None:
    page = sheet("muses", muses_tree, "lidar")
    values = trees.projections(*trees.muses_scenes()[0])["lidar"]
    codes = ((values + 100) * 150).astype(np.uint16) / 150 - 100
    span = codes / [80, 255, 8] + [0, 0, 2 / 8]  # the spec shows 0..80 m, 0..255, -2..6 m
    tile = np.rint(255 * span.clip(0, 1)).astype(np.uint8)
    # rounding of a half may fall either way
    height, width = tile.shape[:2]
    row, col = 44 + 40, 12
    shown = page[row : row + height, col : col + width].astype(int)
    assert np.abs(shown - tile).max() <= 1


def test_ignored_pixels_are_hatched_and_named(muses_tree: Path) -> None:
    for path in muses_tree.glob("gt_semantic/train/**/*.png"):
        trees.save(path, np.full(trees.FRAME, 255))
    plain = sheet("muses", muses_tree, "frame_camera")
    black = (plain == (0, 0, 0)).all(axis=2).sum()
    grey = (plain == (84, 84, 84)).all(axis=2).sum()
    assert min(black, grey) > 0.4 * trees.FRAME[0] * trees.FRAME[1]


def test_the_command(
    deliver_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "sheet.png"
    command = ["show", "--root", str(deliver_tree), "--out", str(out)]
    assert data.main([*command, "--sample", "night/train/MAP_2_point7/000000"]) == 0
    first = out.read_bytes()
    assert capsys.readouterr().out.strip() == str(out)
    assert data.main([*command, "--sample", "4"]) == 0
    assert out.read_bytes() == first
    assert data.main([*command, "--sample", "3"]) == 0
    assert out.read_bytes() != first
    assert [p.name for p in out.parent.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sample", "16"], "has 16 samples, numbered from 0; got 16"),
        (["--sample", "MAP_2_point7/0"], "did you mean 'night/train/MAP_2_point7/00000"),
        (["--modalities", "lidra"], "did you mean 'lidar'"),
        (["--dataset", "muses-raw"], "prepare muses --root"),
    ],
    ids=["number", "name", "modality", "raw"],
)
def test_what_cannot_be_shown_is_explained(
    deliver_tree: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    out = tmp_path / "sheet.png"
    assert data.main(["show", "--root", str(deliver_tree), "--out", str(out), *more]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_sheet_of_no_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longest must be from 16 to 16384, got 3"):
        data_inspect.Show(root=tmp_path, longest=3)
