"""Hypothesis where it is installed; elsewhere tests of properties, and they alone, are skipped.

On a machine that is borrowed for its GPU the kernels are tested with torch, triton, numpy and
pytest. The other tests of a file must not be lost because one of them draws its inputs.
"""

from typing import Any

import pytest

try:
    from hypothesis import example, given, settings
    from hypothesis import strategies as st
except ImportError:

    class _Strategies:
        """Accepts how strategies are made; none is ever drawn from."""

        def __getattr__(self, name: str) -> Any:
            return lambda *_args, **_options: None

    st = _Strategies()  # type: ignore[assignment]

    def given(*_args: Any, **_strategies: Any) -> Any:  # type: ignore[no-redef]
        """A mark in the place of the decorator."""
        return pytest.mark.skip(reason="needs hypothesis")

    def example(**_values: Any) -> Any:  # type: ignore[no-redef]
        """No decorator at all."""
        return lambda test: test

    def settings(**_options: Any) -> Any:  # type: ignore[no-redef]
        """No decorator at all."""
        return lambda test: test


__all__ = ["example", "given", "settings", "st"]
