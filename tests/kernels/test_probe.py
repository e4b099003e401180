"""Whether kernels can be launched here is tried once; where not, the reference serves."""

import pytest
import torch

from fastseg.kernels import probe
from fastseg.kernels.common import switch


@pytest.fixture
def no_compiler(monkeypatch):
    """A GPU whose machine cannot build kernels."""
    pytest.importorskip("triton")

    def launch_one(device):
        raise RuntimeError("Failed to find C compiler.\nSet CC")

    monkeypatch.setattr(probe, "launch_one", launch_one)
    monkeypatch.setattr(switch, "_mode", "auto")
    monkeypatch.setattr(switch, "_broken", None)
    return torch.device("cuda")


@pytest.mark.fault("F37")
def test_where_nothing_can_be_built_the_reference_serves(no_compiler):
    class OnGpu:
        device, dtype = no_compiler, torch.float32

    assert switch.runs_on(OnGpu)
    probe.settle(torch.device("cpu"))
    assert switch.runs_on(OnGpu)
    assert switch.why_broken() is None
    probe.settle(no_compiler)
    assert not switch.runs_on(OnGpu)
    assert switch.why_broken() == "Failed to find C compiler."
    probe.settle(no_compiler)  # the next context of this process
    assert switch.why_broken() == "Failed to find C compiler."


@pytest.mark.fault("F37")
def test_strict_says_that_nothing_can_be_built(no_compiler):
    with switch.force_kernels(), pytest.raises(RuntimeError, match="Failed to find C compiler"):
        probe.settle(no_compiler)
    assert switch.why_broken() is None


@pytest.mark.usefixtures("kernels")
def test_what_is_tried_has_the_arguments_of_a_step_and_is_looked_at(device, monkeypatch):
    from fastseg.kernels.common import feature_maps
    from fastseg.kernels.prototypes import pool

    sizes = []
    plain = feature_maps.FeatureMaps.geometry_of

    def spy(self, tiles, chunk):
        fields, programs = plain(self, tiles, chunk)
        sizes.append(sum(map(len, fields)))
        return fields, programs

    monkeypatch.setattr(feature_maps.FeatureMaps, "geometry_of", spy)
    probe.launch_one(device)
    # one launch for all of them: ten fields of the four levels of two networks
    assert sizes == [80]

    def nothing(features, labels, num_classes, twice):
        means, counts = plain_pool(features, labels, num_classes, twice)
        return torch.empty_like(means), counts

    plain_pool = pool.pool_maps
    monkeypatch.setattr(pool, "pool_maps", nothing)
    with pytest.raises(RuntimeError, match="have written wrong numbers, or nothing"):
        probe.launch_one(device)
