"""What a wheel holds with and without a compiler; versions, extras and images fit each other."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import fastseg
from fastseg.pipelines.native import recipe

ROOT = Path(__file__).parents[1]
PACKAGED = ("fastseg", "kernels", "pipelines", "setup.py", "pyproject.toml", "README.md", "LICENSE")
SETS = recipe.INSTRUCTION_SETS.get(recipe.machine(), {}) if sys.platform == "linux" else {}


@pytest.fixture(scope="module")
def metadata():
    """What setup.py hands to setuptools."""
    setuptools = pytest.importorskip("setuptools")
    pytest.importorskip("setuptools.command.bdist_wheel")
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **options: given.update(options))
        runpy.run_path(str(ROOT / "setup.py"))
    return given


def build(tmp_path, compiler, command="bdist_wheel"):
    """Name of the wheel of a copy of the checkout, the libraries in it, what was said."""
    pytest.importorskip("setuptools.command.bdist_wheel")
    skipped = shutil.ignore_patterns("__pycache__", "*.so")
    for name in PACKAGED:
        copy = shutil.copy if (ROOT / name).is_file() else shutil.copytree
        more = {} if copy is shutil.copy else {"ignore": skipped}
        copy(ROOT / name, tmp_path / name, **more)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", command, "-d", "dist"],
        cwd=tmp_path,
        env={**os.environ, "CC": str(compiler)},
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = [Path(name).name for name in zipfile.ZipFile(wheel).namelist()]
    assert ("pixels.c" in names) == (command == "bdist_wheel"), "the fallback compiles it"
    return wheel.name, {name for name in names if name.endswith(".so")}, done.stderr


def test_a_wheel_without_a_compiler_has_no_libraries_and_says_so(tmp_path):
    name, libraries, said = build(tmp_path, "no-such-compiler")
    assert name.endswith("-py3-none-any.whl")
    assert libraries == set()
    assert said.count("fastseg compiles them at first use") == len(SETS)


@pytest.mark.skipif(not SETS, reason="wheels of this machine hold no libraries")
def test_a_wheel_has_the_libraries_that_the_loader_looks_for(tmp_path):
    # as a compiler that has the newer instruction sets and knows the oldest not
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *-march=x86-64-v4*) echo "bad -march" >&2; exit 1;; esac\n'
        'while [ "$1" != -o ]; do shift; done\necho library > "$2"\n'
    )
    compiler.chmod(0o755)
    name, libraries, said = build(tmp_path, compiler)
    assert re.fullmatch(rf"fastseg-{re.escape(fastseg.__version__)}-py3-none-linux_\w+\.whl", name)
    assert libraries == {recipe.packaged_name(march) for march in set(SETS) - {"x86-64-v4"}}
    assert said.count("bad -march") == ("x86-64-v4" in SETS)


def test_an_editable_installation_has_no_need_of_a_compiler(tmp_path):
    name, libraries, said = build(tmp_path, "no-such-compiler", "editable_wheel")
    assert "-py3-none-any.whl" in name
    assert (libraries, "compile" in said) == (set(), False)


def test_the_version_is_the_same_everywhere(metadata):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.search(r"^## (\d\S+) - (\S+)$", changes, re.M).groups()
    assert {metadata["version"], citation["version"], version} == {fastseg.__version__}
    assert citation["date-released"] == date
    assert citation["license"] == metadata["license"]


def test_the_page_names_every_extra(metadata):
    page = (ROOT / "docs" / "howto" / "install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, re.M)) == set(metadata["extras_require"])


def test_the_images_have_what_the_package_is_made_of(metadata):
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line[:1] == "!"} == {*PACKAGED, "constraints.txt"}
    images = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    extras = {name for line in re.findall(r"EXTRAS=(\S+)", images) for name in line.split(",")}
    assert extras <= set(metadata["extras_require"])
    assert set(metadata["package_dir"].values()) <= set(PACKAGED)
