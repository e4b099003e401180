"""A torchvision that was made for another torch: fastseg does without it, the doctor names it."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
WHAT_TORCH_SAYS = "operator torchvision::nms does not exist"
# the stub raises when anything imports it
PROGRAM = """
from importlib import import_module
from pathlib import Path
for folder in ("fastseg", "kernels", "pipelines"):
    for path in sorted(Path(folder).rglob("*.py")):
        parts = path.with_suffix("").parts
        name = ".".join(parts if folder == "fastseg" else ("fastseg", *parts))
        if not name.endswith("__main__"):
            import_module(name.removesuffix(".__init__"))
from fastseg import doctor
doctor.main([])
from fastseg.errors import ConfigError
from fastseg.models.foundation.folder import _class_of
from fastseg.vision_language.clip import _transformers
for needs in (lambda: _class_of("dinov2"), _transformers):
    try:
        needs()
    except ConfigError as error:
        print("refused:", error)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Lines that the program prints beside the stub."""
    folder = tmp_path_factory.mktemp("packages")
    stub, facts = folder / "torchvision", folder / "torchvision-0.1.dist-info"
    stub.mkdir()
    (stub / "__init__.py").write_text(f"raise RuntimeError({WHAT_TORCH_SAYS!r})")
    facts.mkdir()
    (facts / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n"
        "Requires-Dist: numpy\nRequires-Dist: torch (==1.0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(CHECKOUT)])},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.fault("F39")
def test_no_module_imports_it_and_the_doctor_names_it(said):
    (line,) = [line for line in said if line.startswith("torchvision")]
    assert "0.1, made for torch 1.0" in line
    assert "does not fit torch" in line
    assert "pip uninstall torchvision" in line


@pytest.mark.fault("F39")
@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
def test_where_transformers_imports_it_the_message_names_the_cause(said):
    refused = [line for line in said if line.startswith("refused: ")]
    assert len(refused) == 2
    for line in refused:
        assert WHAT_TORCH_SAYS in line
        assert "python -m fastseg.doctor names a torchvision" in line
