"""Targets of stored tensors, caches and archives."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastseg.checkpoint.contents import training_tensors
from fastseg.checkpoint.intact import MANIFEST, file_digest
from fastseg.checkpoint.layout import LAYOUT, lay_out
from fastseg.checkpoint.state import TrainingStates
from fastseg.checkpoint.state_files import load_state
from fastseg.checkpoint.weights import Identity, load_weights, save_weights
from fastseg.config.sections import OptimConfig
from fastseg.engine.optim.optimizer import build_optimizer
from fastseg.errors import CheckpointError
from fastseg.models.weight_files.state_dicts import open_weights
from fastseg.pipelines import DataError, get_dataset
from fastseg.pipelines.cache.format import _digest
from fastseg.pipelines.cache.read import PackedStore
from fastseg.pipelines.cache.write import pack_split
from fastseg.pipelines.datasets.split_files import SplitFiles, list_split
from fastseg.pipelines.tools.elsewhere.archives import unpack
from fastseg.pipelines.tools.json_values import json_values
from tests.support.dataset_trees import save
from tests.support.hostile.reading import Target

IDENTITY = Identity("teacher", "deliver", ("Road", "Sky"), ("img", "depth"), "mit_b0", 64)
STEP = "step-00000003"
_FACTS = {
    **{"stage": "a", "step": 3, "processes": 1, "optimizer": "adamw", "fingerprint": "f"},
    **{"skipped_in_row": 0.0, "loss_scale": {"scale": 1.0, "good_steps": 2}, "parallel": "single"},
}


def network(seed: int = 1) -> nn.Module:
    """A small network."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network after a step, and its optimizer."""
    module = network(0)
    optimizer = build_optimizer(module, OptimConfig())
    module(torch.arange(12.0).view(4, 3)).square().sum().backward()
    optimizer.step()
    return module, optimizer


def write_state(folder: Path, laid_out: bool) -> Path:
    """A state as one process writes it; with a layout as several do, if wanted."""
    module, optimizer = trained()
    TrainingStates(folder).save(module, optimizer, _FACTS, keep=2)
    state = folder / STEP
    if laid_out:
        content = lay_out(training_tensors(module, optimizer), 1).content()
        (state / LAYOUT).write_text(json.dumps(content))
        sign(state)
    return state


def sign(state: Path) -> None:
    """Give a state a manifest that fits its files, as whoever made it could."""
    files = [path for path in state.iterdir() if path.name != MANIFEST and path.is_file()]
    (state / MANIFEST).write_text(json.dumps({p.name: file_digest(p) for p in files}))


def _state_target(folder: Path, name: str, laid_out: bool, signed: bool) -> Target:
    whole = write_state(folder / "whole", laid_out)
    wanted, wanted_optimizer = trained()

    def read(data: bytes, scratch: Path) -> bool:
        shutil.rmtree(scratch / "states", ignore_errors=True)
        state = scratch / "states" / STEP
        shutil.copytree(whole, state)
        (state / name).write_bytes(data)
        if signed:
            sign(state)
        with redirect_stdout(io.StringIO()):
            found = TrainingStates(scratch / "states").newest("a", network)
        if found is None:
            return False
        module = network()
        optimizer = build_optimizer(module, OptimConfig())
        try:
            load_state(found[0], module, optimizer)
        except CheckpointError:
            return False
        if not signed:
            # what is not signed anew is what was written, or passed over
            assert same(module.state_dict(), wanted.state_dict())
            moments, theirs = optimizer.state_dict()["state"], wanted_optimizer.state_dict()
            assert all(same(moments[i], theirs["state"][i]) for i in theirs["state"])
            assert found[1] == _FACTS
        return True

    return Target([(whole / name).read_bytes()], read)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """True if tensors have the same names and bits."""
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def _weights(folder: Path) -> Target:
    module = network(0)
    save_weights(folder / "teacher.safetensors", module, IDENTITY, {"steps": 3})

    def read(data: bytes, scratch: Path) -> bool:
        (scratch / "teacher.safetensors").write_bytes(data)
        other = network()
        try:
            load_weights(scratch / "teacher.safetensors", other, IDENTITY, "teacher")
        except CheckpointError:
            return False
        assert same(other.state_dict(), module.state_dict()) or b'"sha256"' not in data
        return True

    return Target([(folder / "teacher.safetensors").read_bytes()], read)


def _of_torch() -> Target:
    seeds = []
    content = {"model": network(0).state_dict(), "epoch": 3, "args": [1.5, None, "x", (1, {2: 3})]}
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        seeds.append(buffer.getvalue())

    def read(data: bytes, scratch: Path) -> bool:
        path = scratch / "model.pth"
        path.write_bytes(data)
        try:
            file = open_weights(path)
            found = {place: file.read(tensors) for place, tensors in file.places.items()}
        except CheckpointError:
            return False
        assert all(isinstance(x, torch.Tensor) for named in found.values() for x in named.values())
        try:
            theirs = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")["model"]
        except Exception:
            return True
        for name, tensor in found.get("model", {}).items():
            if isinstance(theirs, dict) and isinstance(theirs.get(name), torch.Tensor):
                assert torch.equal(_bits(tensor), _bits(theirs[name])), name
        return True

    return Target(seeds, read)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


PACKED = b"""
name = "packed"
[[sensors]]
name = "rgb"
files = "rgb/{split}/{name}.png"
[label]
files = "labels/{split}/{name}.png"
[[classes]]
name = "road"
ids = 0
[[classes]]
name = "roof"
ids = 1
[splits]
folders = { train = "train" }
"""


def packed_tree(root: Path) -> SplitFiles:
    """A split of two samples."""
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        save(root / f"rgb/train/{number}.png", pixels)
        save(root / f"labels/train/{number}.png", pixels[..., 0] % 2)
    (root / "packed.toml").write_bytes(PACKED)
    spec = get_dataset(str(root / "packed.toml"))
    return list_split(spec, root, "train")


def signed_shard(content: object) -> bytes:
    """The JSON file of a shard with the checksum that belongs to it."""
    if isinstance(content, dict):
        content.pop("sha256", None)
        content = {"sha256": _digest(content), **content}
    return json.dumps(content).encode()


def _cache(folder: Path, name: str, signed: bool) -> Target:
    files = packed_tree(folder / "tree")
    pack_split(files, folder / "packed", progress=False)
    whole = PackedStore(files, folder / "packed")
    modality = files.modalities[0]
    wanted = [(whole.image(i, modality).tobytes(), whole.label(i).tobytes()) for i in range(2)]

    def read(data: bytes, scratch: Path) -> bool:
        shutil.rmtree(scratch / "packed", ignore_errors=True)
        shutil.copytree(folder / "packed", scratch / "packed")
        if signed:
            try:
                data = signed_shard(json_values(data))
            except ValueError:
                return False
        (scratch / "packed" / name).write_bytes(data)
        try:
            store = PackedStore(files, scratch / "packed")
            found = [(store.image(i, modality).tobytes(), store.label(i).tobytes()) for i in (0, 1)]
        except DataError:
            return False
        assert signed or found == wanted
        return True

    return Target([(folder / "packed" / name).read_bytes()], read)


def _archives() -> Target:
    seeds, files = [], {"a/b.png": b"first" * 9, "c.txt": b""}
    for mode in ("w:", "w:gz", "w:xz", "w:bz2"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as archive:
            for name, content in files.items():
                item = tarfile.TarInfo(name)
                item.size = len(content)
                archive.addfile(item, io.BytesIO(content))
        seeds.append(buffer.getvalue())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    seeds.append(buffer.getvalue())

    def read(data: bytes, scratch: Path) -> bool:
        place = scratch / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "archive").write_bytes(data)
        try:
            unpack(place / "archive", place / "out", progress=False)
        except DataError:
            assert not any((place / "out").rglob("*"))
            return False
        except OSError as error:
            # a name that is too long for the system, which the command says in one message
            if error.filename is None:
                raise
            return False
        finally:
            assert {path.name for path in place.iterdir()} <= {"archive", "out"}
        return True

    return Target(seeds, read)


def targets(folder: Path) -> dict[str, Target]:
    """Every kind of stored file; their whole originals lie in the folder."""

    def place(name: str) -> Path:
        (folder / name).mkdir(parents=True)
        return folder / name

    found = {"weights": _weights(place("weights")), "file of torch": _of_torch()}
    for name in (MANIFEST, "state.json", "network.safetensors", "optimizer.safetensors", LAYOUT):
        for signed in (False, True)[: 1 if name == MANIFEST else 2]:
            called = f"{'signed ' * signed}{name}"
            found[called] = _state_target(place(called), name, name == LAYOUT, signed)
    found["packed arrays"] = _cache(place("bin"), "00000.bin", signed=False)
    found["packed index"] = _cache(place("json"), "00000.json", signed=False)
    found["signed packed index"] = _cache(place("signed"), "00000.json", signed=True)
    return found | {"archive": _archives()}
