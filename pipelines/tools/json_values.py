"""JSON texts to plain values, with one kind of error for whatever is wrong with them."""

from __future__ import annotations

import json
from typing import Any


def json_values(text: str | bytes) -> Any:
    """The values of a JSON text.

    Raises:
        ValueError: it is none, not UTF-8, or nested deeper than any file of ours.
    """
    try:
        return json.loads(text)
    except RecursionError:
        # no ValueError, and so a trace where the others are a message
        raise ValueError("it is nested too deep") from None
