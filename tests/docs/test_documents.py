"""README.md and docs/ name files, options and settings that there are."""

import io
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from fastseg import data
from fastseg.__main__ import COMMANDS
from fastseg.cli import command
from fastseg.cli.parse import parse, parse_checkpoint, parse_config
from fastseg.completion import CompletionConfig
from fastseg.config import reference
from fastseg.config.compare import changed_fields, flatten
from fastseg.config.presets.methods import RECIPES
from fastseg.config.presets.page import page
from fastseg.config.presets.registry import PRESETS, get_preset
from fastseg.config.run import TrainConfig
from fastseg.config.serialise import from_dict, to_dict
from fastseg.evaluation.from_weights import EvaluateConfig
from fastseg.exporting.options import ExportConfig
from fastseg.models.__main__ import ConvertConfig, ModelsConfig
from fastseg.prediction.options import PredictConfig
from fastseg.report.__main__ import ReportConfig, with_beside

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
# these are followed by test_howto.py, in a copy that then has the files and names they make
FOLLOWED = set((ROOT / "docs" / "howto").glob("add-a-*.md"))
AS_IS = [path for path in DOCUMENTS if path not in FOLLOWED]


def each_of(documents):
    """Run a test for each of these."""
    ids = [path.relative_to(ROOT).as_posix() for path in documents]
    return pytest.mark.parametrize("path", documents, ids=ids)


LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
TOP = ("fastseg", "kernels", "pipelines", "bench", "tests", "docs", "examples", ".ci")
PLACEHOLDERS = re.compile(r"[<>*{}]|XXXX")
RUN = re.compile(
    r"(?:(?:python3?|torchrun[^`\n]*) -m fastseg\.(?P<module>\w+)(?![.\w])"
    rf"|^fastseg (?P<word>{'|'.join(COMMANDS)}) )(?P<rest>[^`#;&|>\n]*)",
    re.M,
)
# words that stand for a value of the reader's, and what is tried in their place
STAND_INS = {"NAME": "demo", "N": "1"}
# words of settings that have a list of them
WORDS = (
    *("cpu", "bf16", "replicate", "zero", "skip", "torch", "crop", "planes", "low", "apex"),
    *("adamw", "on", "off", "drop", "code", "channel", "mit_b0", "teacher", "student", "other"),
    *("per_modality", "sample", "mff", "full"),
)


def prose(path):
    """The text without fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path):
    """The anchors of headings, made as GitHub does."""
    heads = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", head.lower()) for head in heads)
    return {head.replace(" ", "-") for head in plain}


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@each_of(DOCUMENTS)
def test_relative_links_lead_somewhere(path):
    wrong = []
    for link in LINK.findall(prose(path)):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists():
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(file):
            wrong.append(f"{link}: {file.name} has no such heading")
    assert wrong == [], "\n".join(wrong)


@each_of(AS_IS)
def test_paths_in_backticks_exist(path):
    named = {word.split("::")[0] for text in CODE.findall(prose(path)) for word in text.split()}
    paths = {word for word in named if word.split("/")[0] in TOP and "/" in word}
    # the page of faults says that its paths are below tests/
    folders = (ROOT, ROOT / "tests") if path.name == "faults.md" else (ROOT,)
    fixed = sorted(p for p in paths if not PLACEHOLDERS.search(p))
    assert [p for p in fixed if not any((folder / p).exists() for folder in folders)] == []


def command_lines():
    """``(document, module, arguments)`` of every call of a command, in fenced blocks and prose."""
    for path in AS_IS:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for found in RUN.finditer(text):
            words = [STAND_INS.get(word, word) for word in shlex.split(found["rest"])]
            yield path.name, f"fastseg.{found['module'] or found['word']}", words


@pytest.mark.parametrize(
    ("module", "arguments"),
    [pytest.param(m, a, id=f"{name}: {m} {' '.join(a)}") for name, m, a in command_lines()],
)
def test_command_lines_parse(module, arguments, monkeypatch):
    said, code = io.StringIO(), 0
    with redirect_stdout(said), redirect_stderr(said):
        try:
            read(module, arguments, monkeypatch)
        except SystemExit as end:
            code = end.code
    assert not code, said.getvalue()


def written_by_the_reader(path, preset=None):
    """Config of a file that a page tells the reader to write."""
    assert path.suffix in (".toml", ".yaml", ".json"), path
    return get_preset(preset or "debug")


def read(module, arguments, monkeypatch):
    """Read the arguments as the command would; nothing is run."""
    if module == "fastseg.train":
        # DIR and FILE are the reader's
        monkeypatch.setattr("fastseg.cli.parse.check_places", lambda config: None)
        monkeypatch.setattr("fastseg.cli.parse.read_config_file", written_by_the_reader)
        parse_config(module, "", arguments)
    elif module == "fastseg.evaluate":
        parse_checkpoint(EvaluateConfig, module, "", arguments or ["--help"])
    elif module == "fastseg.predict":
        parse_checkpoint(PredictConfig, module, "", arguments or ["--help"])
    elif module == "fastseg.export":
        parse_checkpoint(ExportConfig, module, "", arguments or ["--help"])
    elif module == "fastseg.models" and arguments[:1] == ["convert"]:
        parse(ConvertConfig, prog=module, args=arguments[1:] or ["--help"])
    elif module == "fastseg.models":
        parse(ModelsConfig, prog=module, args=arguments or ["--help"])
    elif module == "fastseg.report":
        parse_checkpoint(ReportConfig, module, "", with_beside(arguments) or ["--help"])
    elif module == "fastseg.completion":
        parse(CompletionConfig, prog=module, args=arguments)
    elif module == "fastseg.data":
        for kind in data.COMMANDS.values():
            monkeypatch.setattr(kind, "run", lambda self: 0)
        assert data.main(arguments or ["--help"]) == 0
    else:
        assert (module, arguments) == ("fastseg.doctor", [])


def test_every_exit_code_is_explained():
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    told = {name: int(code) for code, name in re.findall(r"^\| (\d+) \|.*`(\w+)` \|$", page, re.M)}
    names = ("BUG", "BAD_INPUT", "LOST_PEER", "OUT_OF_MEMORY", "INTERRUPTED", "READER_GONE")
    assert told == {name: getattr(command, name) for name in names}


def test_every_recipe_is_described():
    assert (ROOT / "docs" / "reference" / "presets.md").read_text(encoding="utf-8") == page()


@each_of(sorted((ROOT / "docs" / "reproduce").glob("*.md")))
def test_published_results_are_those_of_the_recipes(path):
    text = path.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+ hours) \|$", text, re.M)
    assert rows or path.stem == "index"
    for name, published, hours in rows:
        told = PRESETS[name].__doc__
        assert f"Published: {published}.\n" in told, name
        assert f"Estimate: {hours} of one H100" in told, name


def test_times_of_kernels_are_those_that_were_recorded():
    page = (ROOT / "docs" / "reference" / "kernels.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `\w+`.* \| (.+K25) \| (.+) \| (.+) \| (.*)\|$", page, re.M)
    recorded = (ROOT / "bench" / "results" / "cpu" / "kernels.md").read_text(encoding="utf-8")
    row = r"^\| {} \| fwd\+bwd \| float32 \| {} \| {} \|"
    assert len(told) == 5
    for case, *times in told:
        for provider, ms in zip(("official", "eager", "compile"), times, strict=True):
            wanted = row.format(re.escape(case), provider, re.escape(ms.strip()))
            assert not ms.strip() or re.search(wanted, recorded, re.M), (case, provider, ms)


def test_every_setting_is_described(monkeypatch):
    # other tests of this process may have registered methods
    own = {k: m for k, m in reference.METHODS.items() if m.__module__.startswith("fastseg.")}
    monkeypatch.setattr(reference, "METHODS", own)
    path = ROOT / "docs" / "reference" / "configuration.md"
    assert path.read_text(encoding="utf-8") == reference.page()
    told = set(re.findall(r"^\| `([\w.]+)` \|", reference.page(), re.M))
    fields = flatten(to_dict(get_preset("demo_robustseg")))
    # a stage has any name
    named = {re.sub(r"^stages\.\w+", "stages.NAME", field) for field in fields}
    named = {field for field in named if not field.startswith("data.eval_corruption.")}
    assert sorted(named - told) == []


def test_the_guide_names_every_method_that_has_recipes():
    guide = (ROOT / "docs" / "howto" / "train-on-your-data.md").read_text(encoding="utf-8")
    (row,) = (line for line in guide.splitlines() if line.startswith("| method |"))
    assert CODE.findall(row) == [recipe.name for recipe in RECIPES]


def test_fields_that_may_change_are_those_that_may():
    page = (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8")
    told = page.split("<!-- harmless -->\n```\n")[1].split("\n```")[0].splitlines()
    base = get_preset("demo")
    wrong, untried = [], set()
    for field in flatten(to_dict(base)):
        free = any(field == name or field.startswith(f"{name}.") for name in told)
        other = with_another_value(base, field)
        if other is None:
            untried.add(field)
        elif (not changed_fields(base, other)) != free:
            wrong.append(f"{field}: {'said to be free' if free else 'not said to be free'}")
    assert wrong == [], "\n".join(wrong)
    # options belong to a method, modalities are hit by a fault alone, and networks need each other
    alone = {"method", "data.corruption.modalities", "data.eval_corruption.modalities"}
    # other networks have these
    alone |= {"model.hub", "model.hub_selection", "model.scramble"}
    alone |= {
        f"model.{x}" for x in ("foundation", "train_foundation", "adapter_rank", "pyramid_width")
    }
    assert {field for field in untried if not field.startswith("stages.")} <= alone


def with_another_value(config, field):
    """A config that differs in one field, by the first value that it takes."""
    old = flatten(to_dict(config))[field]
    for value in (*WORDS, True, False, 1, 2, 5, 64, 0.25, ["img"], ["wandb"], [0.5, 1.0]):
        if isinstance(old, str) and not isinstance(value, str):
            continue
        place = values = to_dict(config)
        *parents, last = field.split(".")
        for name in parents:
            place = place[name]
        place[last] = value
        try:
            other = from_dict(TrainConfig, values)
        except ValueError:
            continue
        if flatten(to_dict(other))[field] != old:
            return other
    return None
