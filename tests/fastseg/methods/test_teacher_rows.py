"""The teacher's features of the modalities that a student sees, as the kernels find them."""

from dataclasses import replace

import pytest
import torch

from fastseg.methods.draws import pack
from fastseg.models.segformer import SegFormer

pytest.importorskip("triton")

from fastseg.kernels.common.feature_maps import group_maps

MODALITIES = "RDEL"


@pytest.fixture(scope="module")
def networks():
    """A model with an encoder for all modalities, and one with an encoder for each."""
    return {
        own: SegFormer("mit_b0", 5, 32, own_encoders=MODALITIES if own else ()).eval()
        for own in (False, True)
    }


@pytest.mark.parametrize("own", [False, True], ids=["shared", "per_modality"])
@pytest.mark.parametrize("present", [(2,), (1, 3), (0, 1, 3)], ids=str)
def test_a_replayed_step_pools_both_networks_in_one_group_and_copies_nothing(
    present, own, networks
):
    draws = pack(torch.device("cpu"), {}, modalities=len(MODALITIES), present=present)
    draws = replace(draws, replayed=True)
    images = torch.randn(len(MODALITIES), 1, 3, 32, 64)
    with torch.no_grad():
        student = networks[own].encode(draws.of(images), present)
        teacher = networks[own].encode(images)
    maps = [*student, *map(draws.of, teacher)]
    (group,) = group_maps(maps, range(len(maps)))
    assert group.channels_last
    assert [x.data_ptr() for x in group.maps] == [x.data_ptr() for x in maps]
