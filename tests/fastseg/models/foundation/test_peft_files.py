"""Adapters in the files of peft: read back by peft itself and by us."""

import copy
import json

import pytest
import torch

from fastseg.errors import ConfigError
from fastseg.models.foundation.peft_files import load_adapters, save_adapters

peft = pytest.importorskip("peft", reason="the files are those of peft")


@pytest.mark.parametrize("kind", ["dinov2", "dinov3_vit"])
@torch.no_grad()
def test_peft_reads_them_and_computes_the_same(make, backbones, tmp_path, kind):
    network = make(kind, moved=True).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    places = save_adapters(network, tmp_path)
    assert [place.name for place in places] == ["img", "depth", "event"]
    for m, place in enumerate(places):
        base = copy.deepcopy(backbones[kind][0])
        theirs = peft.PeftModel.from_pretrained(base, place).eval()
        seen = images
        if network.encoder.patch != 16:
            seen = torch.nn.functional.interpolate(images, (56, 56), mode="bilinear")
        tokens = theirs(seen).last_hidden_state[:, network.encoder.prefix :]
        own = network.encoder.tokens(images, torch.full((2,), m))[-1]
        wanted = tokens.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4)


def test_a_round_trip_is_exact(make, tmp_path):
    network, other = make(moved=True), make()
    save_adapters(network, tmp_path)
    load_adapters(other, tmp_path)
    for name in network.modalities:
        pairs = zip(network.modality_parameters(name), other.modality_parameters(name), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)


def test_what_does_not_fit_changes_nothing(make, tmp_path):
    save_adapters(make(moved=True), tmp_path)
    network = make()
    before = [p.clone() for p in network.parameters()]
    for options in ({"adapter_rank": 4}, {"modalities": ("img", "thermal")}):
        with pytest.raises(ConfigError, match=r"r 2, expected 4|modality thermal"):
            load_adapters(make(**options), tmp_path)
    with pytest.raises(ConfigError, match="no adapters"):
        save_adapters(make(adapter_rank=0), tmp_path)
    (tmp_path / "event" / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ConfigError, match="is damaged"):
        load_adapters(network, tmp_path)
    (tmp_path / "event" / "adapter_config.json").write_text(json.dumps([]))
    with pytest.raises(ConfigError, match=r"no adapter_config\.json of peft"):
        load_adapters(network, tmp_path)
    assert all(torch.equal(x, p) for x, p in zip(before, network.parameters(), strict=True))
