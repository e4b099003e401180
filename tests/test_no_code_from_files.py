"""No code of ours runs what a file or a string says: what is forbidden, and what may stand."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("fastseg", "kernels", "pipelines", "bench", "examples")
FILES = sorted(path for top in TOPS for path in (ROOT / top).rglob("*.py"))

ALLOWED = {
    ("fastseg/config/notations.py", "yaml.load"): "its loader is a SafeLoader with seven types",
    ("fastseg/exporting/formats.py", "torch.export.load"): "a file that this command has just "
    "written, to compare it with the network",
    ("fastseg/models/weight_files/restricted_pickle.py", "pickle"): "Unpickler, each name of which "
    "becomes one of a few classes of that file",
}
NAMES = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *("os.system", "os.popen", "torch.hub.load", "torch.jit.load", "torch.export.load"),
    *("torch.package.PackageImporter", "runpy.run_path", "runpy.run_module", "yaml.load_all"),
    *(
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
        "shutil.unpack_archive",
        "tempfile.mktemp",
    ),
    *("torch.hub.load_state_dict_from_url", "torch.utils.model_zoo.load_url"),
    *("torch.distributed.checkpoint.load", "onnx.hub.load", "codeop.compile_command"),
}
MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "code", "_pickle"}
METHODS = {"extractall", "extract"}


def dotted(node):
    """``a.b.c`` of an attribute or name; empty for others."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner else ""


def names_of_imports(tree):
    """What names stand for: ``np`` for numpy, ``load`` for ``torch.load``."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                known[each.asname or each.name.split(".")[0]] = (
                    each.name if each.asname else each.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for each in node.names:
                known[each.asname or each.name] = f"{node.module}.{each.name}"
    return known


def forbidden(text):
    """``(line, what)`` of every call in a source that could run what it reads."""
    tree = ast.parse(text)
    known = names_of_imports(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            of = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            for name in of:
                if (name or "").split(".")[0] in MODULES and not getattr(node, "level", 0):
                    yield node.lineno, name.split(".")[0]
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        first, _, rest = called.partition(".")
        whole = ".".join(filter(None, (known.get(first, first), rest)))
        options = {k.arg: getattr(k.value, "value", "?") for k in node.keywords}
        last = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if whole in NAMES | CALLS:
            yield node.lineno, whole
        elif last in METHODS:
            yield node.lineno, last
        elif whole == "torch.load" and options.get("weights_only") is not True:
            yield node.lineno, whole
        elif whole in ("numpy.load", "numpy.memmap") and options.get("allow_pickle") not in (
            None,
            False,
        ):
            yield node.lineno, f"{whole} with pickles"
        for name in ("shell", "trust_remote_code", "allow_pickle"):
            if options.get(name) not in (None, False) and whole != "numpy.load":
                yield node.lineno, name
        if options.get("weights_only", True) is not True:
            yield node.lineno, "weights_only"
        if last == "from_pretrained" and options.get("local_files_only") is not True:
            yield node.lineno, "from_pretrained without local_files_only"


def test_nothing_that_is_read_is_run():
    found = {
        (path.relative_to(ROOT).as_posix(), what): f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in FILES
        for line, what in forbidden(path.read_text(encoding="utf-8"))
    }
    assert [text for key, text in found.items() if key not in ALLOWED] == []
    assert set(ALLOWED) - set(found) == set(), "entries that are not needed"


@pytest.mark.parametrize(
    "text",
    [
        "eval(text)",
        "exec(open(path).read())",
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch as t\nt.load(path, weights_only=flag)",
        "from torch import load\nload(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "from yaml import unsafe_load as read\nread(text)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import os\nos.system(text)",
        "AutoModel.from_pretrained(folder, trust_remote_code=True, local_files_only=True)",
        "AutoModel.from_pretrained(name)",
        "archive.extractall(folder)",
        "import torch\ntorch.export.load(path)",
    ],
)
def test_each_of_these_would_be_found(text):
    assert list(forbidden(text))


@pytest.mark.parametrize(
    "text",
    [
        "network.eval()",
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import re\nre.compile(text)",
    ],
)
def test_none_of_these_is(text):
    assert not list(forbidden(text))
