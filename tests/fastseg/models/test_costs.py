"""Counted costs against published ones and against the page that shows them."""

from pathlib import Path

import pytest
import torch

from fastseg.models import MODELS, MixTransformer, get_backbone
from fastseg.models.__main__ import main
from fastseg.models.costs.count import costs_of
from fastseg.models.costs.table import heading, row

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "architectures.md"
SIDES = (512, 1024)


@pytest.fixture(scope="module")
def table():
    """Lines of the page's table by backbone."""
    lines = PAGE.read_text(encoding="utf-8").split(heading(SIDES) + "\n")[1].splitlines()
    rows = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return {line.split("`")[1]: line for line in rows}


@pytest.mark.parametrize(
    "name", ["mit_nano", "mit_b0", "mit_b2", "cmnext_nano", "cmx_b0", "dinov2_small"]
)
def test_the_page_shows_what_is_counted(table, name):
    if name.startswith("dino"):
        pytest.importorskip("transformers", reason="foundation encoders are its classes")
    assert table[name] == row(name, 4, 25, SIDES)


def test_the_page_shows_every_backbone(table):
    families = ("mit_", "cmnext_", "cmx_", "dinov2_", "dinov3_")
    known = [name for name in MODELS if name.startswith(families)]
    assert list(table) == known


@pytest.mark.parametrize(
    ("name", "millions", "gmac"), [("mit_b0", 3.319392, 25.30), ("mit_b2", 24.196288, 127.65)]
)
def test_published_costs_of_encoders(table, name, millions, gmac):
    """Those of an encoder alone with one modality; a head sees the mean of all four."""
    with torch.device("meta"):
        encoder = MixTransformer(get_backbone(name))
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(1e6 * millions)
    costs = [costs_of(name, m, 25, 1024).multiply_adds / 1e9 for m in (1, 2)]
    assert costs[1] - costs[0] == pytest.approx(gmac, rel=0.002)


def test_published_costs_of_cmnext():
    """65.0 GMAC of CMNeXt-B2, whose head is counted as it is folded here (E = 512, 128 x 128)."""
    e, pixels, widths = 512, 128 * 128, (64, 128, 320, 512)
    plain = 4 * e * e * pixels
    folded = e * e * sum(widths)
    found = costs_of("cmnext_b2", 4, 25, 512).multiply_adds + plain - folded
    assert found / 1e9 == pytest.approx(65.0, rel=0.002)


def test_what_does_not_learn_is_counted_and_said(table):
    pytest.importorskip("transformers", reason="foundation encoders are its classes")
    costs = costs_of("dinov3_small", 2, 25, 64)
    assert 0.05 < costs.learning / costs.parameters < 0.15
    assert "% learn)" in table["dinov3_small"]
    assert "learn" not in table["mit_b0"]


def test_activations_are_proportional_to_pixels():
    small, large = (costs_of("cmnext_nano", 3, 5, side).activations for side in (128, 256))
    assert 3.5 < large / small <= 4


def test_the_command_lists_what_it_is_asked_for(capsys):
    assert main(["--backbones", "cmx_nano", "--modalities", "3", "--sides", "64"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(heading((64,)) + "\n| `cmx_nano` | 2 |")
    assert "1 multiply-add = 2 flops" in said
    assert main(["--backbones", "mit_b9"]) == 2
    assert "did you mean 'mit_b5'" in capsys.readouterr().err
