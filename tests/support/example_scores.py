"""Scores of a teacher and a student, for the tests of tables and reports."""

import math

from fastseg.report.results import SubsetResult

NAN = math.nan
COMPARED = ("teacher", "student")
CLASSES = ("road", "sky, clear", "a<b> & $c$")
RESULTS = [
    SubsetResult("teacher", "R", 0.30, 0.45, (0.6, 0.3, NAN)),
    SubsetResult("teacher", "D", 0.10, 0.30, (0.3, NAN, NAN)),
    SubsetResult("teacher", "RD", 0.60, 0.60, (0.9, 0.6, 0.3)),
    SubsetResult("student", "R", 0.50, 0.75, (0.9, 0.6, NAN)),
    SubsetResult("student", "D", 0.40, 0.60, (0.6, 0.6, NAN)),
    SubsetResult("student", "RD", 0.55, 0.55, (0.8, 0.55, 0.3)),
]
