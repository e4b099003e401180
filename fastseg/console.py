"""Lines for people, on standard error so that standard output holds results only."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print a line without breaking a progress bar."""
    bars = sys.modules.get("tqdm")
    if bars is None:  # there is no bar to make room for
        print(text, file=sys.stderr, flush=True)
    else:
        bars.tqdm.write(text, file=sys.stderr)
