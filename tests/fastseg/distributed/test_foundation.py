"""A foundation encoder on two processes: what learns is spread, the backbone is whole on each."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="foundation encoders read their folder by transformers")

from tests.support.tiny_dinov2 import write_backbone

WORKER = Path(__file__).with_name("foundation_worker.py")


@pytest.mark.slow
def test_every_mode_equals_one_process(launch, tmp_path):
    write_backbone(tmp_path / "dinov2")
    codes, _, said = launch([WORKER, tmp_path, tmp_path / "dinov2"]).finish(timeout=240)
    assert set(codes) == {0}, said
    found = json.loads((tmp_path / "found.json").read_text())
    alone, wanted = found.pop("alone"), load_file(tmp_path / "alone.safetensors")
    assert alone["fixed"]
    # of 2 x 4 layers in blocks, adapters of four modalities; nothing of the backbone
    adapters = [name for name in wanted if ".lora_" in name and name.startswith("encoder")]
    assert len(adapters) == 64
    assert not any("norm1" in name or "base_layer" in name for name in wanted)
    for mode, seen in found.items():
        assert seen["fixed"], mode
        assert seen["losses"] == pytest.approx(alone["losses"], rel=1e-9), mode
        tensors = load_file(tmp_path / f"{mode}.safetensors")
        assert tensors.keys() == wanted.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                tensor, wanted[name], rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
            )
