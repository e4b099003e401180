"""The map of the rooms: what each may import, so that there are no circles and no shortcuts."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "pipelines"

MAP = {
    "errors": "",
    "tools": "errors",
    "native": "",
    "datasets": "errors tools",
    "batch": "",
    "config": "tools datasets",
    "transform": "native tools datasets config",
    "decode": "errors tools datasets transform",
    "faults": "errors native tools datasets config transform decode",
    "projection": "errors tools datasets decode",
    "loaders": "errors native tools datasets batch config transform decode faults",
    "cache": "errors native tools datasets decode loaders",
    "synthetic": "errors tools",
    "inspection": "errors tools datasets decode loaders synthetic",
    "build": "errors datasets config transform decode faults loaders cache",
}
"""Rooms and files beside them in their order, and what each imports: a new arrow is a decision."""


def arrows():
    """``(room, room it imports, where)`` of every relative import; other ones name no room."""
    for path in sorted(ROOT.rglob("*.py")):
        here = path.relative_to(ROOT).with_suffix("").parts
        if here == ("__init__",):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            outside = (node.module or "").startswith("fastseg")
            assert not outside, f"{path}:{node.lineno}: import other rooms by relative names"
            if node.level == len(here):
                names = [node.module] if node.module else [alias.name for alias in node.names]
                for name in names:
                    yield here[0], name.split(".")[0], f"{path}:{node.lineno}"


def test_rooms_import_what_the_map_allows():
    assert {p.stem for p in ROOT.iterdir() if (p / "__init__.py").is_file()} <= set(MAP)
    strange = [
        f"{where}: {room} imports {other}"
        for room, other, where in arrows()
        if room != other and other not in MAP[room].split()
    ]
    assert strange == [], "\n".join(strange)


def test_the_map_has_no_more_arrows_than_there_are():
    found = {(room, other) for room, other, _ in arrows() if room != other}
    assert {(room, other) for room in MAP for other in MAP[room].split()} == found


@pytest.mark.parametrize("room", MAP)
def test_arrows_lead_to_what_comes_before(room):
    order = list(MAP)
    assert all(order.index(other) < order.index(room) for other in MAP[room].split())


def test_a_folder_has_few_files():
    files = Counter(path.parent for path in ROOT.rglob("*.py"))
    assert max(files.values()) <= 16, files.most_common(1)
