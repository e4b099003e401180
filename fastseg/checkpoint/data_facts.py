"""Comparison of the training samples with those that a saved state was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


def data_facts(loader: Loader) -> DataFacts:
    """The facts of a loader's samples as their files are now."""
    states = file_states(loader.files)
    return DataFacts(loader.fingerprint, states.sizes, states.times)
