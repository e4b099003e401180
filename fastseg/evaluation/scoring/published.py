"""Defects of the released metric code, to compute its numbers to the last printed digit.

The code is ``semseg/metrics.py`` of the DELIVER repository, which those of AnySeg, RobustSeg and
the robustness benchmark share. Its confusion matrix is float32: a count above 2^24 loses its last
digits with each batch, about 1e-5 of a score on DELIVER. Its scores are rounded to two decimals of
a percent before they are averaged over subsets. Its filter of conditions (``semseg/datasets``)
looks for a substring of the whole path, so that ``rain`` selects all of ``train``. The RobustSeg
repository chooses students by four mIoUs (``tools/train_deliver_mad50_proto_cur_reg.py``) whose sum
it divides by 3; where missing modalities are zeros, by 4. That absent classes count as 0 is the
papers' rule, and the default here (``miou_all``); that E(p) fixes four modalities cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastseg.errors import ConfigError
from fastseg.pipelines.tools.settings import check_fields

SELECTION = ("R", "RD", "EL", "RDEL")
"""Subsets of which the released training takes the mIoU to choose a student."""
SELECTION_OVER: dict[str, int] = {"drop": 3, "zero": 4}
"""What it divides their sum by, by the treatment of missing modalities."""


@dataclass(frozen=True)
class PublishedConfig:
    """Defects of the released metric code, all off: for numbers that are to equal its own."""

    float32: bool = False
    """Add the counts of one batch after the other in float32. Scores of the whole split then
    depend on --batch-size; those of conditions and intervals stay exact."""
    rounded: bool = False
    """Round each score to two decimals of a percent before means over subsets are taken."""
    substring: bool = False
    """With the protocol conditions: a sample is of a condition or case whose name is anywhere in
    the path of its first image, the folder of the data set and the split included."""
    selection: bool = False
    """With the protocol subsets: also the score by which the released training chooses a student,
    the sum of R, RD, EL and RDEL over 3 with missing sensors left out, over 4 with zeros."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def active(self) -> bool:
        """True if a defect is on."""
        return self != PublishedConfig()

    def __str__(self) -> str:
        chosen = ["counts in float32"] * self.float32 + ["rounded before averaging"] * self.rounded
        chosen += ["conditions by substring"] * self.substring
        chosen += ["Selection is the sum of four over 3 (drop) or 4 (zero)"] * self.selection
        return f"as the released code: {', '.join(chosen)}"

    def needs(self) -> dict[str, str]:
        """The protocol that an option plays a part in, by the names of options that are on."""
        parts = (("selection", "subsets"), ("substring", "conditions"))
        return {f"--published.{name}": wanted for name, wanted in parts if getattr(self, name)}

    def check(self, processes: int, letters: Sequence[str]) -> None:
        """Refuse what has no meaning with several processes, or for a run's modalities.

        Raises:
            ConfigError: the order of the batches is not that of one process, or the modalities are
                not those of the selection.
        """
        if self.selection and list(letters) != list(SELECTION[-1]):
            raise ConfigError(
                "--published.selection is the sum over R, RD, EL and RDEL, but the modalities of "
                f"the run are {' '.join(letters)}: leave it out"
            )
        if self.float32 and processes > 1:
            raise ConfigError(
                f"--published.float32 adds one batch after the other, but there are {processes} "
                "processes: start one, or leave it out"
            )
