"""Fixtures of the benchmarks' tests: poisoned memory."""

from tests.support.poisoned_memory import poisoned_memory

__all__ = ["poisoned_memory"]
