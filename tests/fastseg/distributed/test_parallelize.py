"""What of the parallel engine one process can tell; two processes are in test_steps.py."""

import contextlib
from collections import Counter
from dataclasses import replace

import pytest
import torch

from fastseg import train
from fastseg.config.compare import changed_fields
from fastseg.config.sections import ParallelConfig
from fastseg.config.serialise import read_config
from fastseg.distributed.launch import choose_device, join, launched
from fastseg.distributed.parallelize import candidates, copy_size, parallelize
from fastseg.distributed.ranks import Ranks
from fastseg.engine.run_folder import RunFolder
from fastseg.errors import ConfigError
from fastseg.models import SegFormer

CPU = torch.device("cpu")


def many(world, local_world):
    return Ranks(CPU, rank=0, world=world, local_world=local_world)


def test_one_process_is_left_as_it_is():
    network = SegFormer("mit_nano", 5, 16)
    parallel = parallelize({"it": network}, "fsdp_root", Ranks(CPU), precision="bf16")
    assert parallel.forwards == {"it": network}
    assert (parallel.mode, parallel.world, parallel.sharded) == ("single", 1, False)
    assert type(network.decoder.linear_fuse["bn"]) is torch.nn.BatchNorm2d


def test_one_process_sends_and_waits_for_nothing():
    with join("cpu", timeout_minutes=1) as alone:
        assert (alone.rank, alone.world, alone.is_first) == (0, 1, True)
        assert alone.share(lambda: {"a": 1}) == {"a": 1}
        assert alone.reduce([1.0, 2.0]) == [1.0, 2.0]
        assert alone.union([3, 1]) == {1, 3}
        counts = torch.ones(2, dtype=torch.int64)
        assert alone.total(counts) is counts
        alone.agree({"step": 1}, "at step 1")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("mode", "shard", "expected"),
    [
        ("replicate", 0, 1),
        ("fsdp_root", 0, 8),
        ("fsdp_blocks", 0, 8),
        ("hsdp", 0, 4),
        ("hsdp", 2, 2),
    ],
)
def test_size_of_a_copy(mode, shard, expected):
    assert copy_size(mode, many(8, 4), shard) == expected


def test_groups_that_do_not_fill_the_processes_are_refused():
    with pytest.raises(ConfigError, match="8 processes into groups of 3"):
        copy_size("hsdp", many(8, 4), 3)


def test_hsdp_is_a_candidate_only_where_it_differs():
    assert "hsdp" in candidates(many(8, 4))
    assert "hsdp" not in candidates(many(8, 8))
    assert "hsdp" not in candidates(many(4, 1))
    assert candidates(many(8, 8)) == ["fsdp_root", "replicate", "fsdp_blocks"]


def test_the_plan_takes_every_block_once():
    network = SegFormer("mit_b0", 5, 16)
    groups = network.units()
    kinds = Counter(type(module).__name__ for module in groups)
    assert kinds == {"Block": 8, "MLPHead": 1}
    inside = sum(p.numel() for module in groups for p in module.parameters())
    rest = sum(p.numel() for p in network.parameters()) - inside
    assert 0 < rest < inside / 2


@pytest.mark.parametrize("change", [{"shard_size": -1}, {"check_steps": -1}, {"timeout": 0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        ParallelConfig(**change)


def test_a_gpu_of_its_own_is_needed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    for key, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(key, value)
    assert choose_device("auto") == torch.device("cuda", 1)
    assert choose_device("cpu") == CPU
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="local rank 2 has no GPU of its own, this node has 2"):
        choose_device("cuda")


def test_a_garbled_launch_is_one_message(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="start with torchrun"):
        launched()
    assert train.main(["--preset", "debug"]) == 2
    assert "'two'" in capsys.readouterr().err


def test_a_launch_without_its_peers_is_one_message(monkeypatch):
    for key in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ConfigError, match=r"rank 0 of 2 cannot join.*start with torchrun"),
        join("cpu", timeout_minutes=1),
    ):
        pass


@pytest.mark.parametrize("wrong", [["--data.siez", "64"], ["--preset", "demmo"], ["--help"]])
def test_only_rank_0_speaks_about_options(monkeypatch, capsys, wrong):
    said = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with contextlib.suppress(SystemExit):
            train.main(wrong)
        said[rank] = "".join(capsys.readouterr())
    assert said["0"] != ""
    assert said["1"] == ""


def test_samples_per_step_and_not_their_factors_belong_to_a_run(config):
    data = replace(config.data, batch_size=4)
    one = replace(config, data=data)
    split = replace(one, data=replace(data, batch_size=1), accumulate=2)
    two = replace(split, parallel=replace(split.parallel, processes=2))
    assert changed_fields(one, two) == {}
    assert changed_fields(one, split) == {"samples per step": (4, 2)}


@pytest.mark.fault("F25")
def test_the_run_folder_remembers_the_number_of_processes(config):
    two = Ranks(CPU, rank=0, world=2, local_world=2, store=_Store())
    small = replace(config, data=replace(config.data, batch_size=2))
    with RunFolder(small, two) as run:
        assert read_config(run.config_file).parallel.processes == 2
        run.metrics_file.write_text('{"kind": "train", "step": 1}\n')
    with pytest.raises(ConfigError, match=r"samples per step: 4 before, 2 now[\s\S]*accumulate"):
        RunFolder(small).__enter__()
    with RunFolder(replace(small, accumulate=2)) as run:
        pass


def test_what_rank_0_made_must_be_seen(config):
    other = Ranks(CPU, rank=1, world=2, store=_Store({"fastseg/shared-1": "null"}))
    with pytest.raises(ConfigError, match=r"rank 1 does not see the run folder .* all nodes share"):
        RunFolder(config, other).__enter__()


class _Store(dict):
    """The part of a fastseg/distributed store that sharing a value needs."""

    set = dict.__setitem__

    def check(self, keys):
        return all(key in self for key in keys)
