"""Defects of the released metric code, to compute its numbers to the last printed digit.

The code is ``semseg/metrics.py`` of the DELIVER repository, which those of AnySeg, RobustSeg and
the robustness benchmark share. Its confusion matrix is float32: a count above 2^24 loses its last
digits with each batch, about 1e-5 of a score on DELIVER. Its scores are rounded to two decimals of
a percent before they are averaged over subsets. That absent classes count as 0 is the papers' rule,
and the default here (``miou_all``); that E(p) fixes four modalities cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastseg.errors import ConfigError
from fastseg.pipelines.tools.settings import check_fields


@dataclass(frozen=True)
class PublishedConfig:
    """Defects of the released metric code, all off: for numbers that are to equal its own."""

    float32: bool = False
    """Add the counts of one batch after the other in float32. Scores of the whole split then
    depend on --batch-size; those of conditions and intervals stay exact."""
    rounded: bool = False
    """Round each score to two decimals of a percent before means over subsets are taken."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def active(self) -> bool:
        """True if a defect is on."""
        return self.float32 or self.rounded

    def __str__(self) -> str:
        chosen = ["counts in float32"] * self.float32 + ["rounded before averaging"] * self.rounded
        return f"as the released code: {', '.join(chosen)}"

    def check(self, processes: int) -> None:
        """Refuse what has no meaning with several processes.

        Raises:
            ConfigError: the order of the batches is not that of one process.
        """
        if self.float32 and processes > 1:
            raise ConfigError(
                f"--published.float32 adds one batch after the other, but there are {processes} "
                "processes: start one, or leave it out"
            )
