"""The rows of ``metrics.jsonl`` and the means that stand in them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastseg.console import say
from fastseg.pipelines.tools.json_values import json_values
from fastseg.pipelines.tools.whole_files import write_whole


class MetricsLog:
    """Append-only JSON lines, one row per logging step or validation.

    Rows have ``kind`` (``train`` or ``eval``), ``stage`` and ``step`` (steps done in the stage).
    A value that is not finite is written as null, so that every line is valid JSON. Of several
    processes one writes; on the others the rows go nowhere.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        self._writes = writes

    def append(self, *rows: dict[str, Any]) -> None:
        """Write rows, all at once."""
        if not self._writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(_clean(row)) + "\n" for row in rows))

    def rows(self) -> list[dict[str, Any]]:
        """All rows; lines that are none, such as one cut off by a crash, are left out."""
        return [row for row in map(_row, self._lines()) if row is not None]

    def rewind(self, stage: str, step: int) -> None:
        """Drop the rows of ``stage`` behind ``step``: they will be written again.

        Whole lines that are no rows move to ``<name>.foreign``, with a warning.
        """
        if not self._writes:
            return
        foreign = [line for line in self._lines() if _row(line) is None and line.endswith(b"\n")]
        if foreign:
            aside = self.path.with_name(f"{self.path.name}.foreign")
            with aside.open("ab") as file:
                file.writelines(foreign)
            say(
                f"warning: {len(foreign)} lines of {self.path} are no rows of this log and move "
                f"to {aside.name}, the first: {foreign[0][:80]!r}"
            )
        kept = [row for row in self.rows() if row["stage"] != stage or row["step"] <= step]
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of a line, or None if it is not one that this log has written."""
    try:
        row = json_values(line)
    except ValueError:
        return None
    kinds = {"kind": str, "stage": str, "step": int}
    if isinstance(row, dict) and all(type(row.get(name)) is kind for name, kind in kinds.items()):
        return row
    return None


def _clean(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


class Meter:
    """Means of device scalars between two logging steps, read by the host only once."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all steps; time counts from now on."""
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._samples = 0
        self._waited = 0.0
        self._trained = 0.0
        self._began = time.perf_counter()

    def restart_clock(self) -> None:
        """Leave the time since the last step out, such as that of a validation."""
        self._began = time.perf_counter()

    def add(self, values: dict[str, Tensor], samples: int, waited: float) -> None:
        """Add one step: its scalars, its number of samples and the seconds it waited for data."""
        for name, value in values.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        now = time.perf_counter()
        self._trained += now - self._began
        self._began = now
        self._steps += 1
        self._samples += samples
        self._waited += waited

    def state(self) -> tuple[list[str], list[float]]:
        """Names of the values, and numbers for `restore`: four counts, then the sums."""
        sums = [float(total) for total in self._sums.values()]
        return list(self._sums), [self._steps, self._samples, self._waited, self._trained, *sums]

    def restore(self, names: Sequence[str], numbers: Sequence[float], device: torch.device) -> None:
        """Go on from what `state` gave; sums stay exact to the bit."""
        steps, samples, self._waited, self._trained, *sums = numbers
        self._steps, self._samples = round(steps), round(samples)
        self._sums = {
            name: torch.tensor(total, dtype=torch.float32, device=device)
            for name, total in zip(names, sums, strict=True)
        }

    def read(self) -> dict[str, float]:
        """Means since the last call, with ``images_per_s`` and ``data_wait`` (share of time)."""
        names = list(self._sums)
        means = torch.stack([self._sums[name].float() for name in names]) / max(1, self._steps)
        values = dict(zip(names, means.tolist(), strict=True))
        values["images_per_s"] = self._samples / self._trained
        values["data_wait"] = self._waited / self._trained
        self.reset()
        return values
