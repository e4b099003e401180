"""Lines for people, on standard error so that standard output holds results only."""

from __future__ import annotations

import sys

from fastseg.pipelines.tools.progress import is_quiet


def say(text: str, detail: bool = False) -> None:
    """Print a line without breaking a progress bar.

    Args:
        text: the line.
        detail: it says how something is done, and nothing that a reader must know; ``--quiet``
            leaves it out.
    """
    if detail and is_quiet():
        return
    bars = sys.modules.get("tqdm")
    if bars is None:  # there is no bar to make room for
        print(text, file=sys.stderr, flush=True)
    else:
        bars.tqdm.write(text, file=sys.stderr)
