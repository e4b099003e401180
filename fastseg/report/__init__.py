"""Results and report of a run: a table, ``results.csv`` and a self-contained ``report.html``.

Pure functions over numpy; torch is not needed, and matplotlib is imported when a page is written.
"""

from .html import write_report
from .results import (
    Picture,
    RunReport,
    SubsetResult,
    mean_result,
    read_results,
    write_results,
)
from .table import format_table

__all__ = [
    "Picture",
    "RunReport",
    "SubsetResult",
    "format_table",
    "mean_result",
    "read_results",
    "write_report",
    "write_results",
]
