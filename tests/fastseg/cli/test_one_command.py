"""The command ``fastseg``: its help, its sub-commands, and what a shell completes of them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastseg
from fastseg import __main__, completion, doctor, evaluate, export, predict
from fastseg.cli import command
from fastseg.cli.other_names import renamed
from fastseg.report import __main__ as report

ROOT = Path(__file__).parents[3]


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_needs_no_torch_and_fits_a_screen():
    loaded = python(
        "import sys; from fastseg.__main__ import main; assert main(['--help']) == 0; "
        "print(*{m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'tyro', 'triton'})"
    )
    *page, heavy = loaded.splitlines()
    assert heavy == ""
    assert len(page) <= 24
    assert max(map(len, page)) <= 88
    assert all(re.search(rf"^  {name} +\w", "\n".join(page), re.M) for name in __main__.COMMANDS)


def test_no_arguments_are_a_call_for_help(capsys):
    assert __main__.main([]) == 0
    alone = capsys.readouterr().out
    assert __main__.main(["-h"]) == 0
    assert capsys.readouterr().out == alone
    assert __main__.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == fastseg.__version__


def test_an_unknown_command_is_a_wrong_option_with_the_nearest(capsys):
    assert __main__.main(["trian"]) == command.BAD_INPUT == __main__.BAD_INPUT
    assert "unknown command 'trian': did you mean 'train'" in capsys.readouterr().err


def test_a_sub_command_is_the_command(capsys, monkeypatch):
    found = doctor.Finding("a", "b", "c")
    monkeypatch.setattr(doctor, "examine", lambda: [found])
    assert __main__.main(["doctor"]) == 0
    for name in __main__.COMMANDS:
        with pytest.raises(SystemExit) as end:
            __main__.main([name, "--help"])
        assert not end.value.code
        said = capsys.readouterr().out
        assert re.search(rf"usage: (python -m fastseg\.|fastseg ){name}\b", said), said[:200]
    assert __main__.main(["data", "check", "--root", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_both_commands_are_installed():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert '"fastseg = fastseg.__main__:main"' in text
    for name, (module, _) in __main__.COMMANDS.items():
        assert name == "completion" or f'"fastseg-{name} = {module}:main"' in text


@pytest.mark.parametrize("main", [evaluate.main, predict.main, export.main, report.main])
def test_the_first_word_may_be_the_checkpoint(main, tmp_path, capsys):
    more = ["--out", str(tmp_path / "out")]
    more += ["--formats", "pt2"] if main is export.main else []
    said = []
    for words in (["gone", *more], ["--checkpoint", "gone", *more]):
        assert main(words) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert "gone" in said[0]


@pytest.mark.parametrize("main", [evaluate.main, predict.main, export.main, report.main])
def test_options_of_training_are_refused_with_what_to_give(main, capsys):
    assert main(["--config", "x.toml"]) == 2
    assert "--config is no option here: --checkpoint names" in capsys.readouterr().err


def test_evaluate_takes_the_faults_of_scores_by_their_name_in_training(untrained, capsys):
    words = ["--data.eval-corruption.blackout=1", "--data.eval-corruption.modalities", "radar"]
    assert evaluate.main([str(untrained), "--device", "cpu", *words]) == 2
    assert "radar" in capsys.readouterr().err
    assert renamed(["--a.b", "1", "--ab", "--a=2"], {"--a": "--x"}) == [
        "--x.b",
        "1",
        "--ab",
        "--x=2",
    ]


def test_evaluate_scores_one_network(untrained, capsys):
    words = [str(untrained), "--device", "cpu", "--network", "student"]
    assert evaluate.main(words) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["student"]
    assert evaluate.main([*words[:-1], "studnet"]) == 2
    assert "did you mean 'student'" in capsys.readouterr().err


SHARED = {
    "--checkpoint": ["evaluate", "predict", "export", "report"],
    "--out": [
        *("train", "evaluate", "predict", "export", "report", "data check", "data stats"),
        *("data show", "data pack", "data fetch", "data unpack", "data prepare", "data synthetic"),
    ],
    "--device": ["train", "evaluate", "predict", "report"],
    "--precision": ["train", "evaluate", "predict", "export", "report"],
    "--network": ["evaluate", "predict", "export"],
    "--data.root": [
        *("train", "evaluate", "predict", "export", "report", "data check", "data stats"),
        *("data show", "data pack", "data prepare"),
    ],
    "--data.workers": [
        *("train", "evaluate", "predict", "report", "data check", "data stats", "data show"),
        *("data pack", "data prepare", "data synthetic"),
    ],
    "--data.dataset": [
        *("train", "evaluate", "predict", "export"),
        *("data check", "data stats", "data show", "data pack"),
    ],
    "--data.modalities": ["train", "data check", "data stats", "data show", "data pack"],
    "--data.eval-split": ["train", "evaluate", "predict", "export"],
    "--data.eval-size": ["train", "evaluate", "predict", "report"],
    "--data.eval-batch-size": ["train", "evaluate", "report"],
    "--data.loader": ["train", "evaluate", "report"],
    "--evaluation.missing": ["train", "evaluate", "predict", "export"],
    "--seed": ["train", "data synthetic"],
}
"""The same thing has the same name in every command that has it."""


@pytest.fixture(scope="module")
def bash():
    return completion.script("bash")


def completed(script, tmp_path, *words):
    """What bash offers for the last of these words."""
    file = tmp_path / "complete.sh"
    quoted = " ".join(f"'{word}'" for word in words)
    file.write_text(
        f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n_tyro_fastseg\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", str(file)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    return done.stdout.split()


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@needs_bash
def test_bash_parses_the_script_and_completes_commands_options_and_values(bash, tmp_path):
    done = subprocess.run(["bash", "-n"], input=bash, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(__main__.COMMANDS) <= set(completed(bash, tmp_path, "fastseg", ""))
    assert completed(bash, tmp_path, "fastseg", "tr") == ["train"]
    assert completed(bash, tmp_path, "fastseg", "train", "--print") == ["--print-config"]
    assert completed(bash, tmp_path, "fastseg", "train", "--preset", "deliver_robustseg_b") == [
        "deliver_robustseg_b0", "deliver_robustseg_b2",
    ]  # fmt: skip
    assert "check" in completed(bash, tmp_path, "fastseg", "data", "")
    assert completed(bash, tmp_path, "fastseg", "models", "con") == ["convert"]
    assert completed(bash, tmp_path, "fastseg", "models", "--side") == ["--sides"]
    assert completed(bash, tmp_path, "fastseg", "models", "convert", "--lay") == ["--layout"]
    (tmp_path / "runs").mkdir()
    assert completed(bash, tmp_path, "fastseg", "evaluate", "--checkpoint", "ru") == ["runs"]
    assert "complete -o filenames -o default -F _tyro_fastseg fastseg" in bash


@needs_bash
def test_the_same_thing_has_the_same_option_in_every_command(bash, tmp_path):
    commands = sorted({name for names in SHARED.values() for name in names})
    offered = {
        name: set(completed(bash, tmp_path, "fastseg", *name.split(), "--")) for name in commands
    }
    for option, names in SHARED.items():
        assert [name for name in commands if option in offered[name]] == sorted(names), option


def test_zsh_has_every_command_too(tmp_path):
    script = completion.script("zsh")
    assert script.startswith("#compdef fastseg")
    assert all(f"'{name}'" in script for name in __main__.COMMANDS)
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n"], input=script, text=True, check=True)


def test_completion_is_a_command(capsys, monkeypatch):
    monkeypatch.setattr(completion, "script", lambda shell: f"script for {shell}")
    assert completion.main(["zsh"]) == 0
    assert capsys.readouterr().out == "script for zsh\n"
    with pytest.raises(SystemExit):
        completion.main(["csh"])
