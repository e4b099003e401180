"""A procedural stand-in with DELIVER's layout on disk: streets seen by four registered sensors.

It exercises every code path without a download and shows the effect of missing sensors. Scores on
it say nothing about published results.
"""

from .config import PROFILES, SyntheticConfig, profile
from .generation import generate
from .manifest import foreign_file, shown_name

__all__ = ["PROFILES", "SyntheticConfig", "foreign_file", "generate", "profile", "shown_name"]
