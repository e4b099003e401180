"""Results and report of a run: a table, ``results.csv`` and a self-contained ``report.html``.

Pure functions over numpy; torch is not needed, and matplotlib is imported when a page is written.
"""
