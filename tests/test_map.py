"""The map of the house: which room may import which, and what keeps every file easy to find.

A new arrow is a decision: it is made in `ROOMS`, or the import goes.
"""

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS = {
    "kernels": {
        "common": "",
        "testing": "",
        "reference": "",
        "entropy": "common reference",
        "fusion": "common reference",
        "network": "common reference",
        "prototypes": "common reference",
        "segmentation": "common reference",
        "similarity": "common reference prototypes",
        "operators": "common reference fusion network prototypes segmentation similarity",
        "modules": "reference entropy operators",
        "probe": "common prototypes",
        ".": "common testing reference entropy operators modules probe",
    },
    "pipelines": {
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
        ".": "errors datasets batch config loaders build",
    },
    "fastseg": {
        ".": "",
        "errors": "",
        "choice": "",
        "console": "pipelines/tools",
        "models": "errors choice kernels/. kernels/common pipelines/tools",
        "distributed": "errors models",
        "checkpoint": "errors console models distributed pipelines/. pipelines/datasets "
        "pipelines/tools",
        "vision_language": "errors console distributed checkpoint pipelines/*",
        "methods": "errors models distributed vision_language kernels/. pipelines/. "
        "pipelines/tools",
        "report": "errors console distributed pipelines/*",
        "config": "errors models methods pipelines/. pipelines/datasets pipelines/tools",
        "engine": "errors choice console models methods distributed report checkpoint config "
        "kernels/common kernels/network pipelines/*",
        "evaluation": ". errors console models methods distributed report checkpoint config engine "
        "kernels/. pipelines/*",
        "prediction": ". errors console models checkpoint config engine evaluation "
        "kernels/. pipelines/*",
        "exporting": ". errors console models report checkpoint config engine evaluation "
        "kernels/common kernels/reference pipelines/*",
        "cli": ". errors report distributed config engine kernels/. pipelines/*",
        "models/__main__": "errors models cli pipelines/tools",
        "train": "console config engine evaluation cli pipelines/synthetic pipelines/tools",
        "evaluate": "errors console models report engine evaluation cli pipelines/faults",
        "predict": "engine evaluation prediction cli",
        "export": "engine evaluation exporting cli",
        "report/__main__": "errors console models methods report config engine evaluation cli "
        "pipelines/tools",
        "data": "errors cli",
        "doctor": ". models engine cli kernels/. pipelines/native",
        "completion": "config evaluation prediction exporting cli report/__main__ "
        "models/__main__ data doctor",
        "__main__": ". pipelines/tools",
    },
    "bench": {
        "harness": "kernels/testing",
        "conftest": "harness",
        "rivals": "fastseg/models kernels/common kernels/reference pipelines/loaders "
        "pipelines/transform",
        "kernels": "harness conftest rivals fastseg/methods kernels/*",
        "input": "harness rivals fastseg/engine pipelines/*",
        "step": "harness conftest rivals fastseg/models fastseg/methods fastseg/distributed "
        "fastseg/checkpoint fastseg/config fastseg/engine kernels/. pipelines/.",
        "gpu_record": "harness step",
        "machine_code": "harness kernels/*",
        "studies": "fastseg/report fastseg/config fastseg/engine fastseg/evaluation "
        "fastseg/methods fastseg/models kernels/. pipelines/. pipelines/synthetic",
    },
}
"""What each room may import: rooms beside it that stand before it, and rooms of other folders.

A room is a folder or a file, or the command in a folder, ``report/__main__``; ``.`` is the folder's
own ``__init__.py``. ``pipelines/tools`` is that room of another folder, ``pipelines/*`` any of
them.
"""

LATE = {
    "fastseg/engine/context.py": "reads weights for commands only; steps are made without files",
    "fastseg/methods/any2seg.py": "reads embeddings; steps are made without files",
    "kernels/probe.py": "imports Triton, which need not be installed",
    "pipelines/__init__.py": "names are handed out when they are first asked for, without torch",
    "bench/input/": "libraries that are compared need not be installed",
    "bench/kernels/": "rows of kernels import Triton, which need not be installed",
    "bench/step/bench_checkpoint.py": "the parent only starts the processes",
    "bench/step/bench_scaling.py": "the parent only starts the processes",
}
"""Files and folders with imports inside functions or for type checkers alone, and why."""

LONG = {
    "kernels/segmentation/loss_kernels.py": "forward and backward of one loss, by the same steps",
}
"""Files of more than `MOST_LINES` lines, and why they are not two."""

SEGFORMER = {
    "bench/rivals/": "the published steps use the parts of this network",
    "bench/step/cases.py": "gives the rivals their network",
    "bench/step/launches.py": "counts by the parts of this network",
}
"""Files and folders outside ``fastseg/models`` that name the class, and why."""

MOST_LINES, MOST_FILES = 300, 16
FILES = [path.relative_to(ROOT) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
TREES = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in FILES}
BY_NAME = {path.with_suffix("").parts: path for path in FILES}
BY_NAME |= {path.parent.parts: path for path in FILES if path.name == "__init__.py"}


def room_of(path):
    """``("pipelines", "tools")``; ``("pipelines", ".")`` of the folder's own ``__init__.py``.

    The ``__main__.py`` of a folder is a command, and a room of its own.
    """
    name = path.parts[1].removesuffix(".py")
    if len(path.parts) == 3 and path.name == "__main__.py":
        name = f"{name}/__main__"
    return path.parts[0], "." if name == "__init__" else name


def file_of(name):
    """The file of a module, or of the module that a name is in; None of other libraries."""
    if name[:1] == ("fastseg",) and name[1:2] in (("kernels",), ("pipelines",)):
        name = name[1:]
    known = (name[:length] for length in range(len(name), 0, -1) if name[:length] in BY_NAME)
    return BY_NAME.get(next(known, None))


def imports(path, node=None, late=False):
    """``(file, line, late)`` of every import of a file; late: not when the file is imported."""
    for child in ast.iter_child_nodes(node or TREES[path]):
        names = []
        if isinstance(child, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            start = ()
            if child.level:
                start = path.with_suffix("").parts[: -child.level] or ("fastseg",)
            start += tuple(child.module.split(".")) if child.module else ()
            names = [(*start, alias.name) for alias in child.names]
        else:
            types_only = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports(path, child, late or inside or types_only)
        for other in filter(None, map(file_of, names)):
            if other != path:
                yield other, child.lineno, late


ARROWS = [(path, *found) for path in FILES for found in imports(path)]


def allows(entry, here, there):
    """Whether an entry of the table of room ``here`` is room ``there``."""
    if there[0] == here[0]:
        return entry == there[1]
    return entry in (f"{there[0]}/*", "/".join(there))


def listed(path, entries):
    """The entry for a file or a folder above it."""
    name = path.as_posix()
    return next((e for e in entries if name == e or (e[-1] == "/" and name.startswith(e))), None)


@pytest.mark.parametrize(
    "here", [(top, room) for top in ROOMS for room in ROOMS[top]], ids="/".join
)
def test_a_room_imports_what_the_map_allows(here):
    allowed, tops, rooms = ROOMS[here[0]][here[1]].split(), list(ROOMS), list(ROOMS[here[0]])
    before = {*rooms[: rooms.index(here[1])], *tops[: tops.index(here[0])]}
    assert {e.split("/")[0] for e in allowed} <= before, "arrows lead to what stands before"
    found = [
        (room_of(other), f"{path}:{line}: {'/'.join(here)} -> {'/'.join(room_of(other))}")
        for path, other, line, _ in ARROWS
        if room_of(path) == here != room_of(other)
    ]
    strange = [text for there, text in found if not any(allows(e, here, there) for e in allowed)]
    assert strange == [], "\n".join(strange)
    unused = [e for e in allowed if not any(allows(e, here, there) for there, _ in found)]
    assert unused == [], "arrows of the map that are no more"


def test_every_file_is_in_a_room():
    assert {room_of(p) for p in FILES} - {("bench", ".")} == {
        (top, room) for top in ROOMS for room in ROOMS[top]
    }


def test_no_circle_of_modules():
    graph, lines = defaultdict(set), {}
    for path, other, line, late in ARROWS:
        if not late:
            graph[path].add(other)
            lines[path, other] = f"{path}:{line}: -> {other}"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("\n".join(lines[b, a] for a, b in pairwise(error.args[1])))


def test_imports_stand_at_the_head_of_their_file():
    late = [(listed(p, LATE), f"{p}:{line}: -> {o}") for p, o, line, late in ARROWS if late]
    assert [text for entry, text in late if entry is None] == []
    assert set(LATE) == {entry for entry, _ in late}, "entries that are not needed"


def test_files_are_short():
    lengths = {
        p.as_posix(): len((ROOT / p).read_text(encoding="utf-8").splitlines()) for p in FILES
    }
    long = {name for name, count in lengths.items() if count > MOST_LINES}
    assert {f"{name}: {lengths[name]} lines" for name in long - LONG.keys()} == set()
    assert set(LONG) == long, "entries that are not needed"


def test_folders_have_few_files():
    beside = defaultdict(list)
    for path in FILES:
        beside[path.parent].append(path)
    assert {str(f): len(files) for f, files in beside.items() if len(files) > MOST_FILES} == {}


def words(path):
    """``(line, text)`` of the names and strings of a file, docstrings left out."""
    said = {id(n.value) for n in ast.walk(TREES[path]) if isinstance(n, ast.Expr)}
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name | ast.Attribute | ast.alias | ast.arg | ast.keyword):
            name = getattr(node, "id", None) or getattr(node, "attr", None)
            yield node.lineno, name or getattr(node, "name", None) or getattr(node, "arg", "") or ""


def naming(pattern, but):
    """Where a word of code is, by file, outside some files and folders."""
    return [
        (path, f"{path}:{line}: {text!r}")
        for path in FILES
        if listed(path, but) is None
        for line, text in words(path)
        if re.search(pattern, text)
    ]


def test_models_alone_name_the_class_of_a_network():
    found = naming(r"\bSegFormer\b", ["fastseg/models/"])
    assert [text for path, text in found if listed(path, SEGFORMER) is None] == []
    assert {listed(path, SEGFORMER) for path, _ in found} == set(SEGFORMER), "not needed"


def test_methods_alone_name_their_networks():
    # the config has the option --teacher, whose meaning is `given`
    but = ["fastseg/methods/", "fastseg/config/presets/", "fastseg/config/run.py"]
    found = naming(r"\b(teacher|student)\b", [*but, "kernels/", "pipelines/", "bench/"])
    assert [text for _, text in found] == []
