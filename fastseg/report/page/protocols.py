"""The page's section of protocols: tables of ``fastseg.evaluate --protocols``."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..details import DetailTable
from .markup import details, missing


def protocols(tables: Sequence[DetailTable], note: str = "") -> str:
    """Every table under its heading: protocol, then what a reader needs to know of the numbers.

    Args:
        tables: the lines of a title are the heading.
        note: what is wrong with the file of the tables.
    """
    lack = missing(note) if note else ""
    if not tables:
        return lack + (
            '<p class="note">No protocols yet: <code>python -m fastseg.evaluate --checkpoint RUN '
            "--protocols all</code> scores subsets by dropping and zeroing, torn sensors, noise, "
            "conditions and faults.</p>\n"
        )
    return lack + "".join(map(_table, tables))


def _table(table: DetailTable) -> str:
    title, *lines = table.title.splitlines()
    notes = "<br>\n".join(map(escape, lines))
    return details(table, title, f'<p class="note">{notes}</p>\n' if lines else "")
