"""Compile every kernel for GPUs that are not there, and read the machine code.

    python bench/machine_code/aot.py                 brings the installed Triton's rows up to date
    python bench/machine_code/aot.py --check         compares with them, and fails on a regression
    python bench/machine_code/aot.py --only entropy  cases whose kernel or name holds the word

It holds the releases of Triton in ``RELEASES``: the one that the pinned torch brings and those that
its neighbours bring. Each is recorded by itself, with that release in front on the path::

    pip install --no-deps --target FOLDER triton==3.6.0
    PYTHONPATH=FOLDER python bench/machine_code/aot.py

The table is ``bench/results/aot.csv``. What has not changed since it was written, by the kernel's
source, its arguments and the version of Triton, is taken from it, not compiled; ``--all`` compiles.

The cases come from ``cases()`` of every ``bench/machine_code/aot_<op>.py``: a list of
:class:`Case`, or of tuples in its order. A check fails where a kernel spills more than one value,
exceeds its stated budget, needs over 10 % more registers, shared memory or instructions than its
row, or lost all its 128-bit accesses or tensor-core instructions; where the table has no rows of
the installed Triton it looks at spills and budgets only. A case that does not compile, or takes too
much memory or time, fails too. It runs in a process of its own, without ``TRITON_INTERPRET``, which
cannot be switched off once it is on.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # started as a script, from a checkout that is not installed

import triton  # noqa: E402

from bench.machine_code.child_process import compiled  # noqa: E402
from bench.machine_code.counts import Case, Counts  # noqa: E402

TABLE = ROOT / "bench" / "results" / "aot.csv"
ARCHITECTURES = (80, 90, 100)
RELEASES = ("3.6.0", "3.7.1", "3.9.0")
SLACK = 1.10
ONE_VALUE = (2, 8)  # accesses and bytes of stack: one value kept there costs nothing measurable

Key = tuple[str, str, str, str]


def registered(word: str = "") -> list[Case]:
    """The cases of all ``aot_<op>.py`` whose kernel or name holds the word."""
    cases = []
    for path in sorted(Path(__file__).parent.glob("aot_*.py")):
        module = importlib.import_module(f"bench.machine_code.{path.stem}")
        cases += [Case(*case) for case in module.cases()]
    names = Counter((case.kernel_name, case.name) for case in cases)
    if twice := [name for name, times in names.items() if times > 1]:
        raise ValueError(f"cases of the same name: {twice}")
    return [case for case in cases if word in f"{case.kernel_name} {case.name}"]


def complaints(case: Case, row: Counts, before: Counts | None) -> list[str]:
    """Reasons why a row is not acceptable; ``before`` is its line of the committed table."""
    found = []
    if row.spills > ONE_VALUE[0] or row.stack > ONE_VALUE[1]:
        found.append(f"spills: {row.spills} accesses, {row.stack} bytes of stack")
    for what, budget in (("registers", case.registers), ("shared", case.shared)):
        if getattr(row, what) > budget:
            found.append(f"{what} {getattr(row, what)}, budget {budget}")
    if before is not None:
        for what in ("registers", "shared", "instructions"):
            now, then = getattr(row, what), getattr(before, what)
            if now > SLACK * then:
                found.append(f"{what} {now}, in the table {then}")
        for what in ("wide_loads", "wide_stores", "tensor_core"):
            if getattr(before, what) and not getattr(row, what):
                found.append(f"no {what}, in the table {getattr(before, what)}")
    return found


def read_table() -> dict[Key, Counts]:
    """The committed rows, of every version of Triton, by key."""
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as file:
        lines = list(csv.DictReader(file))
    whole = {field.name for field in fields(Counts) if field.type == "int"}
    rows: list[Counts] = []
    for line in lines:
        values: dict[str, Any] = {k: int(v) if k in whole else v for k, v in line.items()}
        rows.append(Counts(**values))
    return {row.key: row for row in rows}


def stale(cases: Sequence[Case], release: str) -> list[str]:
    """Names of the cases whose rows of a release are missing, or of an older source."""
    rows = read_table()
    found = []
    for case in cases:
        keys = [(release, case.kernel_name, case.name, f"sm_{arch}") for arch in ARCHITECTURES]
        if any(key not in rows or rows[key].source != case.source for key in keys):
            found.append(f"{case.kernel_name} {case.name}")
    return found


def write_table(rows: Sequence[Counts]) -> None:
    """Write rows in the order of their keys."""
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("w", newline="") as file:
        names = [field.name for field in fields(Counts)]
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in sorted(rows, key=lambda row: row.key))


def _key(case: Case, arch: int) -> Key:
    return (triton.__version__, case.kernel_name, case.name, f"sm_{arch}")


def main() -> int:
    """Compile, print, then write or check."""
    options = _options()
    table = read_table()
    mine = {key: row for key, row in table.items() if row.triton == triton.__version__}
    if options.check and not mine:
        print(f"no rows of Triton {triton.__version__}: spills and budgets only")
    cases = [(case, arch) for arch in options.arch for case in registered(options.only)]
    if options.first:
        # one per kernel and architecture: of equal keys the last stays
        cases = list(
            {(case.kernel_name, arch): (case, arch) for case, arch in cases[::-1]}.values()
        )
    rows: dict[Key, Counts] = {}
    todo = []
    failed = 0
    for case, arch in cases:
        row = mine.get(_key(case, arch))
        if row is None or options.all or row.source != case.source:
            todo.append((case, arch))
        else:
            rows[row.key] = row
            failed += _judge(case, row, None, quiet=True)
    for case, arch, result in compiled(todo):
        if isinstance(result, str):
            table.pop(_key(case, arch), None)
            print(f"{case.kernel_name} {case.name} sm_{arch}\n    FAILED: {result}", flush=True)
            failed += 1
            continue
        row = result
        rows[row.key] = row
        before = mine.get(row.key) if options.check else None
        failed += _judge(case, row, before, new=bool(options.check and mine and before is None))
    if not (options.only or options.first) and set(options.arch) == set(ARCHITECTURES):
        gone = sorted(mine.keys() - {_key(*case) for case in cases})
        if options.check and gone:
            print(f"FAILED: in the table, but no longer a case: {gone}")
            failed += len(gone)
        table = {key: row for key, row in table.items() if key not in gone}
    if not options.check:
        write_table(list({**table, **rows}.values()))
    print(
        f"{len(todo)} compiled with Triton {triton.__version__}, {len(cases) - len(todo)} as in "
        f"the table, {failed} failed"
    )
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with the table")
    parser.add_argument("--all", action="store_true", help="compile what has not changed, too")
    parser.add_argument("--first", action="store_true", help="only the first case of each kernel")
    parser.add_argument("--only", default="", metavar="WORD", help="only some cases")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, metavar="80")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    return parser.parse_args()


def _judge(
    case: Case, row: Counts, before: Counts | None, *, new: bool = False, quiet: bool = False
) -> bool:
    """Print a row and what is wrong with it; returns whether something is."""
    reasons = complaints(case, row, before)
    if new:
        reasons.append("not in the table: run python bench/machine_code/aot.py")
    if reasons or not quiet:
        print(f"{row.kernel} {row.case} {row.arch}: {row.registers} registers, {row.shared} B "
              f"shared, {row.spills} spills, {row.wide_loads}/{row.loads} wide loads, "
              f"{row.loop}/{row.instructions} instructions in the loop"
              + "".join(f"\n    FAILED: {reason}" for reason in reasons),
              flush=True)  # fmt: skip
    return bool(reasons)


if __name__ == "__main__":
    sys.exit(main())
