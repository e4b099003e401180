import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from fastseg.engine.speed.host_memory import keep_freed_memory
from fastseg.models import SegFormer
if sys.argv[1] == "keep":
    assert keep_freed_memory()
network, images = SegFormer("mit_nano", 25, embed_dim=64), torch.randn(4, 8, 3, 128, 128)
def steps(count):
    for _ in range(count):
        network(images).logits.sum().backward()
        network.zero_grad()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = steps(3)
print(steps(3) - before)
"""


def page_faults(mode):
    command = [sys.executable, "-c", PROGRAM, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_not_faulted_in_again():
    assert page_faults("keep") < page_faults("default") / 4
