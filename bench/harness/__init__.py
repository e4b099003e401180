"""Clocks, checks, tables and child processes that all benchmarks share."""
