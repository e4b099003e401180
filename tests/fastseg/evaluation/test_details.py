"""Tables beside the scores: shares summed over processes, cost, the file and the page."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fastseg.evaluation.details import cost_table, share_tables
from fastseg.evaluation.subsets import all_subsets
from fastseg.models import Segmenter, SegmenterOutput
from fastseg.report.details import DetailTable, write_details
from fastseg.report.page.scores import subsets as section
from fastseg.report.results import RunReport, SubsetResult

SUBSETS = {s.name: s.positions for s in all_subsets("RD")}


class Counting(Segmenter):
    """Says what it was given."""

    shares, shares_title = ("level 1", "logits"), "Share"

    def __init__(self, found, width=1):
        super().__init__()
        self.found, self.conv = found, nn.Conv2d(3, width, 1, bias=False)

    def take_shares(self):
        return self.found

    def forward(self, images, present=None):
        return SegmenterOutput(self.conv(images.flatten(0, 1)), [])


class Peer:
    """The other process has no samples of some subsets, and three times as many of the rest."""

    def total(self, counts):
        return counts + torch.tensor([[[3, 12], [0, 12]], [[0, 0], [0, 0]], [[0, 9], [9, 9]]])


def context_of(**more):
    letters = [SimpleNamespace(letter=x) for x in "RD"]
    cpu = torch.device("cpu")
    return SimpleNamespace(modalities=letters, device=cpu, ranks=Peer(), **more)


def test_shares_are_those_of_the_sums_over_processes():
    own = {(0,): torch.tensor([[1, 4], [4, 4]]), (1,): torch.tensor([[2, 4], [0, 4]])}
    networks = {"plain": Segmenter(), "counting": Counting(own)}
    (table,) = share_tables(context_of(), networks)
    assert table.title == "Share (counting)"
    assert table.columns == ("level 1", "logits")
    assert table.rows == {"R": [25.0, 25.0], "D": [50.0, 0.0], "RD": [0.0, 100.0]}


def test_cost_is_reported_of_networks_of_different_size():
    data = SimpleNamespace(eval_size=0, size=32)
    widths = {"small": 2, "large": 5}
    built = {name: Counting({}, width) for name, width in widths.items()}
    context = context_of(
        config=SimpleNamespace(data=data), new_network=lambda seed, name: Counting({}, widths[name])
    )
    assert cost_table(context, {"a": built["small"], "b": built["small"]}) is None
    table = cost_table(context, built)
    for name, width in widths.items():
        count, work = table.rows[name]
        assert count == pytest.approx(3 * width / 1e6)
        assert work == pytest.approx(2 * 32 * 32 * 3 * width / 1e9)


def test_tables_are_written_and_shown(tmp_path):
    table = DetailTable("A, in <%>", ("x", "y"), {"R": (12.5, math.nan), "D": (1 / 3, 100.0)})
    write_details(tmp_path / "details.csv", [table])
    assert (tmp_path / "details.csv").read_text().splitlines() == [
        "table,row,column,value",
        '"A, in <%>",R,x,12.5000',
        '"A, in <%>",R,y,',
        '"A, in <%>",D,x,0.3333',
        '"A, in <%>",D,y,100.0000',
    ]
    result = SubsetResult("network", "RD", 0.5, 0.5, (0.5,))
    colour = np.zeros((1, 3), dtype=np.uint8)
    report = RunReport("run", {}, [], [result], ["road"], colour)
    page = section(replace(report, details=[table]))
    assert "A, in &lt;%&gt;" in page
    assert '<th scope="row">R</th><td>12.50</td><td>\u2013</td>' in page
    assert "<h3>" not in section(report)
