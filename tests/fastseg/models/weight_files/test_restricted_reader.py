"""Reading a file of torch runs nothing of it; its tensors are read all the same."""

import argparse
import functools
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from fastseg.errors import CheckpointError
from fastseg.models import SegFormer, load_weights, read_state_dict
from fastseg.models.weight_files.state_dicts import open_weights

TENSORS = {
    "weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "turned": torch.arange(6.0).view(2, 3).T,
    "short": torch.arange(5).to(torch.bfloat16),
    "marks": torch.tensor([True, False]),
    "number": torch.tensor(7),
    "empty": torch.empty(0, 3),
    "unsigned": torch.arange(3).to(torch.uint16),
    "learnt": torch.nn.Parameter(torch.ones(2)),
}
SHARED = torch.arange(8.0)


class Reduced:
    """Unpickling this calls any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Restored:
    """Unpickling this calls a method of a class, and sets what it likes."""

    def __init__(self, marker):
        self.marker = marker

    def __setstate__(self, state):
        os.mkdir(state["marker"])


def exploits(marker, tmp_path):
    """Objects that would make a folder, each by another way."""
    make = f"__import__('os').mkdir({str(marker)!r})"
    inner = tmp_path / "inner.pt"
    torch.save(Reduced(os.mkdir, str(marker)), inner)
    return {
        "system": Reduced(os.system, f"mkdir {marker}"),
        "mkdir": Reduced(os.mkdir, str(marker)),
        "eval": Reduced(eval, make),
        "exec": Reduced(exec, make),
        "setstate": Restored(str(marker)),
        "torch.load": Reduced(functools.partial(torch.load, inner, weights_only=False)),
        "partial": Reduced(functools.partial(os.mkdir, marker)),
    }


def save(content, path, form):
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.fault("F32")
@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    "way", ["system", "mkdir", "eval", "exec", "setstate", "torch.load", "partial"]
)
def test_code_beside_and_among_tensors_does_not_run(tmp_path, form, way):
    marker, path = tmp_path / "marker", tmp_path / "model.pth"
    exploit = exploits(marker, tmp_path)[way]
    tensors = dict(TENSORS)
    if form == "legacy":
        del tensors["unsigned"]  # torch itself cannot read it back
    inside = {"meta": [exploit, {exploit: 1}], **tensors, "a.bias": torch.ones(2)}
    save({"state_dict": inside, "args": exploit, "deep": {"er": (exploit,)}}, path, form)
    file = open_weights(path)
    assert set(file.places) == {"state_dict"}
    read = file.read(file.places["state_dict"])
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    assert not marker.exists()
    assert file.skipped
    # the fixture is live: without the guard it would have run
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_everyday_objects_are_skipped_and_tensors_are_equal(tmp_path, form):
    content = {
        "model": TENSORS | {"first": SHARED[:4], "second": SHARED[2:]},
        "best": np.float64(61.9),
        "args": argparse.Namespace(lr=1e-4, tensors=[torch.ones(3)]),
        "history": np.arange(4),
        "where": tmp_path,
        "names": {"a", "b"},
        "network": torch.nn.Linear(2, 2),
        "sparse": torch.ones(2).to_sparse(),
        "optimizer": torch.optim.AdamW([torch.ones(2, requires_grad=True)]).state_dict(),
    }
    save(content, tmp_path / "last.pth.tar", form)
    state = read_state_dict(tmp_path / "last.pth.tar", part="model")
    assert list(state) == list(content["model"])
    for name, value in content["model"].items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value), name
    assert (
        state["first"].untyped_storage().data_ptr() == state["second"].untyped_storage().data_ptr()
    )
    file = open_weights(tmp_path / "last.pth.tar")
    assert {"argparse.Namespace", "torch.nn.modules.linear.Linear"} <= set(file.skipped)


def rewritten(path, name=None, data=None, *, compress=zipfile.ZIP_STORED, extra=()):
    """The archive of a file with one part replaced."""
    with zipfile.ZipFile(path) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    if name is not None:
        parts[next(n for n in parts if n.endswith(name))] = data
    with zipfile.ZipFile(path, "w", compress) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
        for part, content in extra:
            archive.writestr(part, content)


def pickled(text):
    """A pickle that ends with what some opcodes leave."""
    return b"\x80\x02" + text + b"."


def tensor(key=b"0", count=2, shape=(2,), stride=(1,), offset=0):
    """Opcodes of ``{"x": a tensor}``."""

    def numbers(values):
        return b"(" + b"".join(number(v) for v in values) + b"t"

    def number(value):
        return b"\x8a\x08" + struct.pack("<q", value)

    text = b"}X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
    text += b"ctorch\nFloatStorage\nX\x01\x00\x00\x00" + key + b"X\x03\x00\x00\x00cpu"
    text += number(count) + b"tQ" + number(offset) + numbers(shape) + numbers(stride)
    return pickled(text + b"\x89NtRs")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tensor(shape=(1 << 40,), stride=(0,)), "larger than its storage of 2"),
        (tensor(shape=(3,)), "larger than its storage of 2"),
        (tensor(offset=1), "larger than its storage of 2"),
        (tensor(shape=(2,), stride=(1 << 50,)), "larger than its storage"),
        (tensor(shape=(-2,)), "no number of elements"),
        (tensor(count=1 << 40, shape=(2,)), "no storage '0' of"),
        (tensor(key=b"9"), "no storage '9'"),
        (tensor(count=-2), "size that cannot be"),
        (pickled(b"K\x01Q"), "no storage"),
        (pickled(b"}r\xff\xff\xff\x7f"), "gaps"),
        (pickled(b"\x82\x01"), "extension codes"),
        (pickled(b"}N" + b"\x85" * 10**6 + b"Ns"), "tuples in tuples"),
        (pickled(b"}N" + b"}0\x85" * 10**5 + b"Ns"), "tuples in tuples"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"),
        (b"}", "damaged"),
    ],
)
def test_what_cannot_be_is_refused_before_room_is_made_for_it(tmp_path, data, message):
    path = tmp_path / "model.pth"
    torch.save({"x": torch.ones(2)}, path)
    rewritten(path, "data.pkl", data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state_dict(path)
    assert "never done" in str(caught.value)


def test_the_opcodes_of_these_tests_are_those_of_a_tensor(tmp_path):
    torch.save({"x": torch.tensor([1.0, 2.0])}, tmp_path / "model.pth")
    rewritten(tmp_path / "model.pth", "data.pkl", tensor())
    assert read_state_dict(tmp_path / "model.pth")["x"].tolist() == [1, 2]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", ["compressed", "double", "program", "other", "order", "bits"])
def test_archives_that_torch_has_not_written(tmp_path, what):
    path = tmp_path / "model.pth"
    torch.save({"x": torch.ones(64)}, path)
    if what == "compressed":
        rewritten(path, compress=zipfile.ZIP_DEFLATED)
    elif what == "double":
        rewritten(path, extra=[("model/data/0", b"1" * 256)])
    elif what == "program":
        rewritten(path, extra=[("model/constants.pkl", b"")])
    elif what == "order":
        rewritten(path, "byteorder", b"big")
    elif what == "bits":
        data = path.read_bytes()
        place = data.index(struct.pack("<f", 1) * 64) + 8
        path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "no weights")
    with pytest.raises(CheckpointError, match="damaged or cannot be read"):
        read_state_dict(path)


def test_state_of_a_pickle_changes_nothing_that_later_files_need(tmp_path):
    """BUILD sets attributes, of classes and shared objects, too, if it is let."""
    poison = b"N}X\x05\x00\x00\x00dtypeK\x07s\x86b0"
    for name in (b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nx\n"):
        torch.save({"x": torch.ones(2)}, tmp_path / "model.pth")
        rewritten(tmp_path / "model.pth", "data.pkl", b"\x80\x02" + name + poison + tensor()[2:])
        assert read_state_dict(tmp_path / "model.pth")["x"].dtype == torch.float32
    torch.save({"x": torch.ones(2)}, tmp_path / "model.pth")
    poison = b"\x80\x02ccollections\nOrderedDict\n" + poison
    rewritten(tmp_path / "model.pth", "data.pkl", poison + tensor()[2:])
    with pytest.raises(CheckpointError, match="damaged"):
        read_state_dict(tmp_path / "model.pth")


def test_bare_pickles_and_whole_networks_say_what_to_do(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps({"m": Reduced(os.mkdir, str(marker))}, 2))
    with pytest.raises(CheckpointError, match="a bare pickle that torch has not saved"):
        read_state_dict(tmp_path / "bare.pkl")
    assert not marker.exists()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "network.pth")
    with pytest.raises(CheckpointError, match=r"objects of .*Linear.*save network\.state_dict\(\)"):
        read_state_dict(tmp_path / "network.pth")


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_files_that_are_cut_off(tmp_path, form, keep):
    data = io.BytesIO()
    torch.save({"x": torch.ones(99)}, data, _use_new_zipfile_serialization=form == "zip")
    path = tmp_path / "model.pth"
    path.write_bytes(data.getvalue()[: int(keep * len(data.getvalue()))])
    with pytest.raises(CheckpointError, match=r"model\.pth is damaged"):
        read_state_dict(path)


def test_skipped_objects_are_in_the_report(tmp_path):
    network = SegFormer("mit_nano", 3, 8)
    content = {"model": network.state_dict(), "args": argparse.Namespace(), "miou": np.float32(1)}
    torch.save(content, tmp_path / "model.pth")
    report = load_weights(network, tmp_path / "model.pth")
    assert "argparse.Namespace" in report.skipped
    assert "skipped objects, no code of them ran: " in str(report)
