"""The errors a user of the engine may cause, and how their messages list names."""

from collections.abc import Iterable


class ConfigError(ValueError):
    """A setting is unknown or out of range; the message names it, its value and what would do.

    Attributes:
        help: anchor of the entry in ``docs/troubleshooting.md`` that says more; empty: none does.
    """

    def __init__(self, message: str, help: str = "") -> None:
        super().__init__(message)
        self.help = help


class CheckpointError(ValueError):
    """A weights file does not fit; the message names the file, the difference and the next step."""


def listed(names: Iterable[str], limit: int = 8) -> str:
    """The first names, and how many there are beyond them."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
