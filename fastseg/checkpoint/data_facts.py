"""Comparison of the training samples with those that a saved state was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastseg.errors import ConfigError
from fastseg.pipelines import Loader
from fastseg.pipelines.datasets.file_states import file_states


@dataclass(frozen=True)
class DataFacts:
    """Facts about the training samples that a state remembers.

    Attributes:
        fingerprint: hash of the sample ids.
        file_sizes: hash of their sizes, see `FileStates`; absent from the states of older versions.
        file_times: hash of their times of change, which copying changes, too.
    """

    fingerprint: str
    file_sizes: str
    file_times: str

    def changed(self, state: Mapping[str, Any]) -> str | None:
        """Difference from the samples of a state, or None; times alone do not count."""
        if state["fingerprint"] != self.fingerprint:
            return "are not those"
        if state.get("file_sizes", self.file_sizes) != self.file_sizes:
            return "have files of other sizes than those"
        return None

    def touched(self, state: Mapping[str, Any]) -> bool:
        """True if files were written or copied since the state was saved."""
        return bool(state.get("file_times", self.file_times) != self.file_times)


def check_data(now: DataFacts, state: Mapping[str, Any], root: Path, run: Path, may: bool) -> str:
    """Compare the samples with those that a state was trained on.

    Args:
        now: facts of the samples as they are.
        state: content of a ``state.json``.
        root: folder of the data set.
        run: folder of the run.
        may: whether other samples are allowed.

    Returns:
        What is to be said to people; empty if nothing has changed.

    Raises:
        ConfigError: the samples are others, and may not be.
    """
    how = now.changed(state)
    if how is not None:
        change = f"the training samples under {root} {how} that {run} was started with"
        if not may:
            raise ConfigError(
                f"{change}: restore them, start anew with --fresh, or continue on the "
                "others with --allow-data-change"
            )
        return f"{change}; continuing on the others, as --allow-data-change says"
    if now.touched(state):
        return (
            f"warning: training files under {root} were copied or rewritten since the last "
            "state was saved; names and sizes are the same, what is in them is not compared. "
            "If it changed, start anew with --fresh"
        )
    return ""


def data_facts(loader: Loader) -> DataFacts:
    """The facts of a loader's samples as their files are now."""
    states = file_states(loader.files)
    return DataFacts(loader.fingerprint, states.sizes, states.times)
