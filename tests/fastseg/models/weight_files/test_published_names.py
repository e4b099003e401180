"""Files with exactly the published names and shapes load strictly, and are written like that."""

import pytest
import torch

from fastseg.errors import CheckpointError
from fastseg.models import (
    MixTransformer,
    SegFormer,
    build_segmenter,
    get_backbone,
    load_weights,
    save_weights,
)
from fastseg.models.weight_files.layouts import LAYOUTS
from fastseg.models.weight_files.save import renamed
from fastseg.models.weight_files.state_dicts import open_weights
from tests.support.published_names import ENCODERS, PUBLISHED, released

SENSORS = ["img", "depth", "event", "lidar"]


def numbered(shapes):
    """A value of its own in every tensor: any mix-up changes a number."""
    values = {n: torch.full(s, i / 1024) for i, (n, s) in enumerate(shapes.items())}
    counts = {n: torch.tensor(0) for n in shapes if n.endswith("num_batches_tracked")}
    return values | counts


@pytest.fixture(scope="module")
def network():
    return SegFormer("mit_b0", 19, 256)


@pytest.mark.parametrize("layout", PUBLISHED)
def test_whole_networks(tmp_path, network, layout):
    shapes = PUBLISHED[layout]
    torch.save(numbered(shapes), tmp_path / "published.pth")
    report = load_weights(network, tmp_path / "published.pth")
    assert (report.layout, report.loaded) == (layout, len(network.state_dict()))
    assert (report.missing, report.unexpected) == ((), ())
    save_weights(network, tmp_path / "back.pth", layout)
    (back,) = open_weights(tmp_path / "back.pth").places.values()
    assert {name: x.shape for name, x in back.items()} == shapes
    written = open_weights(tmp_path / "back.pth").read(back)
    for name, value in numbered(shapes).items():
        assert name == "classifier.weight" or torch.equal(written[name], value), name


@pytest.mark.parametrize("layout", ENCODERS)
def test_encoders_alone(tmp_path, layout):
    shapes = ENCODERS[layout]
    head = {"head.weight": torch.ones(3, 3)} if layout == "mit" else {}
    torch.save(numbered(shapes) | head, tmp_path / "encoder.pth")
    encoder = MixTransformer(get_backbone("mit_b0"))
    report = load_weights(encoder, tmp_path / "encoder.pth")
    assert (report.layout, report.loaded, report.dropped) == (layout, 176, tuple(head))
    save_weights(encoder, tmp_path / "back.safetensors", layout)
    (written,) = open_weights(tmp_path / "back.safetensors").places.values()
    assert {name: tuple(x.shape) for name, x in written.items()} == shapes
    assert all(torch.equal(written[name], x) for name, x in numbered(shapes).items())


@pytest.mark.parametrize(("kind", "others"), [("cmnext", 3), ("cmnext", 2), ("cmx", 1)])
def test_names_and_shapes_of_deliver(kind, others):
    with torch.device("meta"):
        network = build_segmenter(f"{kind}_b2", 25, SENSORS[: others + 1])
    state, left_out = renamed(network, LAYOUTS["deliver"])
    assert {name: tuple(x.shape) for name, x in state.items()} == released(kind, others)
    assert left_out == []


def test_the_head_of_mmsegmentation_1_is_another_function(tmp_path, network):
    head = {"decode_head.convs.0.conv.weight": torch.zeros(256, 32, 1, 1)}
    encoder = {f"backbone.{n}": x for n, x in numbered(ENCODERS["mmseg1"]).items()}
    torch.save({"meta": {"epoch": 1}, "state_dict": encoder | head}, tmp_path / "iter.pth")
    with pytest.raises(CheckpointError, match=r"a ReLU behind each projection.*encoder_only=True"):
        load_weights(network, tmp_path / "iter.pth")
    report = load_weights(network, tmp_path / "iter.pth", encoder_only=True)
    assert (report.loaded, report.dropped) == (176, tuple(head))
    # rows of one tensor are queries, keys and values
    assert any("attn.kv.weight from" in text for text in report.reshaped)
