import dataclasses
import faulthandler
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
import triton

from bench.machine_code import aot, child_process

ROOT = Path(aot.__file__).parents[2]
ROW = aot.Counts(
    kernel="pool_fwd", case="C32", arch="sm_90", triton="3.9.0", source="0f",
    registers=100, stack=0,
    shared=1000, spills=0, wide_loads=4, wide_stores=2, loads=6, stores=2, shuffles=0,
    tensor_core=8, special=0, loop=300, instructions=400,
)  # fmt: skip
CASE = aot.Case("C32", None, (), {}, 4, 3, registers=128, shared=2000)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the interpreter is off, and the driver that it sets is process-wide."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_kernel_has_regressed():
    options = ["--check"]
    if not any(row.triton == triton.__version__ for row in aot.read_table().values()):
        # nothing to compare with: whether the kernels compile for one architecture, unspilled
        options += ["--first", "--arch", "90"]
    done = run("bench/machine_code/aot.py", *options)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_has_all_architectures_and_hardly_a_spill():
    rows = aot.read_table().values()
    assert {row.arch for row in rows} == {f"sm_{number}" for number in aot.ARCHITECTURES}
    spilling = [row.key for row in rows if row.spills or row.stack]
    assert max(row.spills for row in rows) <= aot.ONE_VALUE[0], spilling
    assert max(row.stack for row in rows) <= aot.ONE_VALUE[1], spilling
    assert len(spilling) < len(rows) / 100


RELEASE_CHECK = """
import sys
from bench.machine_code import aot
cases = aot.registered()
for release in aot.RELEASES:
    if found := aot.stale(cases, release):
        sys.exit(f"record with Triton {release} again: {len(found)} cases, first {found[0]}")
"""


def test_the_table_is_that_of_these_kernels_for_every_release():
    # by the fingerprints of the sources, without the other releases; a row that was acceptable is
    done = run("-c", RELEASE_CHECK)
    assert done.returncode == 0, done.stderr


KERNEL = '''
import triton
SCALE = triton.language.constexpr(2)

@triton.jit
def helper(x):
    """{prose}"""
    return x * SCALE

@triton.jit
def _kernel(x_ptr):
    # {prose}
    triton.language.store(x_ptr, helper(triton.language.load(x_ptr)){more})
'''
FINGERPRINTS = """
import first, moved, other
from bench.machine_code.aot import Case
found = [Case("", m._kernel, (), {}, 4, 3, 0, 0).source for m in (first, moved, other)]
assert found[0] == found[1] != found[2], found
moved.SCALE.value = 3
assert Case("", moved._kernel, (), {}, 4, 3, 0, 0).source != found[0]
"""


def test_a_move_or_prose_leaves_the_fingerprint_and_code_or_a_constant_changes_it(tmp_path):
    texts = {"first": ("Twice.", ""), "moved": ("Two times.", ""), "other": ("Twice.", " + 1")}
    for name, (prose, more) in texts.items():
        (tmp_path / f"{name}.py").write_text(KERNEL.format(prose=prose, more=more))
    path = f"import sys\nsys.path[:0] = {[str(ROOT), str(tmp_path)]!r}\n"
    done = run("-c", path + FINGERPRINTS)
    assert done.returncode == 0, done.stderr


def test_a_row_of_an_older_source_or_none_is_stale(tmp_path, monkeypatch):
    def kernel():
        """Only its name counts."""

    class Named(aot.Case):
        source = "0f"

    case = Named(*CASE)._replace(kernel=kernel)
    rows = [
        dataclasses.replace(ROW, kernel="kernel", arch=f"sm_{arch}") for arch in aot.ARCHITECTURES
    ]
    monkeypatch.setattr(aot, "TABLE", tmp_path / "aot.csv")
    aot.write_table(rows)
    assert aot.stale([case], "3.9.0") == []
    assert aot.stale([case], "3.7.1") == ["kernel C32"]
    aot.write_table([dataclasses.replace(rows[0], source="old"), *rows[1:]])
    assert aot.stale([case], "3.9.0") == ["kernel C32"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"spills": 3}, "spills: 3 accesses"),
        ({"stack": 40}, "40 bytes of stack"),
        ({"registers": 129}, "registers 129, budget 128"),
        ({"registers": 111}, "registers 111, in the table 100"),
        ({"shared": 1101}, "shared 1101, in the table 1000"),
        ({"instructions": 441}, "instructions 441, in the table 400"),
        ({"wide_loads": 0}, "no wide_loads, in the table 4"),
        ({"tensor_core": 0}, "no tensor_core, in the table 8"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_regression_is_named(change, complaint):
    worse = dataclasses.replace(ROW, **change)
    assert any(complaint in found for found in aot.complaints(CASE, worse, ROW))


def test_small_changes_and_improvements_pass():
    better = dataclasses.replace(ROW, registers=60, instructions=200, wide_loads=3, shuffles=9)
    drift = dataclasses.replace(ROW, registers=110, shared=1100, instructions=440)
    for row in (ROW, better, drift):
        assert aot.complaints(CASE, row, ROW) == []
    # another version of Triton, without a table: budgets only
    assert aot.complaints(CASE, dataclasses.replace(ROW, instructions=9999), None) == []


def test_a_table_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(aot, "TABLE", tmp_path / "results" / "aot.csv")
    assert aot.read_table() == {}
    other = dataclasses.replace(ROW, triton="3.6.0")
    aot.write_table([ROW, other])
    assert aot.read_table() == {ROW.key: ROW, other.key: other}


PROGRAM = """
import torch, triton
import triton.language as tl
from bench.machine_code.child_process import compiled
from bench.machine_code.counts import Case

@triton.jit
def _copy_kernel(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    for start in range(0, N, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        tl.store(y_ptr + offs, tl.load(x_ptr + offs) * 2)

@triton.jit
def _spilling_kernel(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs)
    for _ in range(N):
        x = tl.exp(x) / tl.max(x, 0)
    tl.store(y_ptr + offs, x)

def x():
    return torch.empty(1 << 20, device="meta")

cases = [
    Case("wide", _copy_kernel, (x(), x(), 1 << 20), {"BLOCK": 1024}, 4, 3, 64, 1 << 16),
    Case(
        "spill", _spilling_kernel, (x(), x(), 64), {"BLOCK": 2048, "maxnreg": 32}, 1, 1, 255, 65536
    ),
]
found = {case.name: row for case, _, row in compiled([(case, 90) for case in cases])}
wide, spill = found["wide"], found["spill"]
assert (wide.kernel, wide.case, wide.arch) == ("copy", "wide", "sm_90"), wide
assert wide.wide_loads == wide.loads > 0 and wide.wide_stores == wide.stores > 0, wide
assert wide.spills == wide.stack == 0 < wide.loop < wide.instructions, wide
assert spill.spills > 0 and spill.stack > 0 and spill.special > 0 and spill.shuffles > 0, spill
assert list(compiled([])) == []
"""


def _row_of(case, capability):
    """Stands in for the compiler."""
    if case.name == "hangs":
        time.sleep(60)
    if case.name == "eats":
        bytearray(8 << 30)
    if case.name == "dies":
        faulthandler.disable()  # its report would look like one of the tests' own
        os.abort()
    if case.name == "raises":
        raise ValueError("no such layout\n")
    return dataclasses.replace(ROW, case=case.name, arch=f"sm_{capability}")


def test_a_case_that_does_not_compile_fails_alone(monkeypatch):
    monkeypatch.setattr(child_process, "row_of", _row_of)
    names = ["good", "raises", "hangs", "better", "dies", "eats", "best"]
    tasks = [(CASE._replace(name=name), 90) for name in names]
    found = list(child_process.compiled(tasks, gib=4, seconds=1.0))
    results = {case.name: result for case, _, result in found}
    assert len(found) == len(names)
    for name in ("good", "better", "best"):
        assert results[name] == dataclasses.replace(ROW, case=name)
    assert results["raises"] == "ValueError: no such layout"
    assert results["hangs"] == "stopped after 1 s"
    assert results["dies"] == "the compiler's process ended with SIGABRT"
    assert results["eats"].startswith("MemoryError")


def test_a_failure_is_named_and_leaves_no_row(tmp_path, monkeypatch, capsys):
    def kernel():
        """Only its name counts."""

    class Named(aot.Case):
        source = "0f"

    monkeypatch.setattr(aot, "TABLE", tmp_path / "aot.csv")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    bad, good = (Named(*CASE)._replace(name=name, kernel=kernel) for name in ("bad", "good"))
    monkeypatch.setattr(aot, "registered", lambda _word: [bad, good])
    stale = [
        dataclasses.replace(
            ROW, kernel="kernel", case=case.name, triton=triton.__version__, source="old"
        )
        for case in (bad, good)
    ]
    fresh = dataclasses.replace(stale[1], source="0f")
    aot.write_table(stale)
    monkeypatch.setattr(
        aot, "compiled", lambda tasks: [(bad, 90, "stopped after 120 s"), (good, 90, fresh)]
    )
    monkeypatch.setattr(sys, "argv", ["aot.py", "--arch", "90"])
    assert aot.main() == 1
    printed = capsys.readouterr().out
    assert "kernel bad sm_90\n    FAILED: stopped after 120 s" in printed
    assert "2 compiled" in printed
    assert "1 failed" in printed
    assert aot.read_table() == {fresh.key: fresh}


def test_the_machine_code_is_read_right(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{PROGRAM}")
    done = run(str(path))
    assert done.returncode == 0, done.stderr


def test_the_interpreter_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["aot.py", "--check"])
    with pytest.raises(SystemExit):
        aot.main()
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def test_two_cases_of_one_name_are_an_error(monkeypatch):
    def kernel():
        """Only its name counts."""

    twin = aot.Case("C32", kernel, (torch.empty(1),), {}, 4, 3, 64, 0)
    module = type("Module", (), {"cases": staticmethod(lambda: [twin, twin])})
    monkeypatch.setattr(aot.importlib, "import_module", lambda _name: module)
    monkeypatch.setattr(aot.Path, "glob", lambda _self, _pattern: [Path("aot_pool.py")])
    with pytest.raises(ValueError, match="cases of the same name"):
        aot.registered()
