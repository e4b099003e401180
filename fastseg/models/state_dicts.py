"""Read named tensors from files of any project; their content says what kind of file they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError

# how files begin: a zip archive or a bare pickle as saved by torch
_TORCH = (b"PK", b"\x80")
# what training scripts put around a state dict, and what wrappers put before every key
_CONTAINERS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a file, on the CPU, without containers and wrapper prefixes.

    Pickled objects other than tensors are never loaded, as unpickling them can run any code.

    Raises:
        CheckpointError: the file is absent, unreadable, damaged, of an unknown kind or not only
            tensors.
    """
    from safetensors.torch import load_file  # a network without files does not need it

    path = Path(path)
    by_torch = _is_by_torch(path)
    try:
        if by_torch:
            # torch reads a path by its suffix
            with path.open("rb") as file:
                content: object = torch.load(file, map_location="cpu", weights_only=True)
        else:
            content = load_file(path, device="cpu")
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"{path} is damaged or holds pickled objects other than tensors, which are never "
            "loaded because they can run code; fetch it again, or save its tensors as .safetensors "
            "where you trust it"
        ) from error
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    items = content.items() if isinstance(content, Mapping) else ()
    state = {str(key): value for key, value in items if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f"{path} holds no named tensors; expected a state dict")
    while prefix := next((w for w in _WRAPPERS if all(k.startswith(w) for k in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _is_by_torch(path: Path) -> bool:
    """True if a file was saved by torch; otherwise it begins like a safetensors file."""
    if not path.exists():
        raise CheckpointError(f"no weights file {path}; check the path")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise CheckpointError(f"{path} is {kind}; give the weights file itself")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}; check its access rights"
        ) from None
    if not start:
        raise CheckpointError(f"{path} is damaged: it is empty; fetch it again")
    # the length of a header of at most 100 MB, and the header, whatever the first byte is
    by_torch = not (start[4:8] == bytes(4) and start[8:9] == b"{")
    if by_torch and not start.startswith(_TORCH):
        raise CheckpointError(
            f"{path} is neither a safetensors file nor one saved by torch, it begins with "
            f"{start!r}; check the path, or fetch the file again"
        )
    return by_torch
