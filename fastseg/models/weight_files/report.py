"""What was done with the tensors of a file, for users to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import listed


@dataclass(frozen=True)
class LoadReport:
    """Result of a load; ``str`` has all of it.

    Attributes:
        path: the file.
        layout: short name of the layout whose names it uses.
        part: the network of the file, where it is not all there is.
        loaded: number of tensors of the model that were set.
        missing: tensors of the model that the file lacks, and which were left as they were.
        misfits: those that it has in another shape, likewise.
        unexpected: names in the file that the model has no place for.
        dropped: likewise, of heads known to be of no use, or beside the encoder asked for.
        reshaped: tensors that were put together, cut or given another shape.
        notes: what else a user has to know.
        skipped: classes of pickled objects that were not tensors, and were not run.
    """

    path: Path
    layout: str
    part: str
    loaded: int
    missing: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        part = f", {self.part}" if self.part else ""
        lines = [
            f"{self.path} ({self.layout} layout{part}): {self.loaded} loaded, {len(self.missing)} "
            f"missing, {len(self.unexpected)} unexpected, {len(self.reshaped)} reshaped"
        ]
        named = {
            "missing, left as they were": self.missing,
            "of another shape, left as they were": self.misfits,
            "unexpected": self.unexpected,
            "dropped": self.dropped,
            "reshaped": self.reshaped,
            "skipped objects, no code of them ran": self.skipped,
        }
        lines += [f"{len(names)} {what}: {listed(names)}" for what, names in named.items() if names]
        return "\n  ".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class SaveReport:
    """Result of a save.

    Attributes:
        path: the file.
        layout: short name of the layout.
        written: number of tensors in the file.
        left_out: tensors of the model that the layout has no place for.
        added: tensors that the other project expects and never uses, all zeros.
    """

    path: Path
    layout: str
    written: int
    left_out: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.path} ({self.layout} layout): {self.written} tensors written"]
        named = {"left out": self.left_out, "added as zeros, never used there": self.added}
        lines += [f"{len(names)} {what}: {listed(names)}" for what, names in named.items() if names]
        return "\n  ".join(lines)
