"""The benchmark of many processes: what it counts, and the arithmetic of its model."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.step.scaling_model import NODE, Links, Traffic, forecast, ring_volume

ROOT = Path(__file__).parents[3]
LINKS = Links(node_gb_per_s=100, net_gb_per_s=10, node_us=20, net_us=5)
REPLICATE = {"reduce": Traffic(2, 800_000_000)}
ROOT_GROUP = {"gather": Traffic(1, 400_000_000), "scatter": Traffic(1, 800_000_000)}


def test_volume_of_a_ring():
    assert ring_volume("gather", 800, 8) == 700
    assert ring_volume("scatter", 800, 8) == 700
    assert ring_volume("reduce", 800, 8) == 1400


@pytest.mark.parametrize(
    ("gpus", "first", "microseconds", "gb_per_s"),
    [(8, 1, 20, 100), (16, 1, 25, 80), (1024, 1, 20 + 7 * 5, 80), (4, NODE, 20 + 2 * 5, 10)],
)
def test_seconds_of_a_collective(gpus, first, microseconds, gb_per_s):
    seconds = LINKS.seconds("gather", Traffic(3, 10**9), gpus, first)
    volume = 10**9 * (gpus - 1) / gpus
    assert seconds == pytest.approx(3e-6 * microseconds + volume / (gb_per_s * 1e9))


def test_one_gpu_sends_nothing():
    assert LINKS.seconds("reduce", Traffic(1, 10**9), 1) == 0


def test_the_backward_pass_hides_all_but_the_last_bucket():
    found = forecast("replicate", REPLICATE, 8, LINKS)
    assert found.exposed == pytest.approx(found.communication / 2)
    assert found.volume == 1_400_000_000


def test_one_group_waits_for_all_it_sends():
    found = forecast("fsdp_root", ROOT_GROUP, 64, LINKS)
    assert found.exposed == found.communication
    assert found.volume == pytest.approx(1.2e9 * 63 / 64)


def test_copies_of_shards_send_a_shard_between_nodes():
    inside = forecast("hsdp", ROOT_GROUP, NODE, LINKS)
    found = forecast("hsdp", ROOT_GROUP, 4 * NODE, LINKS)
    shard = 800_000_000 / NODE
    assert found.volume - inside.volume == pytest.approx(2 * shard * 3 / 4)
    # every GPU has an adapter of its own for its shard
    between = (20 + 2 * 5) * 1e-6 + 2 * shard * 3 / 4 / 10e9
    assert found.exposed - inside.exposed == pytest.approx(between)


def test_efficiency_and_the_step_that_keeps_it():
    found = forecast("fsdp_root", ROOT_GROUP, 64, LINKS)
    assert found.efficiency(found.step_for(0.95)) == pytest.approx(0.95)
    assert found.efficiency(1.0) > found.efficiency(0.1)


def test_two_processes_are_measured_and_counted(tmp_path):
    command = [sys.executable, "bench/step/bench_scaling.py", "--steps", "1", "--step-ms", "20"]
    command += ["--modes", "replicate", "fsdp_root", "--out", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    with (tmp_path / "scaling.csv").open() as file:
        rows = {(row["mode"], row["kind"]): row for row in csv.DictReader(file)}
    assert all(float(row["together_ms"]) > 0 for row in rows.values())
    # MiT-B0 with its head in fp32, and the BatchNorm beside the gradients
    weights = 4 * 6_090_000
    assert int(rows["replicate", "reduce"]["bytes"]) == pytest.approx(weights, rel=0.02)
    assert int(rows["fsdp_root", "gather"]["bytes"]) == pytest.approx(weights, rel=0.02)
    assert int(rows["fsdp_root", "scatter"]["bytes"]) == pytest.approx(weights, rel=0.02)
    assert int(rows["fsdp_root", "scatter"]["messages"]) == 1
    text = (tmp_path / "scaling.md").read_text()
    assert "Modelled, not measured" in text
    assert "20 ms alone (given by --step-ms)" in text
    assert text.count("| hsdp | ") == 0
    assert text.count("| fsdp_root | 1024 |") == 1
