"""The encoder's benchmark compares one network in all of its forms."""

import subprocess
import sys

import pytest

pytest.importorskip("transformers")


def test_the_table_has_a_row_for_every_side_dtype_and_pass(tmp_path):
    command = [sys.executable, "bench/step/bench_encoder.py", "--sides", "32", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--eager", "--batch", "1", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    title, _, head, _, *rows = (tmp_path / "encoder_mit_b0.md").read_text().splitlines()
    assert title.startswith("### mit_b0, 4 sensors, 1 samples")
    assert "| fastseg | transformers | loop |" in head
    assert len(rows) == 4
    assert rows[0].startswith("| 32, float32, forward |")
    # milliseconds of three encoders, and the ratios that follow from them
    for line in rows:
        ours, hub, loop, to_hub, to_loop = map(float, line.split("|")[2:-1])
        assert to_hub == pytest.approx(hub / ours, abs=0.02)
        assert to_loop == pytest.approx(loop / ours, abs=0.02)
