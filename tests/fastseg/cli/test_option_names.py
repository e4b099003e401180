"""Every option that a message, a help text or a document names is one of the command it is for."""

import ast
import io
import re
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path

import pytest

from fastseg import completion, data, doctor, evaluate, export, predict, train
from fastseg.__main__ import COMMANDS
from fastseg.config.presets.methods import RECIPES
from fastseg.models import __main__ as models
from fastseg.report import __main__ as report

ROOT = Path(__file__).parents[3]
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
ROOMS = ("fastseg", "kernels", "pipelines")
OPTION = re.compile(r"(?<![\w-])--[a-z]\w*(?:[-.](?:\w+|\{\}))*")
COMMAND = re.compile(
    r"-m fastseg\.(?P<module>data \w+|models convert|\w+)(?![.\w])"
    rf"|(?<![\w./-])fastseg (?P<word>data \w+|models convert|{'|'.join(COMMANDS)})(?![.\w])"
)

TRAIN = {"fastseg.train"}
SCORE = {"fastseg.evaluate"}
PREDICT = {"fastseg.predict"}
SHIP = {"fastseg.export"}
PAGE = {"fastseg.report"}
LOOK = {f"fastseg.data {name}" for name in ("check", "stats", "show", "pack")}
PREPARE = {"fastseg.data prepare"}
WRITE = {f"fastseg.data {name}" for name in data.COMMANDS}

PRINTED_BY = {
    "fastseg/cli/command.py": TRAIN | SCORE | PAGE | PREDICT | WRITE,
    # what is read and written may be moved; a page and an export compute little or on the CPU
    "fastseg/cli/command.py --out": TRAIN | SCORE | PREDICT | SHIP | PAGE | WRITE,
    # scoring compiles nothing, and the data commands use no network
    "fastseg/cli/command.py --speed.compile": TRAIN,
    "fastseg/cli/command.py --precision": TRAIN | SCORE | PAGE | PREDICT,
    "fastseg/cli/command.py --data.eval-batch-size": TRAIN | SCORE | PAGE,
    "fastseg/cli/command.py --data.eval-size": TRAIN | SCORE | PAGE | PREDICT,
    "fastseg/checkpoint/weights.py": TRAIN | SCORE | PAGE | PREDICT,
    # of writing weights and of stages, which scoring does not
    "fastseg/checkpoint/weights.py --fresh": TRAIN,
    "fastseg/checkpoint/weights.py --name": TRAIN,
    "fastseg/evaluate.py": SCORE,
    "fastseg/evaluation/from_weights.py": SCORE,
    "fastseg/evaluation/from_weights.py --data.root": SCORE | PREDICT | SHIP | PAGE,
    "fastseg/prediction/": PREDICT,
    "fastseg/models/__main__.py": {"fastseg.models convert"},
    "fastseg/models/precision.py": TRAIN | SCORE | PAGE | PREDICT,
    "fastseg/distributed/launch.py": TRAIN | SCORE | PAGE | PREDICT,
    "fastseg/evaluation/from_weights.py --network": SHIP | PREDICT | SCORE,
    "fastseg/cli/other_names.py": TRAIN,
    "fastseg/cli/other_names.py --checkpoint": SCORE | PREDICT | SHIP | PAGE,
    "fastseg/cli/parse.py --checkpoint": SCORE | PREDICT | SHIP | PAGE,
    "fastseg/report/__main__.py": PAGE,
    "fastseg/exporting/": SHIP,
    "fastseg/evaluation/protocols/": SCORE,
    "fastseg/evaluation/scoring/": SCORE,
    "pipelines/build.py": TRAIN | SCORE | PAGE,
    "pipelines/build.py --data.dataset": TRAIN | LOOK,
    # evaluate takes the cache from the config of its run, which has refused this
    "pipelines/build.py --data.cache": TRAIN,
    # evaluate takes data set and modalities from its run
    "pipelines/datasets/catalogue/kitti360.py": TRAIN | LOOK,
    "pipelines/datasets/catalogue/muses.py --data.dataset": TRAIN | LOOK,
    "fastseg/cli/data_describe.py": {"fastseg.data describe"},
    "pipelines/inspection/describe/": {"fastseg.data describe"},
    "pipelines/inspection/check.py": {"fastseg.data check"},
    "pipelines/loaders/dali/loader.py": TRAIN | SCORE | PAGE,
    "pipelines/decode/by_spec.py": TRAIN | LOOK,
    "pipelines/datasets/list_files.py": TRAIN | SCORE | PAGE | LOOK,
    "pipelines/datasets/split_files.py": TRAIN | SCORE | PAGE | LOOK,
    "pipelines/cache/write.py": {"fastseg.data pack"},
    "pipelines/cache/read.py": TRAIN | SCORE | PAGE,
    "pipelines/loaders/plan.py": TRAIN | SCORE | PAGE,
    # training renders scenes, too; the option's text says whose it is
    "pipelines/tools/process_pool.py": {
        f"fastseg.data {n}" for n in ("check", "stats", "prepare", "synthetic")
    },
    "pipelines/projection/": PREPARE,
    "pipelines/synthetic/": TRAIN | {"fastseg.data synthetic"},
}
"""The commands that print the messages of a file or folder, or those of one option; else train.

An option may also be one of the command that the message names before it.
"""

FOREIGN = {
    "--dist": "pytest-xdist",
    "--init": "git submodule",
    "--index-url": "pip",
    "--no-build-isolation": "pip",
    "--upgrade": "pip",
    **dict.fromkeys(("--no-deps", "--wheel-dir", "--no-index", "--find-links"), "pip"),
    "--max-restarts": "torchrun",
    **dict.fromkeys(
        (
            "--nodes",
            "--ntasks-per-node",
            "--gpus-per-node",
            "--cpus-per-task",
            "--time",
            "--signal",
            "--requeue",
            "--open-mode",
            "--kill-on-bad-exit",
        ),
        "SLURM",
    ),
    "--nnodes": "torchrun",
    "--node-rank": "torchrun",
    "--master-addr": "torchrun",
    "--master-port": "torchrun",
    "--nproc-per-node": "torchrun",
    "--standalone": "torchrun",
    "--shm-size": "docker run",
    **dict.fromkeys(("--rm", "--gpus", "--ipc", "--user"), "docker run"),
    **dict.fromkeys(("--target", "--build-arg"), "docker build"),
    "--fix": "ruff",
    "--local-dir": "hf download",
    # scripts and conftest of bench/, which is not installed
    "--seconds": "bench/conftest.py",
    "--commit": "bench/gpu_record.py",
    "--only": "bench/gpu_record.py",
    "--run": "bench/studies/batch_norm_statistics.py",
}
"""Options of other programs."""


@pytest.fixture(scope="module")
def accepted():
    """The options of each command as ``--help`` lists them in one column."""
    calls = {
        "fastseg.train": (train.main, ["--help"]),
        "fastseg.evaluate": (evaluate.main, ["--help"]),
        "fastseg.predict": (predict.main, ["--help"]),
        "fastseg.export": (export.main, ["--help"]),
        "fastseg.report": (report.main, ["--help"]),
        "fastseg.doctor": (doctor.main, ["--help"]),
        "fastseg.models": (models.main, ["--help"]),
        "fastseg.models convert": (models.main, ["convert", "--help"]),
        "fastseg.completion": (completion.main, ["--help"]),
        **{f"fastseg.data {name}": (data.main, [name, "--help"]) for name in data.COMMANDS},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        found = {name: listed(main, words) for name, (main, words) in calls.items()}
    # read before the fields of the preset, and described above the list
    found["fastseg.train"] |= {"--preset", "--config", "--print-config"}
    # each method has stages and loss terms of its own
    for recipe in RECIPES:
        found["fastseg.train"] |= listed(train.main, ["--preset", f"debug_{recipe.name}", "--help"])
    assert {"--data.root", "--root"} <= found["fastseg.data check"]
    # taken out by `fastseg.cli.command` before the options are read
    return {name: options | {"--quiet"} for name, options in found.items()}


def listed(main, words):
    text = io.StringIO()
    with redirect_stdout(text), pytest.raises(SystemExit):
        main(words)
    # two characters of frame, then the option; descriptions are set in deeper
    lines = [line for line in text.getvalue().splitlines() if re.match("..-", line)]
    return {option for line in lines for option in OPTION.findall(line)}


def texts(source):
    """Every string of a file, f-strings whole with {} for what is filled in."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(part) for part in ast.walk(node)}
            yield "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
        ):
            yield node.value


def called(match):
    """``fastseg.data check`` of either form of a command."""
    return f"fastseg.{match['module'] or match['word']}"


def mentions(text):
    """``(option, the command that was named before it or None)`` for every option in a text."""
    # the name alone is the definition of an option
    if OPTION.fullmatch(text):
        return
    named = list(COMMAND.finditer(text))
    ends = [*(match.start() for match in named), len(text)]
    parts = [
        text[: ends[0]],
        *(text[m.end() : end] for m, end in zip(named, ends[1:], strict=True)),
    ]
    for command, part in zip([None, *map(called, named)], parts, strict=True):
        for option in OPTION.findall(part.replace(".*", ".{}")):
            yield option, command


def refused_by(commands, option, accepted):
    """The commands without an option of that name; {} stands for any part of it."""
    pattern = re.compile(re.escape(option).replace(r"\{\}", ".+"))
    return sorted(c for c in commands if not any(map(pattern.fullmatch, accepted.get(c, ()))))


def printed_by(path, option):
    keys = (f"{path} {option}", path, *(f"{folder}/" for folder in Path(path).parents))
    return next((PRINTED_BY[key] for key in keys if key in PRINTED_BY), TRAIN)


def files():
    for path in sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        # --name is a variable in a style sheet
        if path.parent.name != "page":
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_messages_name_options_that_their_commands_have(accepted):
    wrong = []
    for path, source in files():
        for option, command in (pair for text in texts(source) for pair in mentions(text)):
            missing = refused_by(printed_by(path, option), option, accepted)
            named = command is not None and not refused_by({command}, option, accepted)
            if option not in FOREIGN and missing and not named:
                wrong.append(f"{path}: {option} is no option of {', '.join(missing)}")
    assert wrong == [], "\n".join(wrong)


def test_messages_name_commands_that_there_are(accepted):
    found = (COMMAND.finditer(text) for _, source in files() for text in texts(source))
    assert {called(match) for match in chain(*found)} <= {*accepted, "fastseg.data"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_options_that_their_commands_have(accepted, document):
    wrong = []
    for line in DOCUMENTS[document].replace("\\\n", " ").splitlines():
        for option, command in mentions(line):
            # a table has the options of training and of scoring
            commands = [command] if command else list(accepted)
            refused = refused_by(commands, option, accepted)
            if option not in FOREIGN and len(refused) == len(commands):
                wrong.append(f"{option} in: {line}")
    assert wrong == [], "\n".join(wrong)


def test_nothing_installs_another_project_of_the_same_name():
    # the package index has a fastseg of others: the extras are to be had from the clone alone
    sources = {**dict(files()), **DOCUMENTS}
    # which says what became of such messages
    del sources["docs/faults.md"]
    found = {name for name, text in sources.items() if re.search(r"pip install\W+fastseg\b", text)}
    assert found == set()
