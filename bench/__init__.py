"""Benchmarks: every number that the project claims comes from here."""
