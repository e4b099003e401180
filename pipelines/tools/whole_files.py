"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes, durable: bool = True) -> None:
    """Write under a temporary name in the same folder, then rename; missing folders are made.

    With ``durable``, the content is on the disk before the name is, so that not even a power cut
    leaves a file that is empty or cut off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # a full disk is reported without the name of the file, and ours tells nobody anything
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if temporary.exists():
            temporary.unlink()
