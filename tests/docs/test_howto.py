"""The pages of docs/howto are followed to the letter, and what CONTRIBUTING.md names is there.

Each page is followed in a copy of the checkout of its own.

Blocks are taken in order. A ``python`` block behind a line that ends with a path in backticks and a
colon is written to that path, which must not be there yet; a ``diff`` block behind such a line is
applied to the file; the lines of a ``bash`` block are run.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    "add-a-backbone": [],
    "add-a-data-set": [],
    "add-a-kernel": ["triton"],
    "add-a-method": [],
    "add-a-protocol": [],
}
"""Each page, and what it needs beside the packages of every test."""
COPIED = ("fastseg", "kernels", "pipelines", "tests", "bench", "pyproject.toml")
BLOCK = re.compile(r"^([^\n]*)\n+```(\w+)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block: its language, the path named in the line before it, its text."""

    kind: str
    path: str
    text: str


def blocks(page):
    text = (ROOT / "docs" / "howto" / f"{page}.md").read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(BLOCK.findall(text)), "a fence without a language"
    for before, kind, content in BLOCK.findall(text):
        named = re.search(r"`([^`]+)`:$", before)
        yield Block(kind, named[1] if named else "", content)


def change(path, diff):
    """Apply a diff of one place: the lines that stay or go must be there once, in this order."""
    lines = diff.splitlines()
    assert {line[:1] for line in lines} <= {" ", "+", "-"}, lines
    old = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
    new = "".join(f"{line[1:]}\n" for line in lines if line[0] != "-")
    text = path.read_text(encoding="utf-8")
    assert f"\n{text}".count(f"\n{old}") == 1, f"{path} has not once:\n{old}"
    path.write_text(f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:], encoding="utf-8")


def run(command, folder):
    """A line as a shell in the copy would run it, with this Python and one thread."""
    settings = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    settings |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": "", "PYTHONSAFEPATH": ""}
    command = re.sub(r"^((?:\w+=\S+ )*)python ", rf"\1{sys.executable} ", command)
    done = subprocess.run(
        command, shell=True, cwd=folder, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}{done.stderr[-6000:]}"


def copy_of_the_checkout(folder):
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True)
        else:
            shutil.copy2(source, folder / name)


def test_every_page_is_followed():
    assert sorted(path.stem for path in (ROOT / "docs" / "howto").glob("add-*.md")) == [*PAGES]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_followed_to_the_letter(page, tmp_path):
    for module in PAGES[page]:
        pytest.importorskip(module)
    copy_of_the_checkout(tmp_path)
    written = []
    for block in blocks(page):
        path = tmp_path / block.path
        if block.kind == "bash":
            for command in block.text.replace("\\\n", " ").splitlines():
                run(command, tmp_path)
            continue
        if block.kind == "text":
            continue
        assert block.path, f"a {block.kind} block of {page} does not say into which file it goes"
        if block.kind == "diff":
            change(path, block.text)
        else:
            assert block.kind == "python", block.kind
            assert not path.exists(), f"{block.path} is there already: take another example"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        written.append(block.path)
    if importlib.util.find_spec("ruff"):
        changed = " ".join(sorted(set(written)))
        # a line that the page adds may belong to another place in the order of imports
        run(f"python -m ruff check --no-cache --ignore I001 {changed}", tmp_path)
        run(f"python -m ruff format --no-cache --check {changed}", tmp_path)


def test_every_place_installs_the_same_ruff():
    releases = {
        name: set(re.findall(r"ruff==([\d.]+)", (ROOT / name).read_text(encoding="utf-8")))
        for name in ("setup.py", "constraints.txt", ".pre-commit-config.yaml")
    }
    assert len(releases["setup.py"]) == 1
    assert set(map(frozenset, releases.values())) == {frozenset(releases["setup.py"])}, releases


def test_contributing_names_files_folders_and_targets_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w./-]+/[\w./-]*)`", text)
    assert len(named) > 20
    gone = [name for name in named if not (ROOT / name).exists() and name != ".venv/bin/python"]
    assert gone == []
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {*targets} == {"test", "test-fast", "endurance", "lint", "types", "demo", "ci"}
    assert {*re.findall(r"`make ([\w-]+)`", text)} == {*targets}


@pytest.mark.parametrize("page", [*PAGES, "../../CONTRIBUTING"])
def test_links_lead_to_files(page):
    path = ROOT / "docs" / "howto" / f"{page}.md"
    prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    links = re.findall(r"\]\(([^)#:]+)\)", prose)
    assert [link for link in links if not (path.parent / link).exists()] == []
