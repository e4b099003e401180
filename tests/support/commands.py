"""Words of the commands, how tests call them, and files that they break."""

import shutil

STEPS = ["--stages.teacher.steps", "4", "--stages.student.steps", "4"]


def options(scenes, out, *more):
    return [
        *["--preset", "debug", "--out", str(out), "--data.root", str(scenes)],
        *["--synthetic.train", "0", "--synthetic.val", "0", *STEPS, *more],
    ]


def run(main, arguments, capsys):
    """Exit code and error text of a command; a traceback would fail the test."""
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    text = capsys.readouterr().err
    return code, " ".join(text.replace("│", " ").split())


def copied(scenes, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(scenes, root)
    return root


def a_file(root, folder, split):
    return sorted(root.glob(f"{folder}/*/{split}/*/*.png"))[0]
