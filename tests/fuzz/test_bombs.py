"""Files of a few bytes that claim gigabytes, or nest without end: refused before room is made."""

import json
import struct

import numpy as np
import pytest

from fastseg.checkpoint.intact import MANIFEST
from fastseg.checkpoint.state import TrainingStates
from fastseg.checkpoint.weights import read_identity
from fastseg.config.files import read_config_file
from fastseg.errors import CheckpointError, ConfigError
from fastseg.models.weight_files.state_dicts import open_weights
from fastseg.pipelines import DataError, get_dataset
from fastseg.pipelines.cache.format import Shard
from fastseg.pipelines.datasets.list_files import read_list
from fastseg.pipelines.decode.arrays import read_array
from fastseg.pipelines.decode.headers import image_size
from fastseg.pipelines.decode.images import decode_ids, decode_image
from fastseg.pipelines.decode.muses_raw import read_events
from fastseg.pipelines.projection.calibration import read_calibration, read_json
from fastseg.pipelines.tools.toml_files import read_toml
from fastseg.prediction.listed_files import of_list
from fastseg.prediction.output import _read
from fastseg.report.details import read_details
from fastseg.report.metrics_log import MetricsLog
from tests.support.dataset_trees import png
from tests.support.hostile.mutations import with_checksums
from tests.support.hostile.reading import DESCRIPTION, DESCRIPTION_OF_LISTS
from tests.support.hostile.stored import network, sign, write_state

pytestmark = pytest.mark.fault("F34")

DEEP = b"[" * 100_000


def widened(side):
    """A PNG of a few bytes that declares another size."""
    data = bytearray(png(np.zeros((4, 4), np.uint8)))
    struct.pack_into(">II", data, 16, side, side)
    return with_checksums(bytes(data))


@pytest.mark.filterwarnings("error")
def test_images_that_declare_more_than_they_hold(tmp_path):
    """Pillow takes the smaller one, and makes room for all of it before it reads a pixel."""
    few = widened(9000)
    for read in (decode_image, lambda data, path: decode_ids(data, path, red_alone=False)):
        with pytest.raises(DataError, match="declares 9000 x 9000 pixels, more than its"):
            read(few, tmp_path / "a.png")
        with pytest.raises(DataError, match="decompression bomb"):
            read(widened(60_000), tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(widened(60_000))
    with pytest.raises(DataError, match="decompression bomb"):
        image_size(tmp_path / "b.png")


@pytest.mark.parametrize(
    "header",
    [
        "(" * 3000,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }  [ ",
        "-" * 9000 + "1",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976, 2)}",
        "{'descr': ('<f4', (999999999999,)), 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}",
        " " * 10**6,
    ],
    ids=range(7),
)
def test_headers_of_arrays(tmp_path, header):
    start = b"\x93NUMPY\x02\0" + struct.pack("<I", len(header))
    with pytest.raises(DataError, match=r"a\.npy (is damaged|holds an array)") as caught:
        read_array(start + header.encode() + bytes(24), tmp_path / "a.npy")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("size", [1 << 60, 1 << 33, (1 << 64) - 1])
def test_headers_of_safetensors(tmp_path, size):
    path = tmp_path / "student.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b'{"a":{}}')
    for read in (open_weights, read_identity):
        with pytest.raises(CheckpointError, match="student"):
            read(path)


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 14)
)
MERGES = "a0: &a0 {k0: 1}\n" + "".join(
    f"a{i}: &a{i} {{k{i}: 1, <<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 14)
)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", LAUGHS, "more than 100000 values"),
        ("a.yaml", MERGES, "more than 100000 values"),
        ("a.yaml", "seed: !!timestamp x", "timestamp"),
        ("a.yaml", "seed: !!bool maybe", "not of the type that its tag says"),
        ("a.yaml", 'seed: !!int ""', "not of the type that its tag says"),
        ("a.yaml", "!!str [a]: 1", "is not text"),
        ("a.yaml", "seed: !!python/object/apply:os.system [true]", "python/object"),
        ("a.toml", "a = " + DEEP.decode(), "nested too deep"),
        ("a.yaml", DEEP.decode(), "nested too deep"),
        ("a.json", DEEP.decode(), "nested too deep"),
    ],
)
def test_configs(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config_file(tmp_path / name)


@pytest.mark.parametrize("name", [MANIFEST, "state.json", "layout.json"])
def test_states_that_nest_without_end(tmp_path, capsys, name):
    state = write_state(tmp_path, laid_out=name == "layout.json")
    (state / name).write_bytes(DEEP)
    if name != MANIFEST:
        sign(state)
    assert TrainingStates(tmp_path).newest("a", network) is None
    assert "nested too deep" in capsys.readouterr().err


def test_json_that_nests_without_end(tmp_path):
    for path in (tmp_path / "calib.json", tmp_path / "predictions.json"):
        path.write_bytes(DEEP)
    with pytest.raises(DataError, match="nested too deep"):
        read_json(tmp_path / "calib.json")
    with pytest.raises(ConfigError, match="nested too deep"):
        _read(tmp_path / "predictions.json")
    with pytest.raises(DataError, match="nested too deep"):
        Shard.from_json(DEEP, tmp_path / "00000.json")
    (tmp_path / "metrics.jsonl").write_bytes(DEEP + b"\n")
    assert MetricsLog(tmp_path / "metrics.jsonl").rows() == []


def test_numbers_that_no_float_or_integer_holds(tmp_path):
    (tmp_path / "a.toml").write_bytes(DESCRIPTION.replace(b"3e4", b"9" * 5000))
    with pytest.raises(DataError, match="has a value that cannot be"):
        read_toml(tmp_path / "a.toml")
    camera = {"K": [[10**400, 0, 0], [0, 1, 0], [0, 0, 1]]}
    (tmp_path / "calib.json").write_text(json.dumps({"intrinsics": {"rgb": camera}}))
    with pytest.raises(DataError, match="not a 3 x 3 matrix"):
        read_calibration(tmp_path)


@pytest.mark.parametrize("line", ["../x", "fog/..", "./x"])
def test_samples_of_a_list_that_lead_upwards(tmp_path, line):
    """Predictions are written under the names of samples."""
    (tmp_path / "own.toml").write_bytes(DESCRIPTION_OF_LISTS)
    (tmp_path / "train.txt").write_text(f"fog/1\n{line}\n")
    with pytest.raises(DataError, match="line 2"):
        read_list(get_dataset(str(tmp_path / "own.toml")), tmp_path, "train")


def test_cells_with_letters_that_end_lines_elsewhere(tmp_path):
    """They were cut there, and a line break within quotes was dropped."""
    (tmp_path / "own.toml").write_bytes(DESCRIPTION)
    path = tmp_path / "list.csv"
    path.write_text('rgb\na\x0bb.png\nc\u2028d.png\n"e\nf.png"\n', encoding="utf-8")
    found = of_list(path, get_dataset(str(tmp_path / "own.toml")).modalities, strict=False)
    names = [sample.files["rgb"][0].name for sample in found]
    assert names == ["a\x0bb.png", "c\u2028d.png", "e\nf.png"]


def test_two_numbers_in_one_place_of_a_table(tmp_path):
    (tmp_path / "details.csv").write_text("table,row,column,value\nt,a,x,1\nt,a,x,2\n")
    with pytest.raises(ValueError, match="two numbers"):
        read_details(tmp_path / "details.csv")


def test_events_that_claim_terabytes(tmp_path):
    h5py = pytest.importorskip("h5py", reason="it reads event files")
    with h5py.File(tmp_path / "events.h5", "w") as file:
        for name in "xytp":
            file.create_dataset(f"events/{name}", (1 << 40,), "i8", chunks=(1 << 10,))
    with pytest.raises(DataError, match="claim to hold 35184372088832 bytes"):
        read_events(tmp_path / "events.h5")
