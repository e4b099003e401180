"""Names from the file system: any bytes, whatever the locale.

Python decodes them by the locale and keeps bytes that it does not know as lone surrogates, which
cannot be written as UTF-8. Hashes and files need the bytes, people something to read.
"""

from __future__ import annotations

import os


def name_bytes(name: str) -> bytes:
    """The bytes of a name in the file system; those of UTF-8 for a name that is UTF-8."""
    return os.fsencode(name)


def readable(text: str) -> str:
    """Text with names in it as it can be shown: bytes that are not UTF-8 as hexadecimal."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def portable(name: str) -> str:
    """A name as files keep it, the same under every locale; for ``local``."""
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def local(name: str) -> str:
    """Inverse of ``portable`` under the locale of now."""
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))
