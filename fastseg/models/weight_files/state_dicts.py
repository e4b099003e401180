"""Read named tensors from files of any project; their content says what kind of file they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ...errors import CheckpointError, listed
from ...pipelines.tools.tensor_digest import tensors_digest
from .restricted_pickle import StoredTensor, UnsafeFile
from .torch_file import TorchFile

# how files begin: a zip archive or a bare pickle as saved by torch
_TORCH = (b"PK", b"\x80")
_DEEPEST = 8
# what wrappers put into names at any place; no layout has them
_WITHIN = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

Stored = Tensor | StoredTensor


@dataclass
class WeightFile:
    """The named tensors of a file, by the dictionary that holds them.

    Attributes:
        path: the file.
        places: tensors by the path of their dictionary, ``""`` for the outermost one and
            ``ema.state_dict`` for one in another; those of a torch file are not read yet.
        skipped: classes of pickled objects that were passed over.
        metadata: texts that a safetensors file carries.
    """

    path: Path
    places: dict[str, dict[str, Stored]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: TorchFile | None = None

    def read(self, tensors: Mapping[str, Stored]) -> dict[str, Tensor]:
        """Tensors of one of the places, on the CPU.

        Raises:
            CheckpointError: the file does not hold them whole.
        """
        stored = {name: x for name, x in tensors.items() if isinstance(x, StoredTensor)}
        found = {name: x for name, x in tensors.items() if isinstance(x, Tensor)}
        if self.source is not None:
            try:
                found |= self.source.read(stored)
            except Exception as error:  # zip archives can be damaged in many ways
                raise _damaged(self.path, error) from error
        return found


def open_weights(path: str | Path) -> WeightFile:
    """The named tensors of a safetensors file or of one that torch has saved.

    Nothing that a file holds is run: pickled objects other than tensors are skipped, see
    `restricted_pickle`.

    Raises:
        CheckpointError: the file is absent, unreadable, damaged, of an unknown kind or without
            named tensors.
    """
    from safetensors import safe_open  # a network without files does not need it

    path = Path(path)
    try:
        if _is_by_torch(path):
            source = TorchFile(path)
            file = WeightFile(path, skipped=tuple(sorted(source.skipped)), source=source)
            content: object = source.content
        else:
            with safe_open(path, framework="pt", device="cpu") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                file = WeightFile(path, metadata=opened.metadata() or {})
            _check_digest(file, tensors)
            content = tensors
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise _damaged(path, error) from error
    for place, tensors in _places(content, "", set(), 0):
        named = {_WITHIN.sub("", name): x for name, x in tensors.items()}
        if len(named) < len(tensors):
            raise CheckpointError(f"{path} has several tensors of one name in {place or 'it'}")
        file.places[place] = named
    if not file.places:
        others = f"; skipped were objects of {listed(file.skipped)}" if file.skipped else ""
        raise CheckpointError(
            f"{path} holds no named tensors{others}; expected a state dict: of a whole network "
            "that was pickled, save network.state_dict() where you trust it"
        )
    return file


def _places(
    content: object, place: str, seen: set[int], depth: int
) -> Iterator[tuple[str, dict[str, Stored]]]:
    """Every dictionary with tensors, and its path; one that occurs twice counts once."""
    if not isinstance(content, Mapping) or depth > _DEEPEST or id(content) in seen:
        return
    seen.add(id(content))
    named = {name: x for name, x in content.items() if isinstance(name, str)}
    tensors = {name: x for name, x in named.items() if isinstance(x, Stored)}
    if tensors:
        yield place, tensors
    for name, inner in named.items():
        yield from _places(inner, f"{place}.{name}" if place else name, seen, depth + 1)


def _check_digest(file: WeightFile, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that a run of fastseg has written with a checksum, and that are others now."""
    written = file.metadata.get("sha256") if "fastseg" in file.metadata else None
    if written is not None and written != tensors_digest(tensors):
        raise CheckpointError(
            f"{file.path} is damaged: its tensors are not those that were written; copy the file "
            "again from its run"
        )


def _damaged(path: Path, error: Exception) -> CheckpointError:
    why = str(error) if isinstance(error, UnsafeFile) else f"{type(error).__name__}: {error}"
    return CheckpointError(
        f"{path} is damaged or cannot be read without running code from it, which is never done "
        f"({why[:300]}); fetch it again, or save its tensors as .safetensors where you trust it"
    )


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
