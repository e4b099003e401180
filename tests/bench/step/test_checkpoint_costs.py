"""The table of what training states cost."""

import csv
from argparse import Namespace

from bench.step.bench_checkpoint import Row, write


def test_the_table_has_medians_and_minima_and_the_file_every_save(tmp_path):
    waits = {"at once": [90.0, 70.0, 80.0], "beside": [9.0, 7.0, 8.0]}
    rows = [
        Row(1, "single", waits, [6_000_000], [100.0, 120.0, 110.0]),
        Row(2, "fsdp_root", waits, [3_000_000, 3_100_000], [60.0]),
    ]
    write(Namespace(out=tmp_path, backbone="mit_b0", saves=4), rows)
    text = (tmp_path / "checkpoint.md").read_text()
    assert "mit_b0, weights and moments of AdamW, 6 MB in all; 3 saves" in text
    assert "| 1 | single | 80 (70) | 8 (7) | 110 (100) | 6.0 |" in text
    assert "| 2 | fsdp_root | 80 (70) | 8 (7) | 60 (60) | 3.0, 3.1 |" in text
    with (tmp_path / "checkpoint.csv").open() as file:
        saves = list(csv.DictReader(file))
    assert len(saves) == 12
    assert saves[0] == {
        "processes": "1", "mode": "single", "way": "at once", "save": "1", "wait_ms": "90.00",
    }  # fmt: skip
