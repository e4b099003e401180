"""Tables of the protocols, kept with a run for its page: ``protocol_tables.csv``.

A table is of the weights that it names, and is left out once the run has others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fastseg.checkpoint.weights import weights_digest
from fastseg.console import say
from fastseg.errors import CheckpointError
from fastseg.report.details import DetailTable, read_details, write_details
from fastseg.report.page.html import renew_protocols

FILE = "protocol_tables.csv"
_WEIGHTS = "weights: "


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint is or lies in; None if it belongs to none."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return folder if (folder / "config.json").is_file() else None


def read_protocol_tables(run: Path) -> tuple[list[DetailTable], str]:
    """Tables that are kept with a run, and what is wrong with the file; empty if nothing is.

    Those of weights that the run no longer has are left out.
    """
    path = run / FILE
    if not path.exists():
        return [], ""
    try:
        tables = read_details(path)
    except (OSError, ValueError) as error:
        reason = str(error).replace("a details file", "a file of the protocols' tables")
        return [], f"{reason}; python -m fastseg.evaluate --protocols moves it aside"
    current = set(map(_label, run.glob("*.safetensors")))
    kept = [table for table in tables if _weights_of(table) <= current]
    if len(kept) < len(tables):
        number = len(tables) - len(kept)
        return kept, f"{number} of {len(tables)} tables in {FILE} are of other weights: score anew"
    return kept, ""


def keep_protocol_tables(run: Path, tables: Sequence[DetailTable], files: Iterable[Path]) -> None:
    """Put tables into ``protocol_tables.csv`` of a run, and onto its page if there is one.

    Tables of the same heading are replaced, others of the same weights stay. A file that is none
    is moved aside. What cannot be written is said, as the scores are known.

    Args:
        run: folder of the run.
        tables: of the protocols.
        files: weights that were scored.
    """
    path, page = run / FILE, run / "report.html"
    weights = _WEIGHTS + ", ".join(sorted(map(_label, files)))
    new = {t.title: t for t in (replace(t, title=f"{t.title}\n{weights}") for t in tables)}
    try:
        old, problem = read_protocol_tables(run)
        if problem and not _is_ours(path):
            aside = path.with_name(f"{FILE}.foreign")
            os.replace(path, aside)
            say(f"note: {path} is no file of the protocols' tables: moved to {aside.name}")
        together = list(({t.title: t for t in old} | new).values())
        write_details(path, together)
        if page.is_file() and renew_protocols(page, together):
            say(f"the tables are in {path} and on {page}")
        else:
            say(f"the tables are in {path}; python -m fastseg.report {run} puts them onto a page")
    except OSError as error:
        say(f"note: the run keeps no tables of the protocols: {error}")


def _is_ours(path: Path) -> bool:
    try:
        read_details(path)
    except ValueError:
        return False
    return True


def _label(path: Path) -> str:
    """Name and checksum of a weights file."""
    try:
        return f"{path.name} {weights_digest(path)[:12]}"
    except CheckpointError:
        return f"{path.name} unknown"


def _weights_of(table: DetailTable) -> set[str]:
    last = table.title.splitlines()[-1]
    return set(last.removeprefix(_WEIGHTS).split(", ")) if last.startswith(_WEIGHTS) else {last}
