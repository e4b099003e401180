"""Every rank writes its own rows, and any number of ranks reads them: one launch of two ranks."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from fastseg.checkpoint.contents import KINDS
from fastseg.checkpoint.intact import file_digest
from fastseg.checkpoint.layout import file_name, lay_out
from fastseg.checkpoint.state import TrainingStates
from fastseg.distributed.sharded_tensors import held_rows, own_rows
from tests.fastseg.distributed.save_worker import fresh

HERE = Path(__file__).parent
STATE = "step-00000003"


@pytest.fixture(scope="module")
def out(tmp_path_factory, launch):
    folder = tmp_path_factory.mktemp("shards")
    codes, _, said = launch([HERE / "save_worker.py", folder]).finish(timeout=200)
    assert codes == [0, 0], said
    return folder


def same_bits(left, right):
    assert left.keys() == right.keys()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


@pytest.mark.parametrize("target", ["shards", "copies", "one"])
@pytest.mark.parametrize("source", ["shards", "copies", "one"])
def test_a_state_is_read_to_the_last_bit_by_shards_by_copies_and_by_one(out, source, target):
    for rank in (0,) if target == "one" else (0, 1):
        found = load_file(out / f"{source}-in-{target}-{rank}.safetensors")
        same_bits(found, load_file(out / f"{source}-half-0.safetensors"))


@pytest.mark.parametrize("source", ["shards", "copies"])
@pytest.mark.parametrize("rank", [0, 1])
def test_what_goes_on_from_a_state_is_what_was_not_interrupted(out, source, rank):
    whole = load_file(out / f"{source}-whole-{rank}.safetensors")
    same_bits(load_file(out / f"{source}-to-{source}-{rank}.safetensors"), whole)
    if source == "copies":
        same_bits(load_file(out / "copies-to-one-0.safetensors"), whole)


@pytest.mark.parametrize("source", ["shards", "copies"])
def test_each_rank_writes_about_half_and_nothing_twice(out, source):
    one, many = (out / name / STATE for name in ("one", source))
    assert {p.name for p in one.iterdir()} == {
        *(f"{kind}.safetensors" for kind in KINDS), "state.json", "MANIFEST.json",
    }  # fmt: skip
    assert {p.name for p in many.iterdir()} == {
        *(file_name(kind, rank, 2) for kind in KINDS for rank in (0, 1)),
        *("layout.json", "state.json", "MANIFEST.json"),
    }
    whole = sum(numbers(one / file_name(kind, 0, 1)) for kind in KINDS)
    halves = [sum(numbers(many / file_name(kind, r, 2)) for kind in KINDS) for r in (0, 1)]
    assert sum(halves) == whole
    assert min(halves) > 0.4 * whole


def numbers(file):
    return sum(tensor.numel() for tensor in load_file(file).values())


FAULTS = {
    "full": ["OSError", errno.ENOSPC, "network-00001-of-00002.safetensors"],
    "no room": ["CheckpointError", None, "1.0 kB are free"],
    "differing": ["CheckpointError", None, "the processes hold other tensors than rank 0"],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.fault("F20")
def test_an_error_of_one_rank_is_that_of_all(out, fault):
    first, second = (json.loads((out / f"faults-{rank}.json").read_text()) for rank in (0, 1))
    assert first[fault] == second[fault]
    *kind, text = FAULTS[fault]
    assert first[fault][:2] == kind
    assert text in first[fault][2]
    assert first["left"] == second["left"] == ["step-00000001"]


def network():
    return fresh(sharded=False)[0]


def edited(out, tmp_path, edit):
    """A copy of the sharded state with another layout and a manifest that fits."""
    folder = tmp_path / STATE
    shutil.copytree(out / "shards" / STATE, folder)
    layout = json.loads((folder / "layout.json").read_text())
    edit(layout)
    (folder / "layout.json").write_text(json.dumps(layout))
    files = [p for p in folder.iterdir() if p.name != "MANIFEST.json"]
    manifest = {p.name: file_digest(p) for p in files}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def entry(layout):
    return layout["tensors"]["network"]["0.weight"]


WRONG = {
    "version": lambda layout: layout.update(version=2),
    "a kind": lambda layout: layout["tensors"].update({"../x": {}}),
    "rows missing": lambda layout: entry(layout)["pieces"].pop(),
    "rows twice": lambda layout: entry(layout)["pieces"].append(entry(layout)["pieces"][0]),
    "a start": lambda layout: entry(layout)["pieces"][1].__setitem__(1, 3),
    "a rank": lambda layout: entry(layout)["pieces"][1].__setitem__(0, 7),
    "a type": lambda layout: entry(layout).update(dtype="float64"),
    "a shape": lambda layout: entry(layout).update(shape=[7, 4]),
    "a text": lambda layout: entry(layout).update(shape="long"),
    "no pieces": lambda layout: entry(layout).pop("pieces"),
    "no tensors": lambda layout: layout.pop("tensors"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_layout_that_does_not_fit_its_files_is_passed_over(out, tmp_path, capsys, name):
    edited(out, tmp_path, WRONG[name])
    assert TrainingStates(tmp_path).newest("a", network, averaged=True) is None
    assert f"{STATE} is passed over" in capsys.readouterr().err


@pytest.mark.parametrize("victim", ["layout.json", "network-00001-of-00002.safetensors"])
@pytest.mark.parametrize("fault", ["gone", "flipped"])
@pytest.mark.fault("F2")
def test_a_damaged_shard_is_passed_over(out, tmp_path, capsys, victim, fault):
    edited(out, tmp_path, lambda layout: None)
    assert TrainingStates(tmp_path).newest("a", network, averaged=True) is not None
    path = tmp_path / STATE / victim
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.unlink() if fault == "gone" else path.write_bytes(data)
    assert TrainingStates(tmp_path).newest("a", network, averaged=True) is None
    assert f"{victim} is {'missing' if fault == 'gone' else 'damaged'}" in capsys.readouterr().err


def test_copies_of_shards_deal_the_rows_among_all_who_hold_them():
    """hsdp on four ranks, two copies of two shards, without a process for each."""
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=4)
    try:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard"))
        cut = {
            f"{i}": DTensor.from_local(
                torch.zeros(rows // 2, 4), mesh, (Replicate(), Shard(0)),
                run_check=False, shape=(rows, 4), stride=(4, 1),
            )
            for i, rows in enumerate((5, 9, 9, 5))
        }  # fmt: skip
        assert held_rows(cut["0"], 4) == [(0, 3, (0, 2)), (3, 2, (1, 3))]
        assert own_rows(cut["1"]) == (5, 4)
        layout = lay_out({"network": cut | {"plain": torch.zeros(3)}}, 4)
        assert sum(layout.sizes) == 4 * (4 * 28 + 3)
        assert max(layout.sizes) - min(layout.sizes) <= 5 * 16
        for name, tensor in layout.tensors["network"].items():
            rows = [row for _, start, n in tensor["pieces"] for row in range(start, start + n)]
            assert rows == list(range(tensor["shape"][0])), name
    finally:
        dist.destroy_process_group()
