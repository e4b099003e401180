"""docs/faults.md and the marks ``@pytest.mark.fault("F13")`` of the tests name the same things.

Nothing is imported: marks are read from the syntax of the files, those of ``pytest.param`` too.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTS = [f"F{number}" for number in range(1, 43)]
SECTION = "## The 42 faults\n"
ROW = re.compile(r"^\| *(F\d+) *\|(?:[^|\n]+\|){2}(?P<held>[^|\n]+)\|$", re.MULTILINE)


def rows_of(page):
    """``[(id, files that the row names)]`` of the first table."""
    section = page.partition(SECTION)[2].partition("\n## ")[0]
    return [
        (row[1], set(re.findall(r"`([^`]+\.py)`", row["held"]))) for row in ROW.finditer(section)
    ]


def marks_of(tests):
    """``{id: files}`` of every ``mark.fault(...)`` in the files below a folder of tests."""
    marks = defaultdict(set)
    for path in sorted(tests.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "mark.fault" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.fault"):
                for argument in node.args:
                    marks[ast.literal_eval(argument)].add(path.relative_to(tests).as_posix())
    return dict(marks)


def disagreements(rows, marks):
    """What is wrong between rows and marks, one sentence each."""
    wrong = []
    ids = [fault for fault, _ in rows]
    wrong += [f"{fault}: {ids.count(fault)} rows" for fault in FAULTS if ids.count(fault) != 1]
    wrong += [f"{fault}: no test is marked" for fault in FAULTS if fault not in marks]
    wrong += [f"{fault}: unknown" for fault in sorted({*ids, *marks} - {*FAULTS})]
    for fault, named in rows:
        marked = marks.get(fault, set())
        wrong += [f"{fault}: the row lacks {file}" for file in sorted(marked - named)]
        wrong += [f"{fault}: no mark in {file}" for file in sorted(named - marked)]
    return wrong


def test_every_fault_has_a_row_and_marked_tests():
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    wrong = disagreements(rows_of(page), marks_of(ROOT / "tests"))
    assert wrong == [], "\n".join(wrong)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda page, test: (page.replace("| F7 |", "| 7 |"), test), "F7: 0 rows"),
        (lambda page, test: (page + "\n" + page.splitlines()[-1], test), "F42: 2 rows"),
        (lambda page, test: (page.replace("F42", "F43"), test), "F43: unknown"),
        (lambda page, test: (page, test.replace('"F7", ', "")), "F7: no test is marked"),
        (lambda page, test: (page, test.replace("F7", "F70")), "F70: unknown"),
        (lambda page, test: (page, test.replace("fault", "slow")), "F1: no mark in a/test_b.py"),
        (lambda page, test: (page.replace("`a/", "`c/"), test), "F42: the row lacks a/test_b.py"),
    ],
)
def test_what_is_out_of_step_is_said(tmp_path, change, said):
    row = "| {} | a fault | what happens | `a/test_b.py`, on a GPU too |"
    page = f"# Page\n\n{SECTION}\n" + "\n".join(row.format(fault) for fault in FAULTS)
    listed = ", ".join(f'"{fault}"' for fault in FAULTS)
    test = f"@given(pytest.param(1, marks=pytest.mark.fault({listed})))\ndef test_it(n): ...\n"
    file = tmp_path / "a" / "test_b.py"
    file.parent.mkdir()
    file.write_text(test)
    assert disagreements(rows_of(page), marks_of(tmp_path)) == []
    page, test = change(page, test)
    file.write_text(test)
    assert said in disagreements(rows_of(page), marks_of(tmp_path))
