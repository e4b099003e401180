"""TOML files to plain values, with messages for people."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DataError
from .reading import read_bytes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

toml_values: Callable[[str], dict[str, Any]] = tomllib.loads
"""The values of a TOML text; ValueError where it is none."""


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file; a byte order mark is read over.

    Raises:
        DataError: it cannot be read, is not UTF-8, or breaks a rule of TOML; the message has the
            line.
    """
    try:
        return tomllib.loads(read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError:
        raise DataError(
            f"{path} is not UTF-8 text; expected a TOML file. Save it as UTF-8", "toml"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(
            f"{path} is not TOML: {str(error)[:1].lower()}{str(error)[1:]}; a key or table may be "
            "there once, text stands in quotes. Mend this line",
            "toml",
        ) from None
    except ValueError as error:  # a date or number that no calendar or integer has
        raise DataError(f"{path} has a value that cannot be: {error}; mend it", "toml") from None
    except RecursionError:
        raise DataError(f"{path} is nested too deep; expected tables and lists", "toml") from None
